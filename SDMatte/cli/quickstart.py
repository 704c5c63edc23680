"""``sdmatte quickstart``."""

import argparse
from pathlib import Path

from SDMatte.cli.common import DEFAULT_CONFIG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Create the embedded sample set, train SDMatte_small on it, test it against two baselines, "
        "and write scores, curves and images. An interrupted run is resumed; after a complete "
        "training, only the test is repeated."
    )
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--samples", type=Path, default=Path("data/samples"))
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings")


def run(args: argparse.Namespace) -> int:
    """Run the quickstart; print the scores and the next steps."""
    from SDMatte.cli.quickstart_run import NEXT_STEPS, quickstart

    result = quickstart(DEFAULT_CONFIG, args.output, args.samples, args.words)
    print(f"\n{result.markdown}\n")
    print(NEXT_STEPS.format(output=args.output))
    if not result.beats_baselines:
        print("The trained network does not beat both baselines in MSE and SAD.")
        return 1
    return 0
