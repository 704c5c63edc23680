"""Training runs of the tiny model on a device."""

import torch
from detectron2.utils.events import EventStorage
from models import make_batch
from tiny_runs import CONFIG, tiny_settings

from SDMatte.engine.builders import build_trainer
from SDMatte.runtime.config import load_config


class TinyTraining:
    """A training run on batches of noise, built as by `sdmatte train`."""

    def __init__(self, device: torch.device, *overrides: str, first_batch: int = 0):
        config = load_config(CONFIG, tiny_settings("model.aux_input=bbox_mask", *overrides))
        batches = [make_batch(seed=first_batch + index) for index in range(8)]
        torch.manual_seed(0)
        self.task, self.trainer, _ = build_trainer(config, batches, device)
        self.losses: list[float] = []

    def steps(self, count: int) -> "TinyTraining":
        with EventStorage(self.trainer.iter) as self.trainer.storage:
            for _ in range(count):
                self.trainer.run_step()
                self.losses.append(self.trainer.storage.history("total_loss").latest())
                self.trainer.iter += 1
        return self
