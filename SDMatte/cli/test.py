"""``python -m SDMatte test [CONFIG] [CHECKPOINT] [key=value ...]``: predicts and scores sets."""

import argparse

from SDMatte.cli.common import add_process_arguments, split_positionals


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "test",
        help="predict and score test sets",
        description="Predicts test sets, writes the mattes, and prints MSE, MAD, SAD, Grad and "
        "Conn. Sets and prompts are settings: dataloader.test.dataset.names=[AIM-500] or "
        "[{image:DIR,alpha:DIR}], test.prompts=[box,point,mask], test.protocol=corrected.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG CHECKPOINT key=value",
        help="a config file (default: configs/SDMatte_small.py), a checkpoint (default: the "
        "config's train.output_dir/model_final.pth), and settings",
    )
    parser.add_argument(
        "--output", help="folder for mattes and reports (default: test/ beside the checkpoint)"
    )
    add_process_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Tests, in as many processes as asked for."""
    (config_file, checkpoint), overrides = split_positionals(args.words, most=2)

    from SDMatte.engine.distributed import launch

    launch(
        test,
        args.num_processes,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(config_file, checkpoint, overrides, args.output),
    )


def test(config_file: str, checkpoint: str | None, overrides: list[str], output: str | None):
    """Loads, tests and prints; called in every process."""
    from pathlib import Path

    from SDMatte.engine.config import load_config, resolve_device
    from SDMatte.engine.testing import load_trained, run_test
    from SDMatte.evaluation.protocols import get_protocol
    from SDMatte.evaluation.report import score_table

    config = load_config(config_file, overrides)
    path = Path(checkpoint or Path(config.train.output_dir) / "model_final.pth")
    folder = Path(output) if output else path.parent / "test"
    model = load_trained(config, path).to(resolve_device(config.train.device))
    results = run_test(config, model, folder, model_name=path.stem)
    if results:
        protocol = get_protocol(config.test.protocol)
        print(f"\n{path}, protocol {protocol.name}: {protocol.description}\n")
        print(score_table(results, display=True))
        print(f"\nMattes and reports are in {folder}.")
