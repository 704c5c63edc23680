"""Checkpoints of a run: written atomically, read without unpickling code."""

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
from torch import nn

from SDMatte.errors import CheckpointError, OutputError, first_line
from SDMatte.modeling import hub, weights
from SDMatte.runtime.files import check_not_read, replace_file

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # fvcore's file that names the last checkpoint


class MatteCheckpointer(Checkpointer):
    """fvcore's checkpointer with atomic files, strict loading and a limit on old checkpoints.

    The checkpoint of a run, ``model_0000999.pth`` after step 1000, holds the state dict in the
    published layout, as ``model``, and the states needed to resume. It is also a valid checkpoint
    for `SDMatte.modeling.weights.load_checkpoint`.

    Args:
        model: The model.
        save_dir: Folder of the checkpoints.
        save_to_disk: Whether to write files; False in all processes but the main one.
        weights_in_use: Context manager that swaps in the weights to test and publish, such as
            their moving average.
        **checkpointables: Other objects with a state, by name.
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
        """Write ``name.pth`` and mark it as the last checkpoint once it is complete.

        Raises:
            OutputError: The file cannot be written.
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
        """Write the checkpoint of a step, counted from 0, and delete the oldest ones.

        Args:
            iteration: The step.
            max_to_keep: Checkpoints to keep, including those of earlier processes; None: all.
        """
        self.save(f"model_{iteration:07d}")
        if self.save_to_disk and max_to_keep is not None:
            files = self.get_all_checkpoint_files()
            earlier = [path for path in files if _iteration(path) <= iteration]
            for path in earlier[:-max_to_keep]:
                os.remove(path)

    def save_weights(self, name: str) -> None:
        """Write only the weights in use to ``name.pth``, in the published layout.

        The file is not marked as the last checkpoint, because a run cannot resume from it.
        """
        if self.save_to_disk:
            write_weights(self._state_dict_in_use(), Path(self.save_dir) / f"{name}.pth")

    def _state_dict_in_use(self) -> dict[str, torch.Tensor]:
        with self._weights_in_use():
            return dict(self.model.state_dict())

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Mark a file as the last checkpoint."""
        write_whole(
            Path(self.save_dir) / LAST,
            lambda partial: partial.write_text(last_filename_basename, encoding="utf-8"),
        )

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint, which need not exist; "" if none is marked."""
        try:
            # After a crash, the file can hold anything, often null bytes.
            name = (Path(self.save_dir) / LAST).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return os.path.join(self.save_dir, name.replace("\0", "").strip())

    def get_all_checkpoint_files(self) -> list[str]:
        """List the checkpoints of the run by step, without renamed copies."""
        files = [str(path) for path in Path(self.save_dir).glob("model_*.pth")]
        return sorted((path for path in files if _iteration(path) >= 0), key=_iteration)

    def resume(self) -> bool:
        """Load the last undamaged checkpoint, the same one in all processes.

        Returns:
            Whether there is a checkpoint.

        Raises:
            CheckpointError: No checkpoint is usable, or the last one does not fit this run.
        """
        path = comm.all_gather(self._find_last() if self.save_to_disk else None)[0]
        if path is None:
            return False
        content = read_run(path)
        adapted = "adapters" in content
        if adapted != ("adapters" in self.checkpointables):
            raise CheckpointError(f"{path} was saved with train.lora.enabled={adapted}.")
        weights.load_strict(self.model, content["model"], str(path))
        for key, item in self.checkpointables.items():
            if key not in content:
                raise CheckpointError(f"{path} has no {key} state: a run cannot resume from it.")
            try:
                item.load_state_dict(content[key])
            except CheckpointError:
                raise
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"The {key} state of {path} was saved with other settings: {error}."
                ) from error
        logger.info("Resuming from %s", path)
        return True

    def is_complete(self) -> bool:
        """Return whether the final weights are newer than the last checkpoint."""
        final, last = Path(self.save_dir) / hub.FINAL_CHECKPOINT, Path(self.get_checkpoint_file())
        return final.is_file() and final.stat().st_mtime_ns >= last.stat().st_mtime_ns

    def _find_last(self) -> Path | None:
        candidates = self.get_all_checkpoint_files()[::-1]
        if self.has_checkpoint():
            candidates.insert(0, self.get_checkpoint_file())
        problems = []
        for path in map(Path, candidates):
            try:
                read_run(path)
                check_whole(path)
            except CheckpointError as error:
                logger.warning("%s Trying the previous one.", error)
                problems.append(error)
                continue
            if problems:
                self.tag_last_checkpoint(path.name)
            return path
        if problems:
            raise CheckpointError(
                f"A run cannot resume from any checkpoint in {self.save_dir}. The last one: "
                f"{problems[0]}"
            )
        return None


def _iteration(path: str) -> int:
    """Return the step of a run's checkpoint; -1 for another file."""
    match = re.fullmatch(r"model_(\d{7,})\.pth", os.path.basename(path))
    return -1 if match is None else int(match[1])


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a temporary path, and rename the file once it is complete and on disk.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with replace_file(path, durable=True) as partial:
            partial.touch()  # fails with a clearer reason than torch and safetensors
            write(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OutputError(
            f"Cannot write {path}: {_reason(error)}. Files saved before are kept."
        ) from error


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(content, file)


def _reason(error: BaseException) -> str:
    """Return the message of the operating system, which torch and safetensors wrap."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return first_line(error)


def write_weights(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write a state dict as ``.safetensors`` or ``.pth``.

    Raises:
        CheckpointError: The suffix is neither of these.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        write_whole(path, lambda partial: weights.save_tensors(tensors, partial))
    elif path.suffix == ".pth":
        write_whole(path, lambda partial: _save(dict(tensors), partial))
    else:
        raise CheckpointError(f"Weights must be written as .safetensors or .pth; got {path}.")


def export_weights(source: str | Path, target: str | Path) -> dict[str, torch.Tensor]:
    """Write only the weights of a checkpoint, in the published layout, and return them.

    Args:
        source: Anything `SDMatte.modeling.hub.resolve_checkpoint` takes.
        target: The new file, ``.safetensors`` or ``.pth``.

    Raises:
        CheckpointError: The source is not a checkpoint of SDMatte or LiteSDMatte.
        OutputError: The target cannot be written, or is the source.
    """
    source = hub.resolve_checkpoint(source)
    check_not_read([target], [source])
    tensors = weights.read_tensors(source)
    kind = weights.identify_model(tensors)
    if kind not in weights.OWN_KINDS:
        raise CheckpointError(
            f"{source} is {kind}; it must be a checkpoint of SDMatte or LiteSDMatte."
        )
    weights.rename_text_encoder(tensors)
    write_weights(tensors, target)
    return tensors


def check_whole(path: Path) -> None:
    """Verify the checksums of a checkpoint, which torch ignores.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: wrong checksum of {damaged}.")


def read_run(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        CheckpointError: The file is damaged or not the checkpoint of a run.
    """
    tensors = weights.read_tensors(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "model" not in content:
        raise CheckpointError(f"{path} is not the checkpoint of a run.")
    return {**content, "model": tensors}
