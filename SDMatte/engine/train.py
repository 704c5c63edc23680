"""The entry point of training."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import SDMatte.compat  # noqa: F401

from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig

from SDMatte.engine.builders import build_trainer
from SDMatte.engine.checkpoint import LAST, MatteCheckpointer
from SDMatte.engine.hooks import BestWeights, Checkpoints, ImageStrips, WeightAverage
from SDMatte.engine.lora import Adapters
from SDMatte.engine.output import (
    CONFIG,
    check_outputs,
    check_unused,
    open_output,
    output_errors,
    record_start,
)
from SDMatte.engine.records import RECORDS, Meter, Records, draw_curves
from SDMatte.engine.schedule import RunPlan, make_plan, prepare_evaluations
from SDMatte.engine.trainer import MatteTrainer
from SDMatte.evaluation.plan import build_test_loaders
from SDMatte.evaluation.run import run_test
from SDMatte.modeling import SDMatte, hub, weights
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.devices import choose_device
from SDMatte.runtime.files import check_not_read
from SDMatte.runtime.ranks import was_restarted

logger = logging.getLogger(__name__)


def train(config_file: str, overrides: Sequence[str] = (), resume: bool = False) -> None:
    """Train the model of a config; call this in every process of the run.

    Args:
        config_file: A LazyConfig file.
        overrides: ``key=value`` settings.
        resume: Whether to resume from the last checkpoint in the output folder, if there is one.
            A run that the launcher restarted always resumes.

    Raises:
        SDMatteError: A setting is invalid, or the data or the weights cannot be used.
    """
    resume = resume or was_restarted()
    # Run all checks that need no model before writing the first file.
    config = load_config(config_file, overrides)
    output_dir = Path(config.train.output_dir)
    final = output_dir / hub.FINAL_CHECKPOINT
    if not resume:
        check_unused(output_dir)
        check_not_read([output_dir / CONFIG], [config_file])  # a resumed run may read its own
    init_checkpoint = config.train.init_checkpoint or None
    if init_checkpoint is not None and not (resume and (output_dir / LAST).is_file()):
        init_checkpoint = hub.resolve_checkpoint(init_checkpoint)
    device = choose_device(config.train.device, "train.device")
    loader = build(config.dataloader.train)
    check_outputs(config, loader.dataset)
    prepare_evaluations(config)
    plan = make_plan(config, len(loader.dataset), comm.get_world_size())

    with output_errors(output_dir), open_output(config):
        seed_all_rng((config.train.seed + comm.get_rank()) % 2**32)
        logger.info("%d samples in an epoch, %d steps.", plan.num_samples, plan.max_iter)
        task, trainer, adapters = build_trainer(config, loader, device)
        checkpointer = register_hooks(trainer, task.model, adapters, config, plan)

        start = 0
        resumed = resume and checkpointer.resume()
        if resumed:
            start = trainer.iter + 1
            if start >= plan.max_iter and checkpointer.is_complete():
                logger.info("The run in %s is already complete.", output_dir)
                return
        elif init_checkpoint is not None:
            weights.load_checkpoint(task.model, init_checkpoint)
        record_start(config, config_file, device, resumed)
        loader.sampler.start = -(-trainer.samples // comm.get_world_size())

        trainer.train(start, max(start, plan.max_iter))

        if comm.is_main_process():
            draw_curves(output_dir / RECORDS, output_dir / "curves.png")
        checkpointer.save_weights(final.stem)  # last: this file marks the run as complete
        if comm.is_main_process():
            used = output_dir / CONFIG  # includes the overrides, unlike config_file
            logger.info("Done. To test: bash script/test.sh %s %s", used, final)


def register_hooks(
    trainer: MatteTrainer,
    model: SDMatte,
    adapters: Adapters | None,
    config: DictConfig,
    plan: RunPlan,
) -> MatteCheckpointer:
    """Register schedule, moving average, checkpoints, evaluations and records.

    The order matters: a checkpoint holds the state left by the hooks before it, see `Checkpoints`.

    Returns:
        The checkpointer of the run.
    """
    settings, period = config.train, plan.evaluation_period
    average = WeightAverage(model, settings.ema.decay) if settings.ema.enabled else None
    weights_in_use = nullcontext if average is None else average.applied
    states = {}
    if adapters is not None:
        adapters.weights_in_use = weights_in_use
        states["adapters"] = adapters  # loaded before the trainer's state
    checkpointer = MatteCheckpointer(
        model,
        settings.output_dir,
        save_to_disk=comm.is_main_process(),
        weights_in_use=weights_in_use,
        **states,
        trainer=trainer,
    )
    schedule = build(config.lr_multiplier, max_iter=plan.max_iter)

    def evaluate():
        with weights_in_use():
            return run_test(config, model)

    def load_shown_batches():  # one image each: larger batches might not fit into memory
        _, loader = next(iter(build_test_loaders(config)))
        indices = range(min(settings.num_images, len(loader.dataset)))
        return [loader.collate_fn([loader.dataset[index]]) for index in indices]

    registered = [
        hooks.IterationTimer(),
        Meter(plan, trainer.device, settings.log_period),
        hooks.LRScheduler(scheduler=LRMultiplier(trainer.optimizer, schedule, plan.max_iter)),
        average,
        Checkpoints(checkpointer, plan.checkpoint_period, period, settings.max_to_keep),
    ]
    if period:
        registered.append(hooks.EvalHook(period, evaluate))
        if settings.best_metric:
            registered.append(BestWeights(checkpointer, settings.best_metric))
        if settings.num_images and comm.is_main_process():
            prompt = config.test.prompts[0]
            registered.append(
                ImageStrips(model, load_shown_batches, prompt, period, weights_in_use)
            )
    registered.append(Records(settings.output_dir, settings.log_period))
    trainer.register_hooks(registered)
    return checkpointer
