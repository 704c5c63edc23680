"""List the transparent samples of any folder of alphas, with a sheet for a visual check.

A sample is transparent if a large fraction of its object's interior is partly transparent, as
measured by SDMatte/data/transparency.py. The list has one file name per line. Saved as
``txt/NAME_transparent_samples.txt`` under the data root, it applies to the data set NAME::

    python tools/make_transparent_list.py ALPHA_DIR OUT.txt --sheet sheet.jpg

The sheet shows the listed samples (+) and the borderline ones (-) with their fractions. Edit the
list where you disagree.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from SDMatte.cli.common import run_command
from SDMatte.data.transparency import THRESHOLD, transparent_fractions
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.images.listing import scan_folder
from SDMatte.images.sheets import contact_sheet
from SDMatte.runtime.files import check_not_read, write_text

logger = logging.getLogger("make_transparent_list")

BORDERLINE = 0.5
"""Samples above this fraction of the threshold are shown even if they are not listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("alpha_dir", type=Path, help="folder of alphas")
    parser.add_argument("out", type=Path, help="the list to write")
    parser.add_argument("--sheet", type=Path, help="image to write, such as sheet.jpg")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"fraction of the interior above which a sample is listed (default: {THRESHOLD})",
    )
    parser.add_argument(
        "--most", type=int, default=300, help="maximum number of alphas on the sheet"
    )
    parser.add_argument("--num-workers", type=int, help="processes (default: number of cores)")
    return run_command(make_list, parser.parse_args(argv))


def make_list(args: argparse.Namespace) -> None:
    """Measure the alphas, and write list and sheet."""
    if not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold {args.threshold}: must be from 0 to 1.")
    if args.most < 1:
        raise ConfigError(f"--most {args.most}: must be at least 1.")
    if (args.num_workers or 0) < 0:
        raise ConfigError(f"--num-workers {args.num_workers}: must be at least 0.")
    scan = scan_folder(args.alpha_dir)
    scan.log_left_out()
    paths = [args.alpha_dir / name for name in scan.images]
    check_not_read([args.out, *filter(None, [args.sheet])], paths)
    fractions = measure(paths, args.num_workers)
    if not fractions:
        raise DataError(f"No readable alpha in {args.alpha_dir}.")
    listed = sorted(path.name for path, value in fractions.items() if value > args.threshold)
    if args.sheet:  # before the list, which is only replaced if nothing fails
        draw_sheet(args.sheet, fractions, args.threshold, args.most)
    write_text(args.out, "".join(f"{name}\n" for name in listed))
    logger.info("%d of %d are transparent: %s", len(listed), len(fractions), args.out)


def measure(paths: Sequence[Path], num_workers: int | None) -> dict[Path, float]:
    """Measure every alpha; unreadable ones are logged and left out."""
    fractions = {}
    results = tqdm(transparent_fractions(paths, num_workers), "alphas", len(paths))
    for path, value in zip(paths, results, strict=True):
        if isinstance(value, DataError):
            logger.warning("Left out: %s", value)
        else:
            fractions[path] = value
    return fractions


def draw_sheet(sheet: Path, fractions: dict[Path, float], threshold: float, most: int) -> None:
    """Draw listed and borderline samples, in descending order of their fractions."""
    shown = [path for path, value in fractions.items() if value > BORDERLINE * threshold]
    if not shown:
        logger.info("No sample is transparent or borderline: no sheet written.")
        return
    if len(shown) > most:
        logger.info("The sheet shows %d of %d, those nearest the threshold.", most, len(shown))
        shown = sorted(shown, key=lambda path: abs(fractions[path] - threshold))[:most]
    shown = sorted(shown, key=lambda path: -fractions[path])
    labels = [
        f"{'+' if fractions[path] > threshold else '-'} {fractions[path]:.2f} {path.name}"
        for path in shown
    ]
    write_image(sheet, contact_sheet(map(read_alpha, shown), labels, columns=8, tile=160))
    logger.info("Sheet for a visual check: %s", sheet)


if __name__ == "__main__":
    sys.exit(main())
