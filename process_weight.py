"""Prepare pretrained weights for SDMatte.

For SDMatte: ``python process_weight.py --input SD2 --output OUT_DIR``; for LiteSDMatte:
``python process_weight.py --input BK_SDM --vae TAESD --output OUT_DIR``.
"""

import argparse
import sys

from SDMatte.cli.common import CommandParser, path_or_name, run_command


def main(args: argparse.Namespace) -> None:
    """Process the weights."""
    from SDMatte.modeling.pretrained import process_pretrained

    process_pretrained(args.input, args.output, vae=args.vae, init=args.init, config=args.config)


if __name__ == "__main__":
    parser = CommandParser(description="Prepare the weights of Stable Diffusion v2 for SDMatte.")
    parser.add_argument(
        "--input",
        type=path_or_name,
        required=True,
        help="a folder in diffusers layout or its id on the Hugging Face hub, OWNER/NAME or "
        "OWNER/NAME@REVISION; or the original single file (768-v-ema.ckpt or .safetensors), also "
        "as OWNER/NAME/FILE",
    )
    parser.add_argument("--output", type=path_or_name, required=True, help="folder to write")
    parser.add_argument(
        "--vae", type=path_or_name, help="TAESD, a folder or hub id, for LiteSDMatte"
    )
    parser.add_argument(
        "--config",
        type=path_or_name,
        help="for a single file: folder or hub id of the component configs and the tokenizer "
        "(default: the file's folder, or LongfeiHuang/SDMatte)",
    )
    parser.add_argument(
        "--init",
        choices=("default", "zeros"),
        default="default",
        help="initialization of the new coordinate layers: default is trainable; zeros, as in the "
        "reference, is not",
    )
    sys.exit(run_command(main, parser.parse_args()))
