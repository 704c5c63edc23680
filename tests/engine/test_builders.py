"""LiteSDMatte learns from a frozen SDMatte."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from golden_cases import GOLDEN, filled_state_dict
from models import make_batch

from SDMatte.engine.builders import build_trainer
from SDMatte.errors import CheckpointError, ConfigError
from SDMatte.evaluation.methods import build_model
from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.runtime.config import build, load_config

CONFIG = Path(__file__).parents[2] / "configs" / "LiteSDMatte.py"


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "SDMatte.pth"
    torch.save(filled_state_dict("sdmatte", 1234), path)
    return path


def distil(teacher_file):
    words = [
        f"model.pretrained_model_name_or_path={GOLDEN / 'pretrained_litesdmatte'}",
        "model.load_weight=False",
        f"distillation.teacher.pretrained_model_name_or_path={GOLDEN / 'pretrained_sdmatte'}",
        f"distillation.teacher_checkpoint={teacher_file}",
        "dataloader.train.dataset.size=64",
        "optimizer.lr=1e-3",
    ]
    config = load_config(CONFIG, words)
    torch.manual_seed(0)
    batches = [make_batch(1, seed=index) for index in range(2)]
    task, trainer, _ = build_trainer(config, batches, torch.device("cpu"))
    return task, trainer


def step(trainer):
    with EventStorage(trainer.iter) as trainer.storage:
        trainer.run_step()
    trainer.iter += 1
    return {name: history.latest() for name, history in trainer.storage.histories().items()}


@pytest.mark.slow
def test_only_the_student_changes(teacher_file):
    task, trainer = distil(teacher_file)
    assert isinstance(task.model, LiteSDMatte) and isinstance(task.teacher, SDMatte)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    seen = []
    for model in (task.model, task.teacher):
        model.register_forward_hook(
            lambda model, args, kwargs, output: seen.append((model, args[0], kwargs, output)),
            with_kwargs=True,
        )
    scalars = step(trainer)
    (student, batch, settings, (_, features)), (teacher, same, others, (_, taught)) = seen
    assert (student, teacher) == (task.model, task.teacher) and not teacher.training
    assert batch is same and settings["aux_input"] == others["aux_input"]
    assert len(features) == len(taught) == 3
    assert not any(feature.requires_grad for feature in taught)
    expected = 0.01 * sum(((f - t) ** 2).mean() for f, t in zip(features, taught, strict=True))
    assert scalars["distillation_loss"] == pytest.approx(expected.item(), rel=1e-4)
    matting = ("unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss")
    total = sum(scalars[name] for name in (*matting, "distillation_loss"))
    assert scalars["total_loss"] == pytest.approx(total, rel=1e-5)

    step(trainer)
    after = task.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("model.unet.") for name in changed)
    trained = {id(p) for p in trainer.parameters}
    assert not trained & {id(p) for p in task.teacher.parameters()}


@pytest.mark.parametrize("losses", ["mse", "l1", "mse,l1"])
def test_distillation_losses_follow_the_config(losses):
    config = load_config(CONFIG, [f"distillation.criterion.losses=[{losses}]"])
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(2, 3, 1, 4, 2, 2, generator=generator)
    means = {"mse": lambda d: d.square().mean(), "l1": lambda d: d.abs().mean()}
    pairs = list(zip(student, teacher, strict=True))
    expected = sum(means[n](s - t) for n in losses.split(",") for s, t in pairs)
    loss = build(config.distillation.criterion)(list(student), list(teacher))
    assert loss.item() == pytest.approx(0.01 * expected.item(), rel=1e-5)


def test_a_missing_teacher_is_named(tmp_path):
    with pytest.raises(ConfigError, match="teacher_checkpoint must be a file.*; got None."):
        distil("null")
    with pytest.raises(CheckpointError, match="Checkpoint file .*nothing.pth not found"):
        distil(tmp_path / "nothing.pth")


def test_models_of_another_class_are_refused():
    config = load_config(CONFIG)
    config.model = {"_target_": "torch.nn.Identity"}
    with pytest.raises(ConfigError, match="class Identity; it must be SDMatte or a subclass"):
        build_model(config.model)
