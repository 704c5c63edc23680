"""Checkpoints of a run: written whole or not at all, read without unpickling code."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from SDMatte.errors import CheckpointError
from SDMatte.modeling import weights

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"


class MatteCheckpointer(Checkpointer):
    """fvcore's checkpointer with atomic files and strict loading.

    A file holds ``model``, the state dict in the published layout (so it is also a checkpoint
    that `SDMatte.modeling.weights.load_checkpoint` reads), and the states of the run.

    Args:
        model: The model.
        save_dir: Folder of the checkpoints.
        save_to_disk: False in all processes but the first.
        **checkpointables: What else has a state, by name.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, *, save_to_disk: bool = True, **checkpointables: Any
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth``; until it is complete the file before it stays the last one.

        Raises:
            CheckpointError: It cannot be written; the message says why.
        """
        if not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        partial = path.with_suffix(".pth.partial")
        logger.info("Saving %s", path)
        try:
            with open(partial, "wb") as file:
                torch.save({**data, **kwargs}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{path} cannot be written ({error}); the checkpoint before it is kept."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes which checkpoint is the last one."""
        partial = Path(self.save_dir) / f"{LAST}.partial"
        partial.write_text(last_filename_basename, encoding="utf-8")
        os.replace(partial, Path(self.save_dir) / LAST)

    def resume(self) -> bool:
        """Goes on from the last checkpoint that is whole.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: There are checkpoints, but none that can be read.
        """
        candidates = sorted(
            Path(self.save_dir).glob("model_*.pth"), key=lambda p: p.stat().st_mtime, reverse=True
        )
        if self.has_checkpoint():
            last = Path(self.get_checkpoint_file())
            candidates = [last, *(path for path in candidates if path != last)]
        for path in candidates:
            try:
                content = read_run(path)
            except CheckpointError as error:
                logger.warning("%s Trying the one before.", error)
                continue
            weights.load_strict(self.model, content["model"], str(path))
            for key, item in self.checkpointables.items():
                if key not in content:
                    raise CheckpointError(f"{path} holds no {key} state to go on from.")
                item.load_state_dict(content[key])
            logger.info("Going on from %s", path)
            return True
        if candidates:
            raise CheckpointError(f"No checkpoint in {self.save_dir} can be read.")
        return False


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
