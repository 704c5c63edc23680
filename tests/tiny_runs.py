"""Training runs of a tiny model on batches of noise, built from a config."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from models import make_batch, tiny_folder
from omegaconf import DictConfig

from SDMatte.engine.builders import build_trainer
from SDMatte.engine.lora import Adapters
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.runtime.config import load_config

CONFIG = str(Path(__file__).parents[1] / "configs" / "SDMatte_small.py")


def tiny_settings(*more: str) -> list[str]:
    """Return overrides that make the small config's model tiny and its images 64 pixels wide."""
    return [
        f"model.pretrained_model_name_or_path={tiny_folder()}",
        "model.load_weight=False",
        "train.init_checkpoint=null",
        "model.image_prior=null",
        "optimizer.lr=2e-3",
        "dataloader.train.dataset.size=64",
        "dataloader.train.batch_size=2",
        "dataloader.test.dataset.size=64",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        *more,
    ]


@dataclass
class TinyRun:
    """A training run that `run` advances; `losses` has the total loss of each step."""

    config: DictConfig
    task: TrainingModel
    trainer: MatteTrainer
    adapters: Adapters | None
    losses: list[float] = field(default_factory=list)

    @classmethod
    def build(cls, *overrides: str, seed: int = 0) -> "TinyRun":
        config = load_config(CONFIG, tiny_settings(*overrides))
        batches = [make_batch(seed=index) for index in range(8)]
        torch.manual_seed(seed)
        return cls(config, *build_trainer(config, batches, torch.device("cpu")))

    def run(self, steps: int = 2) -> "TinyRun":
        with EventStorage(self.trainer.iter) as self.trainer.storage:
            for _ in range(steps):
                self.trainer.run_step()
                self.losses.append(self.trainer.storage.history("total_loss").latest())
                self.trainer.iter += 1
        return self
