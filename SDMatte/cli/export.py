"""``sdmatte export MODEL OUTPUT``."""

import argparse
from pathlib import Path

from SDMatte.cli.common import path_or_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Write a model as a folder of ONNX graphs, which MattePredictor.from_pretrained and "
        "`sdmatte matte --model` run with onnxruntime, without torch. The graphs are compared with "
        "the model, and nothing is written if they differ."
    )
    parser.add_argument(
        "model", type=path_or_name, help="a folder, hub id or checkpoint, as for `sdmatte matte`"
    )
    parser.add_argument("output", type=Path, help="the folder to create")
    parser.add_argument(
        "--checkpoint",
        type=path_or_name,
        help="another checkpoint of the model, such as SDMatte_plus.pth",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="type of the weights (default: float32)",
    )


def run(args: argparse.Namespace) -> None:
    """Export the model."""
    from SDMatte.inference.export import export_model

    differences = export_model(args.model, args.output, args.dtype, args.checkpoint)
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 2**20
    found = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"{args.output}: {size:.0f} MiB; largest differences from PyTorch's alpha: {found}")
