"""``python -m SDMatte train [CONFIG] [key=value ...]``: trains a model."""

import argparse

from SDMatte.cli.common import add_process_arguments, split_positionals


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a model",
        description="Trains what a config describes. Settings are overridden as key=value, for "
        "instance train.output_dir=output/mine dataloader.train.batch_size=2.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="a config file (default: configs/SDMatte_small.py), and settings",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the output folder's last checkpoint"
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Trains, in as many processes as asked for."""
    (config_file,), overrides = split_positionals(args.words, most=1)

    from SDMatte.engine.distributed import launch
    from SDMatte.engine.train import train

    launch(
        train,
        args.num_processes,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(config_file, overrides, args.resume),
    )
