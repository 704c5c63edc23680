"""List the transparent samples of any folder of alphas, with a sheet for a visual check.

A sample is transparent if a large fraction of its object's interior is partly transparent, as
measured by SDMatte/data/transparency.py. The list has one file name per line; as
``txt/NAME_transparent_samples.txt`` under the data root it decides for the data set NAME::

    python tools/make_transparent_list.py ALPHA_DIR OUT.txt --sheet sheet.jpg

The sheet shows the listed samples (+) and the borderline ones (-) with their fractions. Edit the
list where your eyes disagree.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from SDMatte.cli.common import run_command
from SDMatte.data.transparency import THRESHOLD, transparent_fraction
from SDMatte.errors import DataError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.images.listing import scan_folder
from SDMatte.images.sheets import contact_sheet
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.runtime.parallel import map_in_processes

logger = logging.getLogger("make_transparent_list")

MOST = 300
"""Samples on the sheet, those nearest the threshold."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("alpha_dir", type=Path, help="folder of alphas")
    parser.add_argument("out", type=Path, help="the list to write")
    parser.add_argument("--sheet", type=Path, help="image to write, such as sheet.jpg")
    return run_command(make_list, parser.parse_args(argv))


def make_list(args: argparse.Namespace) -> None:
    """Measure the alphas, and write list and sheet; unreadable alphas are logged."""
    scan = scan_folder(args.alpha_dir)
    scan.log_left_out()
    paths = [args.alpha_dir / name for name in scan.images]
    check_not_read([args.out, *filter(None, [args.sheet])], paths)
    fractions = {}
    measured = tqdm(map_in_processes(measure, paths), "alphas", len(paths))
    for path, value in zip(paths, measured, strict=True):
        if isinstance(value, DataError):
            logger.warning("Left out: %s", value)
        else:
            fractions[path] = value
    if not fractions:
        raise DataError(f"No readable alpha in {args.alpha_dir}.")
    listed = sorted(path.name for path, value in fractions.items() if value > THRESHOLD)
    if args.sheet:  # before the list, which is only replaced if nothing fails
        draw_sheet(args.sheet, fractions)
    write_text(args.out, "".join(f"{name}\n" for name in listed))
    logger.info("%d of %d are transparent: %s", len(listed), len(fractions), args.out)


def measure(path: Path) -> float | DataError:
    """Return the `transparent_fraction` of an alpha file, or why it cannot be read."""
    try:
        return transparent_fraction(read_alpha(path))
    except DataError as error:
        return error


def draw_sheet(sheet: Path, fractions: dict[Path, float]) -> None:
    """Draw samples above half the threshold, in descending order of their fractions."""
    shown = [path for path, value in fractions.items() if value > THRESHOLD / 2]
    if not shown:
        logger.info("No sample is transparent or borderline: no sheet written.")
        return
    shown = sorted(shown, key=lambda path: abs(fractions[path] - THRESHOLD))[:MOST]
    shown = sorted(shown, key=lambda path: -fractions[path])
    labels = [
        f"{'+' if fractions[path] > THRESHOLD else '-'} {fractions[path]:.2f} {path.name}"
        for path in shown
    ]
    write_image(sheet, contact_sheet(map(read_alpha, shown), labels, columns=8, tile=160))
    logger.info("Sheet for a visual check: %s", sheet)


if __name__ == "__main__":
    sys.exit(main())
