"""Train DAN on RAF-DB with the paper's recipe, or evaluate a trained one.

python rafdb.py                       the recipe, on datasets/raf-basic
python rafdb.py --toy                 drawn faces, no data or weights needed
python rafdb.py --evaluate --checkpoint models/rafdb/best.pth
"""

import torch

from networks.dan import DAN
from networks.fused import FusedDAN
from networks.losses import DANLoss
from utils import cli, distributed, engine, evaluation, resume, transforms
from utils.errors import exit_on_user_error
from utils.readers import read_rafdb
from utils.run import build, report, set_up
from utils.sampling import shuffled
from utils.toy_faces import write_rafdb
from utils.training import Training

# What --toy presets; a flag that is given wins.
TOY = {
    "raf_path": "datasets/toy-raf-basic",
    "pretrained": "none",
    "image_size": 100,
    "batch_size": 32,
    # Small enough that the heads do not grow apart at once, which holds learning up for epochs.
    "lr": 0.01,
    "epochs": 11,
}

AUGMENT = transforms.Augmentation(
    flip=0.5,
    geometric=0.2,
    rotation=20,
    crop_padding=32 / 224,
    erasing=0.5,
    erasing_scale=(0.02, 0.25),
)


def main(argv: list[str] | None = None) -> None:
    # ---- flags -----------------------------------------------------------------------------------
    parser, group = cli.recipe_parser(
        __doc__, batch_size=256, lr=0.1, epochs=40, run_name="rafdb", toy=TOY
    )
    group.add_argument(
        "--raf_path", metavar="DIR", default="datasets/raf-basic", help="RAF-DB's folder"
    )
    args = cli.parse(parser, argv)
    world = distributed.join(args.device)
    resume.take_run_flags(args, world)

    # ---- data ------------------------------------------------------------------------------------
    trained = evaluation.read_checkpoint(args) if args.evaluate else None
    if args.toy:
        with world.main_first():
            write_rafdb(args.raf_path)
    data = read_rafdb(args.raf_path)
    if trained is not None:
        evaluation.evaluate_trained(args, trained, data, world, DAN, FusedDAN)
        return
    run = set_up(args, data, world)
    run.say(data.summary(toy=args.toy))

    # ---- network, losses and recipe --------------------------------------------------------------
    model, criterion = build(run, DAN, DANLoss)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)

    # ---- training --------------------------------------------------------------------------------
    report(run, model)
    training = Training(run, model, criterion, optimizer, scheduler)
    engine.fit(training, data, AUGMENT, order=shuffled)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
