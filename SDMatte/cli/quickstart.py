"""``python -m SDMatte quickstart``: from nothing to a trained and scored matte."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "quickstart",
        help="make samples, train the small model, test it, and show the results",
        description="Makes the embedded sample set, trains SDMatte_small on it, tests it against "
        "two baselines, and leaves scores, curves and pictures. A run that was interrupted goes "
        "on where it was; one that is complete is only tested again.",
    )
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--samples", type=Path, default=Path("data/samples"))
    parser.add_argument("--fresh", action="store_true", help="train anew")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs it and prints the scores and what to do next."""
    from SDMatte.cli.common import DEFAULT_CONFIG, split_positionals
    from SDMatte.cli.quickstart_run import NEXT_STEPS, quickstart

    _, overrides = split_positionals(args.words, most=0)
    result = quickstart(
        DEFAULT_CONFIG, args.output, args.samples, fresh=args.fresh, overrides=overrides
    )
    print(f"\n{result.markdown}\n")
    print(NEXT_STEPS.format(output=args.output))
    if not result.beats_baselines:
        print("The trained network does not beat both baselines in MSE and SAD.")
        return 1
    return 0
