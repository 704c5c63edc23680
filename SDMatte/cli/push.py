"""``sdmatte push RUN_OR_MODEL OWNER/NAME``."""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from SDMatte.cli.common import path_or_name
from SDMatte.errors import DataError, MissingFileError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.description = (
        "Upload a model to the Hugging Face hub, in one commit: weights, configs and a model card "
        "with the run's recipe and scores. `--model OWNER/NAME` then loads it. An existing card "
        "is replaced. Log in with `hf auth login`, or set HF_TOKEN."
    )
    parser.add_argument(
        "source",
        type=path_or_name,
        metavar="RUN_OR_MODEL",
        help="a training run, a saved model, or a checkpoint in either",
    )
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; created if missing")
    parser.add_argument("--checkpoint", type=path_or_name, help="another checkpoint of the run")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folders with results of `test` (default: the run's); results of other weights are "
        "left out",
    )
    parser.add_argument(
        "--license",
        type=path_or_name,
        help="identifier of the license on the hub, such as mit",
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the model card and upload nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Upload the model, or print its card."""
    words = (args.source, args.repo, args.checkpoint, args.results, args.license)
    found = push_to_hub(*words, private=args.private, dry_run=args.dry_run)
    print(found if args.dry_run else f"Uploaded: {found}")


def push_to_hub(
    source: str | Path,
    repo: str,
    checkpoint: str | Path | None = None,
    results: Sequence[Path] | None = None,
    license_id: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload a model with its card, in one commit, and return the commit's address.

    Args:
        source: Anything `SDMatte.inference.loading.find_model` takes.
        repo: ``OWNER/NAME``.
        checkpoint: See `find_model`.
        results: Folders with results; None: the run's folder.
        license_id: Identifier of the license on the hub.
        private: Create a private repository.
        dry_run: Upload nothing and return the card.

    Raises:
        CheckpointError: The model was not found.
        DataError: A folder of results was not found or is damaged, or none has results of the
            model.
        ConfigError: The name is not ``OWNER/NAME``.
        OutputError: The hub cannot be reached, or refuses the upload.
    """
    import torch

    from SDMatte.inference.loading import find_model
    from SDMatte.modeling import hub

    hub.check_repo(repo)
    found = find_model(source, checkpoint)
    card = _make_card(found, repo, results, license_id)
    if dry_run:
        return card
    model = found.load(torch.device("cpu"), "float32")
    with tempfile.TemporaryDirectory(prefix="sdmatte-push-") as folder:
        model.save_pretrained(folder, inference=found.defaults.model_dump())
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        logger.info("Uploading %s to %s ...", found.checkpoint, repo)
        return hub.push_folder(folder, repo, private, f"Upload {type(model).__name__}")


def _make_card(
    found: Any, repo: str, results: Sequence[Path] | None, license_id: str | None
) -> str:
    from omegaconf import OmegaConf

    from SDMatte.evaluation.identity import file_hash
    from SDMatte.inference.loading import RUN_CONFIG
    from SDMatte.modeling import hub
    from SDMatte.scoring.model_card import render_card
    from SDMatte.scoring.results import find_results, read_result

    home = found.checkpoint.parent
    config: Any = None
    base = None
    if (home / RUN_CONFIG).is_file() and not (home / "unet").is_dir():
        config = OmegaConf.to_container(OmegaConf.load(home / RUN_CONFIG), resolve=True)
        name = hub.HubName.parse(str(found.folder))
        base = name.repo if name is not None and not Path(found.folder).exists() else None
    digest = file_hash(found.checkpoint)
    own = []
    for folder in [home] if results is None else results:
        if not folder.is_dir():
            raise MissingFileError(f"Folder of results {folder} not found.")
        for path in find_results(folder):
            result = read_result(path)
            if result.info.get("model sha256") == digest:
                own.append(result)
            else:
                logger.warning("%s left out: its results are of other weights.", path)
    if results and not own:
        raise DataError(
            f"No results of {found.checkpoint} in {', '.join(map(str, results))}: name folders "
            f"with results of `test` for these weights, or leave out --results."
        )
    model = found.model_class.__name__
    return render_card(repo, model, own, config, base, license_id)
