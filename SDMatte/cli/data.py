"""``python -m SDMatte data make-samples [FOLDER]``: makes the embedded sample set."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand and its own."""
    parser = subparsers.add_parser("data", help="make the embedded sample set")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    samples = actions.add_parser(
        "make-samples",
        help="write the embedded sample set",
        description="Draws pictures with exact mattes, in the layouts of Composition-1K "
        "(training), BG-20K (backgrounds) and AIM-500 (test).",
    )
    samples.add_argument("folder", type=Path, nargs="?", default=Path("data/samples"))
    samples.add_argument("--train", type=int, default=240, help="foregrounds for training")
    samples.add_argument("--test", type=int, default=48, help="test pictures")
    samples.add_argument("--size", type=int, default=384, help="their size in pixels, about")
    samples.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=make_samples)
    return parser


def make_samples(args: argparse.Namespace) -> None:
    """Draws the set, or says that it is there."""
    from SDMatte.data.synthetic import make_sample_set

    make_sample_set(
        args.folder, num_train=args.train, num_test=args.test, size=args.size, seed=args.seed
    )
