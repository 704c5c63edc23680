"""Checkpoints of a run: written whole or not at all, read without unpickling code."""

import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from SDMatte.engine.output import LAST
from SDMatte.errors import CheckpointError, OutputError
from SDMatte.modeling import hub, weights
from SDMatte.runtime.files import check_not_read, replace_file

logger = logging.getLogger(__name__)

RUN_FILE = re.compile(r"model_\d{7,}\.pth")


class MatteCheckpointer(Checkpointer):
    """fvcore's checkpointer with whole files, strict loading, and an end to old checkpoints.

    A run's checkpoint, ``model_0000999.pth`` after step 1000, holds ``model``, the state dict in
    the published layout, and the states of the run. So it is also a file that
    `SDMatte.modeling.weights.load_checkpoint` reads.

    Args:
        model: The model.
        save_dir: Folder of the checkpoints.
        save_to_disk: False in all processes but the first.
        weights_in_use: Gives the model, for as long as it is entered, the weights to test and to
            publish: their moving average, where there is one.
        **checkpointables: What else has a state, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str | Path,
        *,
        save_to_disk: bool = True,
        weights_in_use: Callable[[], AbstractContextManager] = nullcontext,
        **checkpointables: Any,
    ):
        super().__init__(model, str(save_dir), save_to_disk=save_to_disk, **checkpointables)
        self._weights_in_use = weights_in_use

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth``; until it is complete the file before it stays the last one.

        Raises:
            OutputError: It cannot be written; the message says why.
        """
        if not self.save_to_disk:
            return
        data = {"model": self._state_dict_in_use()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving %s", path)
        write_whole(path, lambda partial: _save({**data, **kwargs}, partial))
        self.tag_last_checkpoint(path.name)

    def save_run(self, iteration: int, max_to_keep: int | None = None) -> None:
        """Writes the checkpoint of a step, and removes the oldest ones.

        Args:
            iteration: The step, from 0.
            max_to_keep: How many to keep, whichever process of the run wrote them; None: all.

        Raises:
            OutputError: It cannot be written; the message says why.
        """
        self.save(f"model_{iteration:07d}")
        if self.save_to_disk and max_to_keep is not None:
            files = self.get_all_checkpoint_files()
            earlier = [path for path in files if _iteration(path) <= iteration]
            for path in earlier[:-max_to_keep]:
                os.remove(path)

    def save_weights(self, name: str) -> None:
        """Writes the weights in use alone, as published checkpoints are: ``name.pth``.

        It does not become the last checkpoint, for no run can go on from it.

        Raises:
            OutputError: It cannot be written; the message says why.
        """
        if self.save_to_disk:
            write_weights(self._state_dict_in_use(), Path(self.save_dir) / f"{name}.pth")

    def _state_dict_in_use(self) -> dict[str, torch.Tensor]:
        with self._weights_in_use():
            return dict(self.model.state_dict())

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes which checkpoint is the last one."""
        write_whole(
            Path(self.save_dir) / LAST,
            lambda partial: partial.write_text(last_filename_basename, encoding="utf-8"),
        )

    def get_all_checkpoint_files(self) -> list[str]:
        """Lists the checkpoints of the run, by step; not the copies that people make of them."""
        files = [p for p in Path(self.save_dir).glob("model_*.pth") if RUN_FILE.fullmatch(p.name)]
        return sorted(map(str, files), key=_iteration)

    def resume(self) -> bool:
        """Goes on from the last checkpoint that is whole; in all processes from the same one.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: There are checkpoints, but none that can be read; or it is one of
                another kind of run.
        """
        path = comm.all_gather(self._find_last() if self.save_to_disk else None)[0]
        if path is None:
            return False
        content = read_run(path)
        weights.load_strict(self.model, content["model"], str(path))
        for key, item in self.checkpointables.items():
            if key not in content:
                raise CheckpointError(f"{path} holds no {key} state to go on from.")
            try:
                item.load_state_dict(content[key])
            except CheckpointError:
                raise
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{path} is of a run with other settings; its {key} state does not fit: {error}"
                ) from error
        logger.info("Going on from %s", path)
        return True

    def _find_last(self) -> Path | None:
        candidates = self.get_all_checkpoint_files()[::-1]
        if self.has_checkpoint():
            candidates.insert(0, self.get_checkpoint_file())
        for path in map(Path, candidates):
            try:
                read_run(path)
                check_whole(path)
                return path
            except CheckpointError as error:
                logger.warning("%s Trying the one before.", error)
        if candidates:
            raise CheckpointError(f"No checkpoint in {self.save_dir} can be read.")
        return None


def _iteration(path: str | Path) -> int:
    return int(re.sub(r"\D", "", Path(path).stem))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, and rename it once it is complete and on the disk.

    Args:
        path: The file.
        write: Gets the other name.

    Raises:
        OutputError: It cannot be written; the message says why.
    """
    try:
        with replace_file(path, durable=True) as partial:
            partial.touch()  # says better why it is not possible than what writes it
            write(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be written ({_reason(error)}); whatever was saved before it is kept."
        ) from error


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(content, file)


def _reason(error: BaseException) -> str:
    """The system's words, which torch and safetensors wrap into their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).strip().splitlines()[0]


def write_weights(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes a state dict alone, as ``.safetensors`` or as the published ``.pth``.

    Raises:
        CheckpointError: The name ends otherwise.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        write_whole(path, lambda partial: save_file(tensors, partial, metadata={"format": "pt"}))
    elif path.suffix == ".pth":
        write_whole(path, lambda partial: _save(dict(tensors), partial))
    else:
        raise CheckpointError(f"Weights are written as .safetensors or .pth; {path} is neither.")


def export_weights(source: str | Path, target: str | Path) -> dict[str, torch.Tensor]:
    """Writes the weights of a checkpoint, published or of a run, alone and in published layout.

    Args:
        source: A file, a folder or a hub id; see `SDMatte.modeling.hub.resolve_checkpoint`.
        target: The new file, ``.safetensors`` or ``.pth``.

    Returns:
        What was written, by name.

    Raises:
        CheckpointError: The source is no checkpoint of SDMatte or LiteSDMatte.
        OutputError: The target cannot be written, or is the source.
    """
    source = hub.resolve_checkpoint(source)
    check_not_read([target], [source])
    tensors = weights.read_tensors(source)
    kind = weights.describe_model(tensors)
    if kind not in weights.OWN_KINDS:
        raise CheckpointError(f"{source} is {kind}; only those of SDMatte and LiteSDMatte will do.")
    weights.rename_text_encoder(tensors, "", with_level=True)
    write_weights(tensors, target)
    return tensors


def check_whole(path: Path) -> None:
    """Reads all of a checkpoint against the sums in it; torch looks at none of them.

    Raises:
        CheckpointError: Something in it is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} in it is not what was written.")


def read_run(path: Path) -> dict[str, Any]:
    """Reads all of a run's checkpoint.

    Raises:
        CheckpointError: It is damaged, or not of a run.
    """
    tensors = weights.read_tensors(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "model" not in content:
        raise CheckpointError(f"{path} is not the checkpoint of a run.")
    return {**content, "model": tensors}
