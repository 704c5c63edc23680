"""Lists the transparent samples of any folder of alphas, with a sheet to check them by eye.

A sample is transparent if much of its object's interior is partly transparent
(SDMatte/data/transparency.py says how that is measured). The list has one file name a line; under
the data root as ``txt/NAME_transparent_samples.txt`` it decides for the data set NAME::

    python tools/make_transparent_list.py ALPHA_DIR OUT.txt --sheet sheet.jpg

The sheet shows what is listed (+), and below what nearly is (-), each with its share. Where the
eye disagrees, edit the list.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from SDMatte.cli.common import run_command
from SDMatte.data.settings import check_whole
from SDMatte.data.transparency import THRESHOLD, transparent_shares
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.images.listing import scan_folder
from SDMatte.images.sheets import contact_sheet
from SDMatte.runtime.files import check_not_read, write_text

logger = logging.getLogger("make_transparent_list")

BORDERLINE = 0.5
"""What has more than this part of the threshold is shown, though it is not listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; gives its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("alpha_dir", type=Path, help="folder of alphas")
    parser.add_argument("out", type=Path, help="the list to write")
    parser.add_argument("--sheet", type=Path, help="picture to write, such as sheet.jpg")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"share of the interior that makes transparent (default: {THRESHOLD})",
    )
    parser.add_argument("--most", type=int, default=300, help="pictures on the sheet, at most")
    parser.add_argument("--num-workers", type=int, help="processes (default: by the cores)")
    return run_command(make_list, parser.parse_args(argv))


def make_list(args: argparse.Namespace) -> None:
    """Decides, and writes list and sheet."""
    if not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold is a share in [0, 1], not {args.threshold}.")
    check_whole("--most", [args.most], 1)
    check_whole("--num-workers", [args.num_workers or 0], 0)
    scan = scan_folder(args.alpha_dir)
    scan.log_left_out()
    paths = [args.alpha_dir / name for name in scan.images]
    check_not_read([args.out, *filter(None, [args.sheet])], paths)
    shares = measure(paths, args.num_workers)
    if not shares:
        raise DataError(f"There is no readable picture in {args.alpha_dir}.")
    listed = sorted(path.name for path, share in shares.items() if share > args.threshold)
    if args.sheet:  # first, so that a new list is there only if all went well
        draw_sheet(args.sheet, shares, args.threshold, args.most)
    write_text(args.out, "".join(f"{name}\n" for name in listed))
    logger.info("%d of %d are transparent: %s", len(listed), len(shares), args.out)


def measure(paths: Sequence[Path], num_workers: int | None) -> dict[Path, float]:
    """Measure every alpha; those that cannot be read are named and left out."""
    shares = {}
    results = tqdm(transparent_shares(paths, num_workers), "alphas", len(paths))
    for path, share in zip(paths, results, strict=True):
        if isinstance(share, DataError):
            logger.warning("Left out: %s", share)
        else:
            shares[path] = share
    return shares


def draw_sheet(sheet: Path, shares: dict[Path, float], threshold: float, most: int) -> None:
    """Shows what is listed and what nearly is, from the largest share down."""
    shown = [path for path, share in shares.items() if share > BORDERLINE * threshold]
    if not shown:
        logger.info("Nothing is transparent, or nearly: there is no sheet to draw.")
        return
    if len(shown) > most:
        logger.info("The sheet shows %d of %d, nearest to the threshold.", most, len(shown))
        shown = sorted(shown, key=lambda path: abs(shares[path] - threshold))[:most]
    shown = sorted(shown, key=lambda path: -shares[path])
    labels = [
        f"{'+' if shares[path] > threshold else '-'} {shares[path]:.2f} {path.name}"
        for path in shown
    ]
    write_image(sheet, contact_sheet(map(read_alpha, shown), labels, columns=8, tile=160))
    logger.info("To check by eye: %s", sheet)


if __name__ == "__main__":
    sys.exit(main())
