"""Model, optimizer and trainer of a run, built from its config."""

import copy

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine.defaults import create_ddp_model
from omegaconf import DictConfig, ListConfig
from torch.utils.data import DataLoader

from SDMatte.engine.lora import Adapters
from SDMatte.engine.options import ParamsSettings, compile_model
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.errors import ConfigError
from SDMatte.evaluation.methods import build_model, check_sizes
from SDMatte.modeling import hub, weights
from SDMatte.runtime.config import build


def build_trainer(
    config: DictConfig, loader: DataLoader, device: torch.device
) -> tuple[TrainingModel, MatteTrainer, Adapters | None]:
    """Build the model with its losses, its trainer, and the LoRA adapters if enabled.

    Raises:
        SDMatteError: A setting is invalid, or the weights cannot be loaded.
    """
    settings, ddp = config.train, config.train.ddp
    torch.set_float32_matmul_precision(settings.float32_precision)
    task, adapters = build_training_model(config, device)
    model = create_ddp_model(
        task,
        device_ids=None,  # with ids, DDP would upload the prompt maps, see predict_latent
        broadcast_buffers=False,  # no buffer changes in training
        find_unused_parameters=ddp.find_unused_parameters,
        fp16_compression=ddp.fp16_compression,
    )
    trainer = MatteTrainer(
        model,
        loader,
        build_optimizer(config, task),
        prompts=task.model.settings.training_prompts,
        seed=settings.seed,
        accumulate=settings.accumulate,
        amp_dtype=settings.amp.dtype if settings.amp.enabled else None,
        clip_grad_norm=settings.clip_grad_norm,
        non_finite=settings.non_finite,
    )
    return task, trainer, adapters


def build_training_model(
    config: DictConfig, device: torch.device
) -> tuple[TrainingModel, Adapters | None]:
    """Build the model with its losses and, if configured, adapters and teacher."""
    settings, distillation = config.train, config.get("distillation")
    teacher_file = None
    if distillation is not None:  # fail before the slow part
        if not distillation.teacher_checkpoint:
            raise ConfigError(
                "distillation.teacher_checkpoint must be a file, a folder or a hub id; got "
                f"{distillation.teacher_checkpoint!r}."
            )
        teacher_file = hub.resolve_checkpoint(distillation.teacher_checkpoint)
    model = build_model(config.model)
    check_sizes(config, model, ["train", "test"] if settings.evaluations else ["train"])
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    adapters = None
    if settings.lora.enabled:
        adapters = Adapters(model, **{k: v for k, v in settings.lora.items() if k != "enabled"})
    teacher = criterion = None
    if distillation is not None:
        teacher = build_model(distillation.teacher)
        weights.load_checkpoint(teacher, teacher_file)
        criterion = build(distillation.criterion)
    task = TrainingModel(model, build(config.criterion), teacher, criterion).to(device)
    if settings.channels_last:
        task.to(memory_format=torch.channels_last)
    if settings.compile.enabled:
        for part in filter(None, (model, teacher)):
            compile_model(part, device)
    return task, adapters


def build_optimizer(config: DictConfig, task: TrainingModel) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable parameters.

    Raises:
        ConfigError: A setting is invalid.
    """
    node = copy.deepcopy(config.optimizer)
    if not isinstance(node.get("params"), DictConfig):
        raise ConfigError(f"optimizer.params must be a mapping; got {node.get('params')!r}.")
    ParamsSettings.of(node.params, "optimizer.params")
    node.params.model = task.model
    optimizer = build(node)
    for group in optimizer.param_groups:
        for key, name in (("lr", "learning rate"), ("weight_decay", "weight decay")):
            value = group[key]
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(
                    f"The {name} in optimizer.params must be at least 0; got {value!r}."
                )
        # Checkpoints must not contain types of omegaconf.
        group.update({k: tuple(v) for k, v in group.items() if isinstance(v, ListConfig)})
    return optimizer
