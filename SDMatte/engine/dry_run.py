"""``train --dry-run``: describe a run and measure the cost of one step, without writing files."""

import datetime
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import SDMatte.compat  # noqa: F401

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from SDMatte.data import MattingDataset
from SDMatte.engine.builders import build_trainer
from SDMatte.engine.hooks import WeightAverage
from SDMatte.engine.schedule import RunPlan, make_plan, prepare_evaluations
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.evaluation.plan import build_test_loaders
from SDMatte.modeling import hub, weights
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.devices import choose_device, peak_memory

INDENT = 14


class StepCost(NamedTuple):
    """Cost of one step after a warm-up step."""

    seconds: float
    data_seconds: float  # part of `seconds` spent waiting for the batch
    memory: float  # peak of this process, in GiB


def dry_run(config_file: str, overrides: Sequence[str] = (), num_processes: int = 1) -> str:
    """Describe a run and measure one of its steps.

    Everything is built as for training, but in this process alone; ``num_processes`` is the number
    of processes of the run on all machines.

    Raises:
        SDMatteError: A setting, the data or the weights are invalid, as in training.
    """
    config = load_config(config_file, overrides)
    prepare_evaluations(config)
    settings = config.train
    init_checkpoint = settings.init_checkpoint and hub.resolve_checkpoint(settings.init_checkpoint)
    device = choose_device(settings.device, "train.device")
    loader = build(config.dataloader.train)
    plan = make_plan(config, len(loader.dataset), num_processes)
    build(config.lr_multiplier, max_iter=plan.max_iter)  # validates its settings
    task, trainer, _ = build_trainer(config, loader, device)
    if init_checkpoint:
        weights.load_checkpoint(task.model, init_checkpoint)
    if settings.ema.enabled:  # the average takes memory
        trainer.register_hooks([WeightAverage(task.model, settings.ema.decay)])
    cost = time_step(trainer)
    rows = {
        "config": config_file,
        "model": _model(task),
        "data": _data(loader.dataset),
        "step": (
            f"batch {config.dataloader.train.batch_size} x accumulate {settings.accumulate} x "
            f"processes {num_processes} = {plan.samples_per_step} images of "
            f"{loader.dataset.size} x {loader.dataset.size}"
        ),
        "length": (
            f"{plan.max_iter:,} steps: {plan.epochs:.2f} epochs of {plan.num_samples:,} samples"
        ),
        "evaluations": _evaluations(config, plan),
        "checkpoints": f"every {plan.checkpoint_period:,} steps in {config.train.output_dir}",
        "device": f"{device}, measured in one process of {num_processes}",
        "time": (
            f"{cost.seconds:.3f} s per step, {cost.data_seconds:.3f} s of it waiting for data\n"
            f"{datetime.timedelta(seconds=round(cost.seconds * plan.max_iter))} for all steps "
            "(days, h:mm:ss), without evaluations"
        ),
        "memory": f"{cost.memory:.2f} GiB at peak per process",
    }
    indent = "\n" + " " * INDENT
    lines = [name.ljust(INDENT) + text.replace("\n", indent) for name, text in rows.items()]
    return "\n".join([*lines, "Dry run: nothing was written."])


def time_step(trainer: MatteTrainer) -> StepCost:
    """Run two steps with a learning rate of 0 and measure the second."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0  # without the schedule's warm-up, the weights could diverge
    seconds = 0.0
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(2):
            start = time.perf_counter()
            trainer.run_step()
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            seconds = time.perf_counter() - start
        data_seconds = trainer.storage.history("data_time").latest()
    return StepCost(seconds, data_seconds, peak_memory(trainer.device))


def _model(task: TrainingModel) -> str:
    model, teacher = task.model, task.teacher
    modules = {type(model).__name__: model, **dict(model.named_children())}
    if teacher is not None:
        modules[f"teacher {type(teacher).__name__}"] = teacher
    lines = []
    for name, module in modules.items():
        total = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        lines.append(f"{name}: {total:,} parameters, {trained:,} trainable")
    return "\n".join(lines)


def _data(dataset: MattingDataset) -> str:
    counts = Counter(sample.dataset for sample in dataset.samples)
    lines = [f"{name}: {number:,} samples" for name, number in counts.items()]
    if dataset.mix is not None:
        lines.append(dataset.mix.describe())
    return "\n".join(lines)


def _evaluations(config: DictConfig, plan: RunPlan) -> str:
    if not plan.evaluation_period:
        return "none"
    prompts = ", ".join(config.test.prompts)
    lines = [f"every {plan.evaluation_period:,} steps and after the last; prompts: {prompts}"]
    size = config.dataloader.test.dataset.size
    for name, loader in build_test_loaders(config):
        lines.append(f"{name}: {len(loader.dataset):,} images of {size} x {size}")
    return "\n".join(lines)
