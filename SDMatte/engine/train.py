"""The training entry: from a config to a trained model."""

import copy
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import default_setup, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, ListConfig

from SDMatte.engine.checkpoint import MatteCheckpointer
from SDMatte.engine.config import build, derive_max_iter, load_config, resolve_device
from SDMatte.engine.hooks import PictureStrips
from SDMatte.engine.report import draw_curves
from SDMatte.engine.testing import run_test, test_loaders
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.errors import ConfigError
from SDMatte.modeling import weights

logger = logging.getLogger(__name__)


def train(config_file: str, overrides: Sequence[str] = (), resume: bool = False) -> None:
    """Trains what a config describes; called in every process of the run.

    Args:
        config_file: A LazyConfig file.
        overrides: ``key=value`` settings.
        resume: Go on from the output folder's last checkpoint, if there is one.

    Raises:
        SDMatteError: A setting, the data or the weights cannot be used.
    """
    config = load_config(config_file, overrides)
    output_dir = Path(config.train.output_dir)
    if not resume and any(output_dir.glob("model_*.pth")):
        raise ConfigError(
            f"{output_dir} holds a run: go on with --resume, or name another train.output_dir."
        )
    device = resolve_device(config.train.device)
    loader = build(config.dataloader.train)
    max_iter = derive_max_iter(config, len(loader.dataset), comm.get_world_size())
    set_up_run(config, config_file)
    logger.info("%d samples an epoch, %d steps in all.", len(loader.dataset), max_iter)

    task = build_training_model(config, device)
    optimizer = build_optimizer(config, task)
    prompts = [task.model.aux_input] if task.model.aux_input else task.model.aux_input_list
    trainer = MatteTrainer(
        parallelize(task, config, device),
        loader,
        optimizer,
        prompts=prompts,
        seed=config.train.seed,
        accumulate=config.train.accumulate,
        amp_dtype=config.train.amp.dtype if config.train.amp.enabled else None,
        clip_grad_norm=config.train.clip_grad_norm,
    )
    checkpointer = MatteCheckpointer(
        task.model, str(output_dir), save_to_disk=comm.is_main_process(), trainer=trainer
    )
    add_hooks(trainer, checkpointer, config, max_iter)

    start = 0
    if resume and checkpointer.resume():
        start = trainer.iter + 1
    elif config.train.init_checkpoint:
        weights.load_checkpoint(task.model, config.train.init_checkpoint)
    loader.sampler.start = start * config.train.accumulate * loader.batch_size
    if start >= max_iter:
        logger.info("The run in %s is complete.", output_dir)
        return
    trainer.train(start, max_iter)
    if comm.is_main_process():
        draw_curves(output_dir / "metrics.json", output_dir / "curves.png")
        logger.info(
            "Done. To test: bash script/test.sh %s %s", config_file, output_dir / "model_final.pth"
        )


def set_up_run(config: DictConfig, config_file: str) -> None:
    """Makes the output folder with the run's log, config and environment; seeds torch."""
    setup_logger(config.train.output_dir, comm.get_rank(), name="SDMatte")
    # detectron2 logs the config file and packages, and writes config.yaml.
    default_setup(config, SimpleNamespace(config_file=config_file, eval_only=False))


def build_training_model(config: DictConfig, device: torch.device) -> TrainingModel:
    """Builds the model with its losses, and the teacher if there is one."""
    model = build(config.model)
    if config.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    teacher = distillation = None
    if config.get("distillation") is not None:
        teacher = build(config.distillation.teacher)
        weights.load_checkpoint(teacher, config.distillation.teacher_checkpoint)
        distillation = build(config.distillation.criterion)
    return TrainingModel(model, build(config.criterion), teacher, distillation).to(device)


def build_optimizer(config: DictConfig, task: TrainingModel) -> torch.optim.Optimizer:
    """Builds the optimizer over the parameters that are trained."""
    node = copy.deepcopy(config.optimizer)
    node.params.model = task.model
    optimizer = build(node)
    for group in optimizer.param_groups:  # its state must hold no types of omegaconf
        group.update({k: tuple(v) for k, v in group.items() if isinstance(v, ListConfig)})
    return optimizer


def parallelize(task: TrainingModel, config: DictConfig, device: torch.device) -> torch.nn.Module:
    """Wraps the model for several processes, where there are several."""
    settings = dict(config.train.ddp)
    if device.type == "cpu":
        settings["device_ids"] = None
    return create_ddp_model(task, **settings)


def add_hooks(
    trainer: MatteTrainer, checkpointer: MatteCheckpointer, config: DictConfig, max_iter: int
) -> None:
    """Registers what happens besides the steps: schedule, checkpoints, evaluations, records."""
    settings, model = config.train, checkpointer.model
    schedule = LRMultiplier(
        trainer.optimizer, build(config.lr_multiplier, max_iter=max_iter), max_iter
    )
    evaluation_period = max(1, max_iter // settings.evaluations) if settings.evaluations else 0

    def evaluate():
        return run_test(config, model)

    def first_test_batch():
        _, loader = next(iter(test_loaders(config)))
        dataset = loader.dataset
        samples = itertools.islice(range(len(dataset)), settings.num_pictures)
        return loader.collate_fn([dataset[index] for index in samples])

    registered = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=schedule)]
    if evaluation_period:
        registered.append(hooks.EvalHook(evaluation_period, evaluate))
    if comm.is_main_process():
        period = max(1, max_iter // settings.checkpoints)
        registered.append(
            hooks.PeriodicCheckpointer(
                checkpointer, period, max_iter, max_to_keep=settings.max_to_keep
            )
        )
        if settings.num_pictures and evaluation_period:
            prompt = config.test.prompts[0]
            registered.append(PictureStrips(model, first_test_batch, prompt, evaluation_period))
        writers = default_writers(settings.output_dir, max_iter)
        registered.append(hooks.PeriodicWriter(writers, period=settings.log_period))
    trainer.register_hooks(registered)
