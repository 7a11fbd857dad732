"""Train DAN on RAF-DB with the paper's recipe, or evaluate a trained one.

python rafdb.py                       the recipe, on datasets/raf-basic
python rafdb.py --toy                 drawn faces, no data or weights needed
python rafdb.py --evaluate --checkpoint models/rafdb/best.pth
"""

from dataclasses import replace

import torch

from networks.dan import DAN
from networks.losses import DANLoss
from utils import checkpoint, cli, distributed
from utils.data.datasets import read_rafdb
from utils.data.loader import shuffled
from utils.data.transforms import Augmentation
from utils.errors import exit_on_user_error
from utils.toy.sets import write_rafdb
from utils.training import engine, evaluation
from utils.training.run import Run

# What --toy presets; a flag that is given wins. From scratch DAN's first gradients are so large
# that learning stalls for epochs unless they are clipped and the learning rate is warmed up.
TOY = {
    "raf_path": "datasets/toy-raf-basic",
    "pretrained": "none",
    "image_size": 100,
    "batch_size": 16,
    "warmup_epochs": 2.0,
    "clip_grad": 1.0,
    "schedule": "cosine",
    "epochs": 6,
}

AUGMENT = Augmentation(
    flip=0.5,
    geometric=0.2,
    rotation=20,
    crop_padding=32 / 224,
    erasing=0.5,
    erasing_scale=(0.02, 0.25),
)


def main(argv: list[str] | None = None) -> None:
    # ---- flags -----------------------------------------------------------------------------------
    recipe = {"batch_size": 256, "lr": 0.1, "epochs": 40, "geometric": AUGMENT.geometric}
    parser = cli.RecipeParser(__doc__, "rafdb", **recipe, toy=TOY)
    parser.data.add_argument(
        "--raf_path", metavar="DIR", default="datasets/raf-basic", help="RAF-DB's folder"
    )
    args, saved = cli.parse(parser, argv)
    world = distributed.init(args)

    # ---- data ------------------------------------------------------------------------------------
    if args.toy:
        with world.main_first():
            write_rafdb(args.raf_path)
    data = read_rafdb(args.raf_path)
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
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    else:  # cosine decay is applied step by step, see utils/training/engine.py
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)

    # ---- training --------------------------------------------------------------------------------
    run = Run(args, saved, data, world, model, criterion, optimizer, scheduler)
    augment = replace(AUGMENT, geometric=args.geometric)
    engine.fit(run, data, augment, order=shuffled)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
