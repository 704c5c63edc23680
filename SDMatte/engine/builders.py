"""What a run is made of: model, losses, optimizer and trainer, built from a config."""

import copy

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine.defaults import create_ddp_model
from omegaconf import DictConfig, ListConfig
from torch.utils.data import DataLoader

from SDMatte.engine.lora import Adapters
from SDMatte.engine.options import compile_model
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.errors import ConfigError
from SDMatte.modeling import SDMatte, hub, weights
from SDMatte.runtime.config import build
from SDMatte.runtime.settings import number


def build_trainer(
    config: DictConfig, loader: DataLoader, device: torch.device
) -> tuple[TrainingModel, MatteTrainer, Adapters | None]:
    """Builds the model with its losses, the trainer that steps it, and LoRA's adapters.

    Args:
        config: The whole config.
        loader: Endless training batches.
        device: Where to train.

    Raises:
        SDMatteError: A setting or the weights cannot be used.
    """
    torch.set_float32_matmul_precision(config.train.float32_precision)
    task, adapters = build_training_model(config, device)
    optimizer = build_optimizer(config, task)
    prompts = [task.model.aux_input] if task.model.aux_input else task.model.aux_input_list
    data = config.dataloader.train
    trainer = MatteTrainer(
        parallelize(task, config, device),
        loader,
        optimizer,
        prompts=prompts,
        seed=config.train.seed,
        accumulate=config.train.accumulate,
        amp_dtype=config.train.amp.dtype if config.train.amp.enabled else None,
        clip_grad_norm=config.train.clip_grad_norm,
        non_finite=config.train.non_finite,
        patience=0 if data.num_workers else data.get("timeout", 0),
    )
    return task, trainer, adapters


def build_training_model(
    config: DictConfig, device: torch.device
) -> tuple[TrainingModel, Adapters | None]:
    """Builds the model with its losses, its adapters and its teacher, where there are any."""
    settings = config.train
    teacher_file = None
    if config.get("distillation") is not None:  # before anything that takes time
        teacher_file = hub.resolve_checkpoint(config.distillation.teacher_checkpoint)
    model = build(config.model)
    check_sizes(config, model)
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    adapters = None
    if settings.lora.enabled:
        adapters = Adapters(model, **{k: v for k, v in settings.lora.items() if k != "enabled"})
    teacher = distillation = None
    if teacher_file is not None:
        teacher = build(config.distillation.teacher)
        weights.load_checkpoint(teacher, teacher_file)
        distillation = build(config.distillation.criterion)
    task = TrainingModel(model, build(config.criterion), teacher, distillation).to(device)
    if settings.channels_last:
        task.to(memory_format=torch.channels_last)
    if settings.compile.enabled:
        for part in filter(None, (model, teacher)):
            compile_model(part, settings.compile.backend, device)
    return task, adapters


def check_sizes(config: DictConfig, model: SDMatte) -> None:
    """Sees that a model takes pictures of the config's sizes.

    Raises:
        ConfigError: One is no multiple of what it must be.
    """
    parts = ("train", "test") if config.train.evaluations else ("train",)
    for part in parts:
        dataset = config.dataloader[part].dataset
        squashed = part == "train" or not dataset.settings.get("keep_aspect")
        if squashed and dataset.size % model.size_divisor:
            raise ConfigError(
                f"dataloader.{part}.dataset.size is {dataset.size}; this model takes multiples of "
                f"{model.size_divisor}."
            )


def build_optimizer(config: DictConfig, task: TrainingModel) -> torch.optim.Optimizer:
    """Builds the optimizer over the parameters that are trained.

    Raises:
        ConfigError: A setting of it cannot be used.
    """
    node = copy.deepcopy(config.optimizer)
    if not isinstance(node.get("params"), DictConfig):
        raise ConfigError(f"optimizer.params is a part of the config; got {node.get('params')!r}.")
    node.params.model = task.model
    optimizer = build(node)
    decay = number(0, with_low=True)
    for group in optimizer.param_groups:
        decay.check("The weight decay in optimizer.params", group["weight_decay"])
        # Its state must hold no types of omegaconf.
        group.update({k: tuple(v) for k, v in group.items() if isinstance(v, ListConfig)})
    return optimizer


def parallelize(task: TrainingModel, config: DictConfig, device: torch.device) -> torch.nn.Module:
    """Wraps the model for several processes, where there are several."""
    settings = {name: value for name, value in config.train.ddp.items() if name != "timeout"}
    settings["device_ids"] = [device.index] if device.type == "cuda" else None
    return create_ddp_model(task, **settings)
