"""``python -m SDMatte score PRED_DIR TRUTH_DIR``: scores mattes of any method."""

from __future__ import annotations

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


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "score",
        help="score a folder of mattes against a folder of true alphas",
        description="Scores every matte of a folder against the true alpha of the same name. "
        "Missing, extra, unreadable or mis-sized pictures are all listed, and nothing is scored.",
    )
    parser.add_argument("pred_dir", type=Path, help="the mattes, made by any method")
    parser.add_argument("truth_dir", type=Path, help="the true alphas, of the same names and sizes")
    parser.add_argument("--trimaps", type=Path, help="score only the unknown pixels of these")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="official")
    parser.add_argument("--output", type=Path, help="folder for CSV, JSON, Markdown and a sheet")
    parser.add_argument(
        "--error-maps", action="store_true", help="also write a picture of each matte's errors"
    )
    parser.add_argument("--dataset", default="", help="name of the set, for the report")
    parser.add_argument("--prompt", default="", help="prompt that was used, for the report")
    parser.add_argument("--model", default="", help="name of the method, for the report")
    parser.add_argument(
        "-j",
        "--num-workers",
        type=int,
        default=0,
        help="processes that share the work (default: this one)",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Scores, prints a table (MSE and MAD times 1000), writes reports if asked to.

    Raises:
        ConfigError: Maps are asked for, but no output.
        DataError: The folders do not fit together; the message lists all that is wrong.
        OutputError: The output cannot be written, or is one of the folders.
    """
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
        model=args.model,
        info={"mattes": str(args.pred_dir), "truth": str(args.truth_dir)},
    )
    protocol = get_protocol(result.protocol)
    pixels = "unknown pixels of the trimaps" if result.trimap_restricted else "all pixels"
    print(f"{result.key}: {len(result.images)} pictures, {pixels}")
    print(f"protocol {protocol.name}: {protocol.description}\n")
    print(score_table({result.model: result.scores}, display=True))
    if args.output is not None:
        write_report(result, args.output)
        write_worst_and_best(result, args.output / SHEET)
        if args.error_maps:
            write_error_maps(result.images, args.output, args.num_workers)
        print(f"Reports are in {args.output}.")
    return 0
