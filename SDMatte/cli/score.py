"""``sdmatte score PRED_DIR TRUTH_DIR``."""

import argparse
from pathlib import Path

from SDMatte.errors import ConfigError
from SDMatte.runtime.files import check_not_read, check_writable
from SDMatte.scoring.folder import score_folder
from SDMatte.scoring.protocols import PROTOCOLS, get_protocol
from SDMatte.scoring.report import write_report
from SDMatte.scoring.results import ERRORS, SCORES, SHEET, SUMMARY, SUMMARY_PAGE
from SDMatte.scoring.sheets import write_error_maps, write_worst_and_best
from SDMatte.scoring.tables import score_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Score each matte of a folder against the true alpha of the same name. If images are "
        "missing, extra, unreadable or of another size, all of them are listed and nothing is "
        "scored."
    )
    parser.add_argument("pred_dir", type=Path, help="mattes made by any method")
    parser.add_argument("truth_dir", type=Path, help="true alphas of the same names and sizes")
    parser.add_argument("--trimaps", type=Path, help="score only the unknown pixels of these")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="official")
    parser.add_argument(
        "--output", type=Path, help="folder for CSV, JSON, Markdown and a contact sheet"
    )
    parser.add_argument(
        "--error-maps", action="store_true", help="also write an error map for each matte"
    )
    parser.add_argument(
        "--dataset",
        default="",
        help="data set, by which `report` groups runs (default: the name of the truth folder)",
    )
    parser.add_argument(
        "--prompt", default="", help="prompt of the mattes, by which `report` groups runs"
    )
    parser.add_argument(
        "-j",
        "--num-workers",
        type=int,
        default=0,
        help="scoring processes (default: 0, this process)",
    )


def run(args: argparse.Namespace) -> None:
    """Score, print a table (MSE and MAD times 1000) and write reports if requested."""
    if args.error_maps and args.output is None:
        raise ConfigError("--error-maps needs --output.")
    if args.output is not None:
        check_writable(args.output / SUMMARY)
        folders = [args.pred_dir, args.truth_dir, args.trimaps]
        check_not_read([args.output, args.output / ERRORS], folders)
        files = [args.output / name for name in (SUMMARY, SCORES, SUMMARY_PAGE, SHEET)]
        check_not_read(files, [p for f in folders if f and f.is_dir() for p in f.iterdir()])
    result = score_folder(
        args.pred_dir,
        args.truth_dir,
        args.trimaps,
        args.protocol,
        args.num_workers,
        dataset=args.dataset,
        prompt=args.prompt,
        info={"mattes": str(args.pred_dir), "truth": str(args.truth_dir)},
    )
    protocol = get_protocol(result.protocol)
    pixels = "unknown pixels of the trimaps" if result.trimap_restricted else "all pixels"
    print(f"{result.key}: {len(result.images)} images, {pixels}")
    print(f"protocol {protocol.name}: {protocol.description}\n")
    print(score_table({result.model: result.scores}, display=True))
    if args.output is not None:
        write_report(result, args.output)
        write_worst_and_best(result, args.output / SHEET)
        if args.error_maps:
            write_error_maps(result.images, args.output, args.num_workers)
        print(f"Reports are in {args.output}.")
