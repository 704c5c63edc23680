"""Identity of a test: all that its results depend on, so that only matching ones are resumed."""

import hashlib
import json
import unicodedata
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from SDMatte.data import MattingDataset
from SDMatte.errors import CheckpointError, MissingCheckpointError
from SDMatte.prompts.types import PromptType


def set_identity(
    dataset: MattingDataset, prompt: PromptType, settings: DictConfig
) -> dict[str, Any]:
    """Return all that results depend on except the model; ``settings`` is ``config.test``."""
    data_settings = dataset.settings.model_dump()
    del data_settings["cache_mb"]  # does not affect results
    samples = json.dumps([asdict(sample) for sample in dataset.samples], ensure_ascii=False)
    samples = unicodedata.normalize("NFC", samples)
    return {
        "code": code_hash(),
        "protocol": settings.protocol,
        "use_trimap": settings.use_trimap,
        "use_captions": settings.use_captions,
        "set": dataset.samples[0].dataset,
        "samples": hashlib.sha256(samples.encode("utf-8", "surrogateescape")).hexdigest(),
        **{f"{role} files": _fingerprint(dataset, role) for role in ("image", "alpha", "trimap")},
        "prompt": prompt.alias,
        "prompt seed": dataset.seed,
        "prompts sha256": file_hash(dataset.frozen.path) if dataset.frozen is not None else None,
        "perturbation": dataset.perturb.model_dump(),
        "size": dataset.size,
        "settings": data_settings,
    }


def code_hash() -> str:
    """Return the SHA-256 of the package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, as ``sha256sum`` prints it.

    Raises:
        MissingCheckpointError: The file does not exist.
        CheckpointError: The file is unreadable.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise MissingCheckpointError(f"File {path} not found.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()


def _fingerprint(dataset: MattingDataset, role: str) -> str:
    """Hash the files of one role, regardless of their location and modification time.

    For images, which are large, only the file sizes are hashed.
    """
    digest = hashlib.sha256()
    for path in filter(None, (getattr(sample, role) for sample in dataset.samples)):
        try:
            status = (dataset.root / path).stat()
        except OSError:  # reported when the file is read
            continue
        content = str(status.st_size)
        if role != "image":
            content = _cached_hash(dataset.root / path, status.st_size, status.st_mtime_ns)
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()


@cache  # shared by all prompts and models of a run
def _cached_hash(path: Path, size: int, mtime_ns: int) -> str:
    return file_hash(path)
