"""Makes pretrained weights fit for SDMatte.

For SDMatte: ``python process_weight.py --input SD2_DIR --output OUT_DIR``; for LiteSDMatte:
``python process_weight.py --input BK_SDM_DIR --vae TAESD_DIR --output OUT_DIR``.
"""

import argparse
import sys
from pathlib import Path

from SDMatte.cli.common import run_command


def main(args: argparse.Namespace) -> None:
    """Checks the arguments and processes the folder."""
    from SDMatte.errors import ConfigError
    from SDMatte.modeling.pretrained import process_pretrained

    if (args.output is None) == (not args.in_place):
        raise ConfigError("Say either --output FOLDER, or --in-place to change the input folder.")
    process_pretrained(args.input, args.output, vae=args.vae, init=args.init)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Makes a Stable Diffusion v2 folder fit for SDMatte."
    )
    parser.add_argument("--input", type=Path, required=True, help="folder in diffusers layout")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--in-place", action="store_true", help="change the input folder itself")
    parser.add_argument("--vae", type=Path, help="TAESD folder, for LiteSDMatte")
    parser.add_argument(
        "--init",
        choices=("default", "zeros"),
        default="default",
        help="default: coordinates can be learnt; zeros: as the reference has it",
    )
    sys.exit(run_command(main, parser.parse_args()))
