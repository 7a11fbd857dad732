"""Train DAN on AffectNet with the paper's recipe, or evaluate a trained one.

python affectnet.py --epochs 10                  AffectNet-8, from datasets/AffectNet
python affectnet.py --epochs 10 --num_class 7    without contempt
python affectnet.py --toy                        drawn faces, no data or weights needed
python affectnet.py --aff_path FOLDER            any data set as train/<class>/, val/<class>/
python affectnet.py --evaluate --checkpoint models/affectnet-8/best.pth
"""

import argparse
from dataclasses import replace

import torch

from networks.dan import DAN
from networks.losses import DANLoss
from utils import checkpoint, cli, distributed
from utils.convert_affectnet import convert
from utils.data.datasets import affectnet_run_name, read_affectnet
from utils.data.loader import balanced
from utils.data.transforms import Augmentation
from utils.errors import exit_on_user_error
from utils.toy.sets import write_affectnet
from utils.training import engine, evaluation
from utils.training.run import Run

# What --toy presets; a flag that is given wins. The recipe's augmentation wants more epochs than a
# first try should take.
TOY = {
    "aff_path": "datasets/toy-AffectNet",
    "pretrained": "none",
    "image_size": 80,
    "batch_size": 16,
    "lr": 3e-4,
    "warmup_epochs": 0.25,
    "clip_grad": 1.0,
    "schedule": "cosine",
    "geometric": 0.2,
    "epochs": 3,
}

AUGMENT = Augmentation(
    flip=0.5,
    geometric=0.7,
    rotation=20,
    scale=(0.8, 1.0),
    translate=0.2,
    erasing=0.5,
    erasing_scale=(0.02, 0.33),
)


def run_name(args: argparse.Namespace) -> str:
    """The run folder's name: affectnet-8 or -7, or the name of another data set's folder."""
    return affectnet_run_name(args.aff_path, args.num_class)


def main(argv: list[str] | None = None) -> None:
    # ---- flags -----------------------------------------------------------------------------------
    recipe = {"batch_size": 256, "lr": 1e-4, "epochs": 40, "geometric": AUGMENT.geometric}
    parser = cli.RecipeParser(__doc__, run_name, **recipe, optimizer="adam", toy=TOY)
    parser.data.add_argument(
        "--aff_path",
        metavar="DIR",
        default="datasets/AffectNet",
        help="AffectNet's folder, or that of another data set as class folders",
    )
    parser.data.add_argument(
        "--num_class",
        type=int,
        choices=(7, 8),
        help="7 leaves out contempt (default: 8, or the class folders of another data set)",
    )
    args, saved = cli.parse(parser, argv)
    world = distributed.init(args)

    # ---- data ------------------------------------------------------------------------------------
    if args.toy:
        with world.main_first():
            write_affectnet(args.aff_path)
            convert(args.aff_path)
    data = read_affectnet(args.aff_path, num_class=args.num_class)
    if args.evaluate:
        evaluation.evaluate_checkpoint(args, saved, data, world)
        return
    data = data.with_validation(args.val_fraction, args.seed)

    # ---- network and losses ----------------------------------------------------------------------
    model = DAN(num_class=data.num_class, **cli.network_flags(vars(args)))
    if saved is None:
        checkpoint.load_pretrained(model, args.pretrained)
    criterion = DANLoss(
        num_class=data.num_class,
        batch_mean=world.mean,
        **cli.loss_flags(args, data.num_class),
    )
    model, criterion = world.place(model), world.place(criterion)

    # ---- optimizer and schedule ------------------------------------------------------------------
    parameters = [*model.parameters(), *criterion.parameters()]
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.Adam(parameters, lr=args.lr)
    if args.schedule == "recipe":
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.6)
    else:  # cosine decay is applied step by step, see utils/training/engine.py
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)

    # ---- training --------------------------------------------------------------------------------
    run = Run(args, saved, data, world, model, criterion, optimizer, scheduler)
    augment = replace(AUGMENT, geometric=args.geometric)
    engine.fit(run, data, augment, order=balanced)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
