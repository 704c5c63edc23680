"""The training entry: from a config to a trained model."""

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
from SDMatte.engine.curves import draw_curves
from SDMatte.engine.hooks import BestWeights, Checkpoints, PictureStrips, Records, WeightAverage
from SDMatte.engine.lora import Adapters
from SDMatte.engine.output import (
    CONFIG,
    RECORDS,
    check_outputs,
    check_unused,
    open_output,
    output_errors,
    record_start,
)
from SDMatte.engine.plan import RunPlan, make_plan, prepare_evaluations
from SDMatte.engine.progress import Meter
from SDMatte.engine.trainer import MatteTrainer
from SDMatte.evaluation.run import run_test, test_loaders
from SDMatte.modeling import SDMatte, hub, weights
from SDMatte.runtime.config import build, load_config, resolve_device
from SDMatte.runtime.files import check_not_read

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
    if not resume:
        check_unused(output_dir)
    start_from = config.train.init_checkpoint or None
    if start_from is not None and not (resume and (output_dir / LAST).is_file()):
        start_from = hub.resolve_checkpoint(start_from)  # before anything that takes time
    device = resolve_device(config.train.device)
    loader = build(config.dataloader.train)
    folders = {
        path.rpartition("/")[0] for s in loader.dataset.samples for path in (s.image, s.alpha)
    }
    check_outputs(config, [loader.dataset.root / path for path in folders])
    if not resume:  # what is resumed may be described by its own record
        check_not_read([output_dir / CONFIG], [config_file])
    prepare_evaluations(config)
    plan = make_plan(config, len(loader.dataset), comm.get_world_size())
    max_iter = plan.max_iter
    with output_errors(output_dir):
        open_output(config)
        seed_all_rng(config.train.seed + comm.get_rank())
        logger.info("%d samples an epoch, %d steps in all.", plan.num_samples, max_iter)
        task, trainer, adapters = build_trainer(config, loader, device)
        checkpointer = add_hooks(trainer, task.model, adapters, config, plan)
        final = output_dir / hub.FINAL_CHECKPOINT

        start = 0
        resumed = resume and checkpointer.resume()
        if resumed:
            start = trainer.iter + 1
            if start >= max_iter and is_newer(final, Path(checkpointer.get_checkpoint_file())):
                logger.info("The run in %s is complete.", output_dir)
                return
        elif start_from is not None:
            weights.load_checkpoint(task.model, start_from)
        record_start(config, config_file, device, resumed)
        loader.sampler.start = -(-trainer.samples // comm.get_world_size())
        trainer.train(start, max(start, max_iter))
        if comm.is_main_process():
            draw_curves(output_dir / RECORDS, output_dir / "curves.png")
        checkpointer.save_weights(final.stem)  # as the last thing: it says that all is there
        if comm.is_main_process():
            used = output_dir / CONFIG  # with all overrides, unlike the config file
            logger.info("Done. To test: bash script/test.sh %s %s", used, final)


def is_newer(path: Path, than: Path) -> bool:
    """Whether a file is there, and was written after another one."""
    return path.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns


def add_hooks(
    trainer: MatteTrainer,
    model: SDMatte,
    adapters: Adapters | None,
    config: DictConfig,
    plan: RunPlan,
) -> MatteCheckpointer:
    """Registers what happens besides the steps: schedule, checkpoints, evaluations, records.

    Their order matters: a checkpoint holds what stands before it, see `Checkpoints`.

    Returns:
        What writes and reads the checkpoints.
    """
    settings, max_iter = config.train, plan.max_iter
    average = WeightAverage(model, settings.ema.decay) if settings.ema.enabled else None
    in_use = nullcontext if average is None else average.applied
    states = {} if adapters is None else {"adapters": adapters}  # to be read before the trainer's
    if adapters is not None:
        adapters.weights_in_use = in_use
    checkpointer = MatteCheckpointer(
        model,
        settings.output_dir,
        save_to_disk=comm.is_main_process(),
        weights_in_use=in_use,
        **states,
        trainer=trainer,
    )
    schedule = LRMultiplier(
        trainer.optimizer, build(config.lr_multiplier, max_iter=max_iter), max_iter
    )
    evaluation_period = plan.evaluation_period

    def evaluate():
        with in_use():
            return run_test(config, model)

    def first_test_batches():  # of one picture: the evaluation may not have room for more either
        _, loader = next(iter(test_loaders(config)))
        dataset = loader.dataset
        count = min(settings.num_images, len(dataset))
        return [loader.collate_fn([dataset[index]]) for index in range(count)]

    registered = [
        hooks.IterationTimer(),
        Meter(plan, trainer.device, settings.log_period),
        hooks.LRScheduler(scheduler=schedule),
        average,
        Checkpoints(checkpointer, plan.checkpoint_period, evaluation_period, settings.max_to_keep),
    ]
    if evaluation_period:
        registered.append(hooks.EvalHook(evaluation_period, evaluate))
        if settings.best_metric:
            registered.append(BestWeights(checkpointer, settings.best_metric))
        if settings.num_images and comm.is_main_process():
            prompt = config.test.prompts[0]
            registered.append(
                PictureStrips(model, first_test_batches, prompt, evaluation_period, in_use)
            )
    registered.append(Records(settings.output_dir, settings.log_period))
    trainer.register_hooks(registered)
    return checkpointer
