"""Invalid settings end in one clear line when a config is loaded, before anything is built."""

from pathlib import Path

import pytest
import torch
from pydantic import Field
from torch import nn

from SDMatte.engine.options import adamw
from SDMatte.errors import ConfigError
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion
from SDMatte.runtime.config import build, load_config
from SDMatte.runtime.schema import Settings
from SDMatte.runtime.settings import GROUPS, check_settings

CONFIG = Path(__file__).parents[2] / "configs" / "SDMatte.py"


def leaves(group, prefix):
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from leaves(field.annotation, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", field


FIELDS = {key: field for name, group in GROUPS.items() for key, field in leaves(group, name)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_explained_and_checked(name):
    assert FIELDS[name].description.endswith(".")
    with pytest.raises(ConfigError, match=rf"^{name}(\.0)? must .*; got "):  # no list of numbers
        load_config(CONFIG, [f"{name}=[1]"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.amp.dtype=float32", "must be 'bfloat16' or 'float16'; got 'float32'."),
        ("train.amp.enabled=maybe", "must be True or False; got 'maybe'."),
        ("train.amp=True", "must be a mapping; got True."),
        ("train.clip_grad_norm=0", "must be greater than 0; got 0."),
        ("train.clip_grad_norm=nan", "must be a finite number; got nan."),
        ("train.ema.decay=1", "must be less than 1; got 1."),
        ("train.ema.decay=0", "must be greater than 0; got 0."),
        ("train.epochs=inf", "must be a finite number; got inf."),
        ("train.lora.rank=0", "must be at least 1; got 0."),
        ("train.lora.dropout=1", "must be less than 1; got 1."),
        ("train.lora.target_modules=to_q", "must be a list; got 'to_q'."),
        ("train.max_to_keep=0", "must be at least 1; got 0."),
        ("train.num_images=-1", "must be at least 0; got -1."),
        ("train.non_finite=ignore", "must be 'stop' or 'skip'; got 'ignore'."),
        ("train.seed=True", "must be an integer; got True."),
        ("train.seed=1.5", "must be an integer; got 1.5."),
        ("train.seed=4294967296", "must be at most 4294967295; got 4294967296."),
        ("train.epochs=1e300", "must be at most 1000000; got 1e+300."),
        ("train.max_iter=1000000001", "must be at most 1000000000; got 1000000001."),
        ("train.output_dir=", "must not be empty; got ''."),
        ("train.ddp.timeout=0", "must be greater than 0; got 0."),
        ("test.prompts=box", "must be a list; got 'box'."),
        ("optimizer=null", "must be a section of the config; got None."),
        ("dataloader.train.seed=x", "must be an integer; got 'x'."),
    ],
)
def test_invalid_values(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, [override])
    assert str(caught.value) == f"{override.partition('=')[0]} {message}"


@pytest.mark.parametrize(
    "override",
    [
        *("train.clip_grad_norm=null", "train.clip_grad_norm=1", "train.max_to_keep=null"),
        *(
            "train.max_iter=1",
            "train.seed=4294967295",
            "train.init_checkpoint=null",
            "train.best_metric=''",
        ),
        *("train.num_images=0", "train.lora.dropout=0", "dataloader.train.timeout=0"),
    ],
)
def test_valid_values(override):
    load_config(CONFIG, [override])


def test_missing_and_unknown_settings():
    config = load_config(CONFIG)
    del config.dataloader.train["timeout"]  # its callable has a default
    check_settings(config)
    config.train.ema.decoy = 1
    with pytest.raises(ConfigError, match="Unknown setting train.ema.decoy; did you mean decay?"):
        check_settings(config)
    del config.train.ema["decoy"], config.train["seed"]
    with pytest.raises(ConfigError, match="The setting train.seed is missing."):
        check_settings(config)
    config.train.seed = "${nowhere}"
    with pytest.raises(ConfigError, match="train: Interpolation key 'nowhere' not found"):
        check_settings(config)


def test_groups_of_settings():
    class Blur(Settings):
        sigma: float = Field(default=1.0, ge=0)

    class Group(Settings):
        blur: Blur = Blur()

    assert Group.of(None) == Group.of({}) == Group.of(Group())
    assert Group.of({"blur": {"sigma": 2}}).blur.sigma == 2
    for values, message in (
        ({"blur": {"sigma": -1}}, "my.blur.sigma must be at least 0; got -1."),
        ({"blue": 1}, "Unknown setting my.blue; did you mean blur?"),
        ({"x": 1}, "Unknown setting my.x; known are blur."),
        ([1], "my must be a mapping; got [1]."),
    ):
        with pytest.raises(ConfigError) as caught:
            Group.of(values, "my")
        assert str(caught.value) == message


# ------------------------------------------------------- settings of callables


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("lr", -1), ("lr", "x"), ("lr", None), ("lr", float("nan")), ("betas", 0.9)),
        *(("betas", [0.9, 1.0]), ("weight_decay", -0.1), ("eps", "x"), ("fused", "x")),
        ("eight_bit", 1),
    ],
)
def test_invalid_optimizers(setting, value):
    valid = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0, "fused": True, "eight_bit": False}
    with pytest.raises(ConfigError, match=rf"^optimizer.{setting}.* must be .*; got "):
        adamw(nn.Linear(1, 1).parameters(), **{**valid, setting: value})


@pytest.mark.parametrize(
    "override", ["decay=0", "decay=x", "warmup_iter=-1", "warmup_iter=2.5", "warmup_factor=x"]
)
def test_invalid_schedules(override):
    config = load_config(CONFIG, [f"lr_multiplier.{override}"])
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^lr_multiplier.{name} must be .*; got "):
        build(config.lr_multiplier, max_iter=10)


@pytest.mark.parametrize("losses", [["l2_loss"], [], None, "l1_loss"])
def test_invalid_losses(losses):
    with pytest.raises(ConfigError, match=r"^criterion.losses .* unknown_l1"):
        MattingCriterion(losses)
    with pytest.raises(ConfigError, match=r"criterion.losses .* mse, mse_loss"):
        DistillationCriterion(losses)
    for size in (0, "x", None):
        with pytest.raises(ConfigError, match="criterion.size .*; got"):
            MattingCriterion(["l1_loss"], size)
    MattingCriterion(["l1_loss"], 32)
    with pytest.raises(ConfigError, match="known_lap_loss needs .* at least 64 pixels"):
        MattingCriterion(["l1_loss", "known_lap_loss"], 63)
    smallest = MattingCriterion(["known_lap_loss"], 64)
    smallest(*torch.zeros(3, 1, 1, 64, 64))
