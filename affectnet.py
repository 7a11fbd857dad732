"""Train DAN on AffectNet with the paper's recipe, or evaluate a trained one.

python affectnet.py --epochs 10                  AffectNet-8, from datasets/AffectNet
python affectnet.py --epochs 10 --num_class 7    without contempt
python affectnet.py --toy                        drawn faces, no data or weights needed
python affectnet.py --aff_path FOLDER            any data set as train/<class>/, val/<class>/
python affectnet.py --evaluate --checkpoint models/affectnet-8/best.pth
"""

import torch

from networks.dan import DAN
from networks.fused import FusedDAN
from networks.losses import DANLoss
from utils import cli, distributed, engine, evaluation, resume, transforms
from utils.convert_affectnet import convert
from utils.errors import exit_on_user_error
from utils.readers import read_affectnet
from utils.run import build, report, set_up
from utils.sampling import balanced
from utils.toy_faces import write_affectnet
from utils.training import Training

# What --toy presets; a flag that is given wins.
TOY = {
    "aff_path": "datasets/toy-AffectNet",
    "pretrained": "none",
    "image_size": 96,
    "batch_size": 32,
    "lr": 5e-4,
    "epochs": 5,
}

AUGMENT = transforms.Augmentation(
    flip=0.5,
    geometric=0.7,
    rotation=20,
    scale=(0.8, 1.0),
    translate=0.2,
    erasing=0.5,
    erasing_scale=(0.02, 0.33),
)


def main(argv: list[str] | None = None) -> None:
    # ---- flags -----------------------------------------------------------------------------------
    parser, group = cli.recipe_parser(
        __doc__,
        batch_size=256,
        lr=1e-4,
        epochs=40,
        run_name="affectnet-8",
        toy=TOY,
    )
    group.add_argument(
        "--aff_path",
        metavar="DIR",
        default="datasets/AffectNet",
        help="AffectNet's folder, or that of a data set with class folders of other names than 0-7",
    )
    group.add_argument(
        "--num_class",
        type=int,
        choices=(7, 8),
        help="7 leaves out contempt (default: 8, or the class folders of another data set)",
    )
    args = cli.parse(parser, argv)
    world = distributed.join(args.device)
    resume.take_run_flags(args, world)

    # ---- data ------------------------------------------------------------------------------------
    trained = evaluation.read_checkpoint(args) if args.evaluate else None
    if args.toy:
        with world.main_first():
            write_affectnet(args.aff_path)
            convert(args.aff_path)
    data = read_affectnet(args.aff_path, num_class=args.num_class)
    if trained is not None:
        evaluation.evaluate_trained(args, trained, data, world, DAN, FusedDAN)
        return
    run = set_up(args, data, world)
    run.say(data.summary(toy=args.toy))

    # ---- network, losses and recipe --------------------------------------------------------------
    model, criterion = build(run, DAN, DANLoss)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.6)

    # ---- training --------------------------------------------------------------------------------
    report(run, model)
    training = Training(run, model, criterion, optimizer, scheduler)
    engine.fit(training, data, AUGMENT, order=balanced)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
