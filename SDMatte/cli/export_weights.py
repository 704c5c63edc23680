"""``sdmatte export-weights CHECKPOINT OUTPUT``."""

import argparse
from pathlib import Path

from SDMatte.cli.common import path_or_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Write the weights of a run's checkpoint (their moving average, if the run kept one) or of "
        "a published one as one file in the published layout, without the optimizer's state."
    )
    parser.add_argument(
        "checkpoint",
        type=path_or_name,
        help="a .pth or .safetensors file, a folder, or an id on the Hugging Face hub such as "
        "LongfeiHuang/SDMatte or LongfeiHuang/SDMatte/SDMatte_plus.pth",
    )
    parser.add_argument(
        "output", type=Path, help="the new file: .safetensors, or .pth as published"
    )


def run(args: argparse.Namespace) -> None:
    """Export the weights."""
    from SDMatte.engine.checkpoint import export_weights

    tensors = export_weights(args.checkpoint, args.output)
    size = sum(value.nbytes for value in tensors.values()) / 2**30
    print(f"{args.output}: {len(tensors)} tensors, {size:.2f} GiB")
