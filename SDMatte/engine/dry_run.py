"""What a training would do: model, data, lengths, and the time and memory of a step; no files."""

import datetime
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import SDMatte.compat  # noqa: F401

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from SDMatte.data import MattingDataset
from SDMatte.engine.builders import build_trainer
from SDMatte.engine.hooks import WeightAverage
from SDMatte.engine.lora import Adapters
from SDMatte.engine.plan import RunPlan, make_plan, prepare_evaluations
from SDMatte.engine.progress import peak_memory
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.evaluation.run import test_loaders
from SDMatte.modeling import hub, weights
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.devices import choose_device

INDENT = 14


@dataclass(frozen=True)
class StepCost:
    """What a step took, after a first one that warmed up.

    Attributes:
        seconds: All of it.
        data_seconds: Waiting for the batch, of that.
        memory: Peak of this process, in GiB.
    """

    seconds: float
    data_seconds: float
    memory: float


def dry_run(config_file: str, overrides: Sequence[str] = (), num_processes: int = 1) -> str:
    """Says what a training would do, and runs two of its steps to see what they cost.

    All is built as for the training, in this process alone, and nothing is written.

    Args:
        config_file: A LazyConfig file.
        overrides: ``key=value`` settings.
        num_processes: Of the training, over all machines.

    Returns:
        Lines to print.

    Raises:
        SDMatteError: As the training would: a setting, the data or the weights cannot be used.
    """
    config = load_config(config_file, overrides)
    prepare_evaluations(config)
    start_from = config.train.init_checkpoint and hub.resolve_checkpoint(
        config.train.init_checkpoint
    )
    device = choose_device(config.train.device, "train.device")
    loader = build(config.dataloader.train)
    plan = make_plan(config, len(loader.dataset), num_processes)
    task, trainer, adapters = build_trainer(config, loader, device)
    if start_from:
        weights.load_checkpoint(task.model, start_from)
    ema = config.train.ema
    average = WeightAverage(task.model, ema.decay) if ema.enabled else None
    cost = time_step(trainer)
    size = checkpoint_size(task, trainer, average, adapters)
    rows = [
        ("config", config_file),
        ("model", describe_model(task)),
        ("starts from", describe_start(config)),
        ("data", describe_data(loader.dataset)),
        ("step", describe_step(config, plan)),
        ("length", describe_length(config, plan)),
        ("evaluations", describe_evaluations(config, plan)),
        ("checkpoints", describe_checkpoints(config, plan, size)),
        ("device", describe_device(device, num_processes)),
        ("time", describe_time(plan, cost)),
        ("memory", f"{cost.memory:.2f} GiB at most, of a process"),
    ]
    indent = "\n" + " " * INDENT
    lines = [name.ljust(INDENT) + text.replace("\n", indent) for name, text in rows]
    return "\n".join([*lines, "A dry run: nothing was written."])


def time_step(trainer: MatteTrainer) -> StepCost:
    """Runs two steps, of which the first warms up, with a learning rate of 0."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0  # the schedule is not here; without it the weights might go astray
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
    """Counts what the tensors of a checkpoint to go on from take, in GiB; after a step."""
    state = trainer.optimizer.state_dict()["state"].values()
    tensors = [v for entry in state for v in entry.values() if isinstance(v, torch.Tensor)]
    tensors += task.model.state_dict().values()
    tensors += average.state_dict()["trained"] if average is not None else []
    tensors += adapters.state_dict().values() if adapters is not None else []
    return sum(tensor.nbytes for tensor in tensors) / 2**30


def describe_model(task: TrainingModel) -> str:
    """Counts the model's parameters, and those that are trained, part by part."""
    model = task.model
    lines = [f"{type(model).__name__}, {_count(model.parameters())}"]
    lines += [f"{name}: {_count(part.parameters())}" for name, part in model.named_children()]
    if task.teacher is not None:
        teacher = task.teacher
        lines.append(f"teacher {type(teacher).__name__}: {_count(teacher.parameters())}")
    return "\n".join(lines)


def _count(parameters: Iterable[nn.Parameter]) -> str:
    parameters = list(parameters)
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return f"{total:,} parameters, {trained:,} of them trained"


def describe_start(config: DictConfig) -> str:
    """Says which weights the training begins with."""
    settings, loaded = config.train, config.model.get("load_weight", True)
    folder = config.model.pretrained_model_name_or_path
    if settings.init_checkpoint:
        start = settings.init_checkpoint
    elif loaded is True:
        start = folder
    else:
        start = f"{folder} ({', '.join(loaded)})" if loaded else ""
        start = f"{start}, the rest at random" if start else "random weights"
    if any(Path(settings.output_dir).glob("model_*.pth")):
        start += f"\n{settings.output_dir} holds a run: --resume would go on with that"
    return start


def describe_data(dataset: MattingDataset) -> str:
    """Counts the training samples, set by set."""
    counts = Counter(sample.dataset for sample in dataset.samples)
    lines = [f"{name}: {number:,} samples" for name, number in counts.items()]
    if dataset.mix is not None:
        lines.append(dataset.mix.describe())
    return "\n".join(lines)


def describe_step(config: DictConfig, plan: RunPlan) -> str:
    """Says what goes into a step, and how it is computed."""
    settings, size = config.train, config.dataloader.train.dataset.size
    options = [f"in {settings.amp.dtype}"] if settings.amp.enabled else []
    switches = ("gradient_checkpointing", "channels_last")
    options += [name.replace("_", " ") for name in switches if settings[name]]
    options += [name for name in ("compile", "lora", "ema") if settings[name].enabled]
    return (
        f"batch {plan.batch_size} x accumulate {plan.accumulate} x processes "
        f"{plan.num_processes} = {plan.samples_per_step} pictures of {size} x {size}"
        f"{', ' if options else ''}{', '.join(options)}"
    )


def describe_length(config: DictConfig, plan: RunPlan) -> str:
    """Says how many steps there are, and how the learning rate goes."""
    return (
        f"{plan.max_iter:,} steps: {plan.epochs:.2f} epochs of {plan.num_samples:,} samples\n"
        f"learning rate {config.optimizer.lr:g}, reached after {plan.warmup_iter} steps\n"
        f"a line of log every {config.train.log_period} steps"
    )


def describe_evaluations(config: DictConfig, plan: RunPlan) -> str:
    """Says when the model is tested, and on what."""
    if not plan.evaluation_period:
        return "none"
    prompts = ", ".join(config.test.prompts)
    lines = [f"every {plan.evaluation_period:,} steps and after the last, with {prompts}"]
    size = config.dataloader.test.dataset.size
    for name, loader in test_loaders(config):
        lines.append(f"{name}: {len(loader.dataset):,} pictures of {size} x {size}")
    return "\n".join(lines)


def describe_checkpoints(config: DictConfig, plan: RunPlan, size: float) -> str:
    """Says when checkpoints, of so many GiB each, are written, and whether there is room."""
    kept = config.train.max_to_keep
    folder = Path(config.train.output_dir).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free / 2**30
    return (
        f"every {plan.checkpoint_period:,} steps and before evaluations, {size:.2f} GiB "
        f"each, {f'the last {kept} are' if kept else 'all are'} kept\n"
        f"in {config.train.output_dir}, where {free:.1f} GiB are free"
    )


def describe_device(device: torch.device, num_processes: int) -> str:
    """Says what computes."""
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    others = "" if num_processes == 1 else f"; measured in one process, of {num_processes}"
    return f"{device}, {name}{others}"


def describe_time(plan: RunPlan, cost: StepCost) -> str:
    """Says what one step took, and what all would take."""
    total = datetime.timedelta(seconds=round(cost.seconds * plan.max_iter))
    return (
        f"{cost.seconds:.3f} s for one step, {cost.data_seconds:.3f} s of it waiting for data\n"
        f"{total} for all steps (days, h:mm:ss); evaluations come on top"
    )
