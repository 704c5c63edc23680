"""``sdmatte train [CONFIG] [key=value ...]``."""

import argparse
import os

from SDMatte.cli.common import add_process_arguments, launch, split_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Train the model of a config. Override settings with key=value, for example "
        "train.output_dir=output/mine dataloader.train.batch_size=2."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="a config file (default: configs/SDMatte_small.py) and settings",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in train.output_dir"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the model, data, length and memory of the training; write nothing",
    )
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train in as many processes as requested."""
    config_file, overrides = split_config(args.words)
    if args.dry_run:
        _print_dry_run(args, config_file, overrides)
        return

    from SDMatte.engine.output import describe_saved
    from SDMatte.engine.train import train

    given = (config_file, overrides, args.resume)
    launch(args, config_file, overrides, train, *given, saved=describe_saved)


def _print_dry_run(args: argparse.Namespace, config_file: str, overrides: list[str]) -> None:
    """Print what `run` would do, in the first process only."""
    from SDMatte.engine.dry_run import dry_run

    # torchrun sets both variables.
    world_size = int(os.environ.get("WORLD_SIZE", args.num_processes * args.num_machines))
    if os.environ.get("RANK", "0") == "0":
        print(dry_run(config_file, overrides, world_size))
