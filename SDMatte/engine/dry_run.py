"""``train --dry-run``: what a training would do, and what one step costs; writes no files."""

import datetime
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import SDMatte.compat  # noqa: F401

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from SDMatte.data import MattingDataset
from SDMatte.engine.builders import build_trainer
from SDMatte.engine.hooks import WeightAverage
from SDMatte.engine.lora import Adapters
from SDMatte.engine.schedule import RunPlan, make_plan, prepare_evaluations, warmup_steps
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.evaluation.plan import build_test_loaders
from SDMatte.modeling import hub, weights
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.devices import choose_device, peak_memory

INDENT = 14


class StepCost(NamedTuple):
    """Cost of one step after a warm-up step."""

    seconds: float
    data_seconds: float  # part of it spent waiting for the batch
    memory: float  # peak of this process, in GiB


def dry_run(config_file: str, overrides: Sequence[str] = (), num_processes: int = 1) -> str:
    """Describe a training and measure one of its steps.

    Everything is built as for the training, in this process alone.

    Args:
        config_file: A LazyConfig file.
        overrides: ``key=value`` settings.
        num_processes: Processes of the training on all machines.

    Raises:
        SDMatteError: As in the training: a setting, the data or the weights cannot be used.
    """
    config = load_config(config_file, overrides)
    prepare_evaluations(config)
    settings = config.train
    init_checkpoint = settings.init_checkpoint and hub.resolve_checkpoint(settings.init_checkpoint)
    device = choose_device(settings.device, "train.device")
    loader = build(config.dataloader.train)
    plan = make_plan(config, len(loader.dataset), num_processes)
    build(config.lr_multiplier, max_iter=plan.max_iter)  # checks its settings
    task, trainer, adapters = build_trainer(config, loader, device)
    if init_checkpoint:
        weights.load_checkpoint(task.model, init_checkpoint)
    average = WeightAverage(task.model, settings.ema.decay) if settings.ema.enabled else None
    cost = time_step(trainer)
    size = checkpoint_size(task, trainer, average, adapters)
    rows = {
        "config": config_file,
        "model": _model(task),
        "starts from": _start(config),
        "data": _data(loader.dataset),
        "step": _step(config, plan),
        "length": _length(config, plan),
        "evaluations": _evaluations(config, plan),
        "checkpoints": _checkpoints(config, plan, size),
        "device": _device(device, num_processes),
        "time": _time(plan, cost),
        "memory": f"{cost.memory:.2f} GiB at peak per process",
    }
    indent = "\n" + " " * INDENT
    lines = [name.ljust(INDENT) + text.replace("\n", indent) for name, text in rows.items()]
    return "\n".join([*lines, "Dry run: nothing was written."])


def time_step(trainer: MatteTrainer) -> StepCost:
    """Run two steps with a learning rate of 0 and measure the second."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0  # without the warm-up of the schedule the weights could diverge
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


def checkpoint_size(
    task: TrainingModel,
    trainer: MatteTrainer,
    average: WeightAverage | None = None,
    adapters: Adapters | None = None,
) -> float:
    """Return the size of a checkpoint's tensors in GiB; at least one step must have run."""
    state = trainer.optimizer.state_dict()["state"].values()
    tensors = [v for entry in state for v in entry.values() if isinstance(v, torch.Tensor)]
    tensors += task.model.state_dict().values()
    tensors += average.state_dict()["trained"] if average is not None else []
    tensors += adapters.state_dict().values() if adapters is not None else []
    return sum(tensor.nbytes for tensor in tensors) / 2**30


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


def _start(config: DictConfig) -> str:
    settings, loaded = config.train, config.model.get("load_weight", True)
    folder = config.model.pretrained_model_name_or_path
    if settings.init_checkpoint:
        start = settings.init_checkpoint
    elif loaded is True:
        start = folder
    elif loaded:
        start = f"{folder} ({', '.join(loaded)}), the rest random"
    else:
        start = "random weights"
    if any(Path(settings.output_dir).glob("model_*.pth")):
        start += f"\n{settings.output_dir} holds a run, which --resume would continue"
    return start


def _data(dataset: MattingDataset) -> str:
    counts = Counter(sample.dataset for sample in dataset.samples)
    lines = [f"{name}: {number:,} samples" for name, number in counts.items()]
    if dataset.mix is not None:
        lines.append(dataset.mix.describe())
    return "\n".join(lines)


def _step(config: DictConfig, plan: RunPlan) -> str:
    settings, size = config.train, config.dataloader.train.dataset.size
    options = [f"in {settings.amp.dtype}"] if settings.amp.enabled else []
    switches = ("gradient_checkpointing", "channels_last")
    options += [name.replace("_", " ") for name in switches if settings[name]]
    options += [name for name in ("compile", "lora", "ema") if settings[name].enabled]
    images = (
        f"batch {plan.batch_size} x accumulate {plan.accumulate} x processes "
        f"{plan.num_processes} = {plan.samples_per_step} images of {size} x {size}"
    )
    return ", ".join([images, *options])


def _length(config: DictConfig, plan: RunPlan) -> str:
    warmup = warmup_steps(config.lr_multiplier.get("warmup_iter", 0), plan.max_iter)
    return (
        f"{plan.max_iter:,} steps: {plan.epochs:.2f} epochs of {plan.num_samples:,} samples\n"
        f"learning rate {config.optimizer.lr:g} after {warmup} steps of warm-up\n"
        f"a log line every {config.train.log_period} steps"
    )


def _evaluations(config: DictConfig, plan: RunPlan) -> str:
    if not plan.evaluation_period:
        return "none"
    prompts = ", ".join(config.test.prompts)
    lines = [f"every {plan.evaluation_period:,} steps and after the last; prompts: {prompts}"]
    size = config.dataloader.test.dataset.size
    for name, loader in build_test_loaders(config):
        lines.append(f"{name}: {len(loader.dataset):,} images of {size} x {size}")
    return "\n".join(lines)


def _checkpoints(config: DictConfig, plan: RunPlan, size: float) -> str:
    kept = config.train.max_to_keep
    folder = Path(config.train.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free / 2**30
    return (
        f"every {plan.checkpoint_period:,} steps and before evaluations, {size:.2f} GiB "
        f"each; {f'the last {kept} are kept' if kept else 'all are kept'}\n"
        f"in {config.train.output_dir} ({free:.1f} GiB free)"
    )


def _device(device: torch.device, num_processes: int) -> str:
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    others = "" if num_processes == 1 else f"; measured in one process of {num_processes}"
    return f"{device}, {name}{others}"


def _time(plan: RunPlan, cost: StepCost) -> str:
    total = datetime.timedelta(seconds=round(cost.seconds * plan.max_iter))
    return (
        f"{cost.seconds:.3f} s per step, of which {cost.data_seconds:.3f} s wait for data\n"
        f"{total} for all steps (days, h:mm:ss), without evaluations"
    )
