"""The training step: losses that are not finite, accumulation, and failures."""

import logging

import pytest
import torch
from models import make_batch, tiny_model
from runs import CONFIG, Run, finish, hang, kill_workers, make_nan, records, settings
from tiny_runs import TinyRun

from SDMatte.cli.main import main
from SDMatte.engine import trainer as trainer_module
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.errors import DataError
from SDMatte.modeling import weights
from SDMatte.modeling.losses import MattingCriterion

LOSSES = ["unknown_l1_loss", "known_l1_loss"]


def nan_batch(name):
    batch = make_batch(size=1)
    return {**batch, "image": batch["image"] * torch.nan, "image_name": [name]}


def make_trainer(batches, losses=LOSSES, seed=0, **options):
    task = TrainingModel(tiny_model(seed), MattingCriterion(losses, size=64))
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    return MatteTrainer(task, batches, optimizer, prompts=["bbox_mask"], **options)


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one, other):
    """Compare bit for bit, because the same steps are repeated."""
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_a_non_finite_loss_stops_the_run_before_the_step():
    trainer = make_trainer([make_batch(), nan_batch("bad.png")])
    with pytest.raises(DataError, match=r"loss is not finite at step 1 .* Images: bad.png;"):
        trainer.train(0, 2)
    reference = make_trainer([make_batch()])
    reference.train(0, 1)
    assert same(weights_of(trainer), weights_of(reference))


def test_steps_with_a_non_finite_loss_can_be_skipped(caplog):
    caplog.set_level(logging.WARNING)
    trainer = make_trainer(
        [make_batch(), nan_batch("bad.png"), make_batch(seed=1)], non_finite="skip"
    )
    trainer.train(0, 3)
    assert "bad.png" in caplog.text and "The step is skipped." in caplog.text
    reference = make_trainer([make_batch(), make_batch(seed=1)])
    reference.train(0, 2)
    assert same(weights_of(trainer), weights_of(reference))
    assert trainer.samples == 2 + 1 + 2 and trainer.skipped == 0


def test_only_images_of_the_non_finite_batch_are_named():
    batches = [make_batch(size=1), nan_batch("bad.png")]
    batches[0]["image_name"] = ["good.png"]
    with pytest.raises(DataError, match="Images: bad.png; prompt: bbox_mask"):
        make_trainer(batches, accumulate=2).train(0, 1)


def test_skipped_steps_are_limited(monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_SKIPPED", 2)
    trainer = make_trainer([nan_batch("bad.png")] * 3, non_finite="skip")
    with pytest.raises(DataError, match="2 steps in a row were skipped.*at step 2"):
        trainer.train(0, 3)


def test_a_non_finite_gradient_stops_the_run():
    trainer = make_trainer([make_batch(), make_batch()])
    parameter = trainer.parameters[0]
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    before = weights_of(trainer)
    with pytest.raises(DataError, match="gradient is not finite at step 0, but the loss is"):
        trainer.train(0, 1)
    assert same(weights_of(trainer), before)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.seed=null", "train.seed must be an integer; got None"),
        ("dataloader.test.dataset.names=[]", "dataloader.test.dataset.names is empty"),
        (
            "train.best_metric=AIM-500/bx/SAD",
            "best_metric must be one of AIM-500/box/MSE, AIM-500/box",
        ),
        ("dataloader.test.dataset.names=[AIM-50]", "AIM-500"),
        ("dataloader.train.rank=3", "rank must be from 0 to world_size - 1, or both must be null"),
        ("dataloader.train.world_size=0", "or both must be null; got None and 0."),
    ],
)
def test_invalid_settings_are_refused_before_files_are_written(
    setting, message, sample_root, tmp_path, capsys
):
    assert main(["train", CONFIG, *settings(sample_root, tmp_path / "run", setting)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.lr=fast", "optimizer.lr must be a number; got 'fast'"),
        ("dataloader.train.dataset.size=72", "train.dataset.size must be a multiple of"),
        ("dataloader.test.dataset.size=72", "test.dataset.size must be a multiple of"),
        ("optimizer.params.weight_decay_norm=x", "decay in optimizer.params must be at least 0"),
        ("optimizer.params=null", "optimizer.params must be a mapping; got None"),
        ("optimizer.params.overrides=3", "optimizer.params.overrides must be a mapping; got 3"),
        ("optimizer.params.overrides={bias: {lr: -1}}", "learning rate in optimizer.params must"),
        ("optimizer.params.base_lr=abc", "optimizer.params.base_lr must be a number; got 'abc'"),
        ("optimizer.params.bias_lr_factor=-1", "bias_lr_factor must be at least 0; got -1"),
        ("optimizer.params.bias_lr_factor=2", "optimizer.params needs base_lr for its bias_lr_fa"),
        ("model.use_coor_input=no", "use_coor_input must be True or False; got 'no'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_a_step(
    setting, message, sample_root, tmp_path, capsys
):
    assert main(["train", CONFIG, *settings(sample_root, tmp_path / "run", setting)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (
        tmp_path / "run" / "metrics.json"
    ).exists()  # so the corrected command can use the folder


def test_after_train_does_not_run_after_a_failure():
    from detectron2.engine import hooks

    ended = []
    trainer = make_trainer([make_batch()])
    trainer.register_hooks([hooks.CallbackHook(after_train=lambda _: ended.append(1))])
    with pytest.raises(StopIteration):
        trainer.train(0, 2)
    assert not ended


@pytest.mark.numerics
def test_accumulated_batches_equal_one_large_batch():
    large = make_batch(size=2)
    split = [{key: value[i : i + 1] for key, value in large.items()} for i in range(2)]
    one = make_trainer([large], losses=["l1_loss"], clip_grad_norm=1.0)
    two = make_trainer(split, losses=["l1_loss"], clip_grad_norm=1.0, accumulate=2)
    before = weights_of(one)
    one.train(0, 1)
    two.train(0, 1)
    torch.testing.assert_close(weights_of(two), weights_of(one), rtol=1e-5, atol=2e-5)
    assert not same(weights_of(one), before)


def test_a_step_does_not_change_idle_parameters():
    run = TinyRun.build("model.aux_input=bbox_mask", "optimizer.weight_decay=0.1").run(1)
    before = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    run.run(1)
    moved = {
        name
        for name, value in run.task.model.state_dict().items()
        if name.split(".")[1] in ("bbox_embedding", "point_embedding")
        and not torch.equal(value, before[name])
    }
    assert moved == {name for name in before if name.startswith("unet.bbox_embedding.")}


@pytest.mark.slow
def test_processes_skip_a_step_together(sample_root, tmp_path):
    words = settings(sample_root, tmp_path / "run", "train.max_iter=3", "train.evaluations=0")
    words += ["train.non_finite=skip", "train.log_period=1"]
    log = finish(
        words, tmp_path / "log", at=("before step", 1), action=make_nan, rank=1, num_processes=2
    )
    assert "The step is skipped." in log and "loss is not finite at step 1" in log
    # No loss of that step is recorded, and all weights stay finite.
    losses = {line["iteration"] for line in records(tmp_path / "run") if "total_loss" in line}
    assert losses == {0, 2}
    final = weights.read_tensors(tmp_path / "run" / "model_final.pth")
    assert all(value.isfinite().all() for value in final.values() if value.is_floating_point())


@pytest.mark.slow
def test_a_hung_loader_ends_the_run_with_a_message(sample_root, tmp_path):
    words = settings(sample_root, tmp_path / "run", "dataloader.train.timeout=1")
    words += ["dataloader.train.num_workers=1", "train.evaluations=0"]
    run = Run(words, tmp_path / "log", at=("before step", 0), action=hang)
    assert run.wait() == [2], run.log.read_text()
    last = run.log.read_text().splitlines()[-1]
    assert last.startswith("error: ") and "gave no batch for 1 s (timeout)" in last
    assert "Traceback" not in run.log.read_text()


def test_a_killed_worker_ends_the_run_with_a_message(sample_root, tmp_path):
    words = settings(sample_root, tmp_path / "run", "dataloader.train.num_workers=1")
    run = Run(words, tmp_path / "log", at=("step", 2), action=kill_workers)
    assert run.wait() == [2], run.log.read_text()
    last = run.log.read_text().splitlines()[-1]
    assert last.startswith("error: ") and "orker" in last and "killed" in last
    assert "Traceback" not in run.log.read_text()
