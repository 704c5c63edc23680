"""``python -m SDMatte train [CONFIG] [key=value ...]``: trains a model."""

import argparse
import os

from SDMatte.cli.common import add_process_arguments, launch, split_positionals


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
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be trained, on what, how long and in how much memory; write nothing",
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Trains, in as many processes as asked for."""
    (config_file,), overrides = split_positionals(args.words, most=1)
    if args.dry_run:
        show_dry_run(args, config_file, overrides)
        return

    from SDMatte.engine.output import describe_saved
    from SDMatte.engine.train import train

    given = (config_file, overrides, args.resume)
    launch(args, config_file, overrides, train, *given, saved=describe_saved)


def show_dry_run(args: argparse.Namespace, config_file: str, overrides: list[str]) -> None:
    """Prints what `run` would do; of several processes that were started, the first one does."""
    from SDMatte.engine.dry_run import dry_run
    from SDMatte.runtime.launch import slurm_process, torchrun_process

    place = torchrun_process(os.environ) or slurm_process(os.environ)
    others = args.num_machines if place is None else place.world_size
    if place is None or place.rank == 0:
        print(dry_run(config_file, overrides, args.num_processes * others))
