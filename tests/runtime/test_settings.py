"""Values that a setting cannot have: a sentence, before anything is built."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from SDMatte.engine.options import adamw
from SDMatte.errors import ConfigError
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion
from SDMatte.runtime.config import SECTIONS, build, load_config
from SDMatte.runtime.settings import SETTINGS, check_settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["SDMatte", "SDMatte_star", "LiteSDMatte", "SDMatte_small"])
def test_our_configs_are_free_of_such(name):
    config = load_config(CONFIGS / f"{name}.py")
    assert all(OmegaConf.is_missing(config, key) is False for key in SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_looked_at(name):
    """No setting can be a list of numbers."""
    with pytest.raises(ConfigError, match=rf"^{name} is .*; got \[1\].$"):
        load_config(CONFIGS / "SDMatte.py", [f"{name}=[1]"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.amp.dtype=float32", "train.amp.dtype is bfloat16 or float16; got 'float32'."),
        ("train.amp.enabled=maybe", "train.amp.enabled is True or False; got 'maybe'."),
        ("train.amp=True", "The config lacks train.amp.enabled."),
        ("train.clip_grad_norm=0", "train.clip_grad_norm is None or a number above 0; got 0."),
        ("train.clip_grad_norm=nan", "train.clip_grad_norm is None or a number above 0; got nan."),
        ("train.ema.decay=1", "train.ema.decay is a number above 0 and below 1; got 1."),
        ("train.ema.decay=0", "train.ema.decay is a number above 0 and below 1; got 0."),
        ("train.epochs=inf", "train.epochs is a number above 0; got inf."),
        ("train.lora.rank=0", "train.lora.rank is a whole number of at least 1; got 0."),
        ("train.lora.dropout=1", "train.lora.dropout is a number at least 0 and below 1; got 1."),
        ("train.lora.target_modules=to_q", "train.lora.target_modules is a list of texts; got"),
        ("train.max_to_keep=0", "train.max_to_keep is None or a whole number of at least 1"),
        ("train.num_images=-1", "train.num_images is a whole number of at least 0; got -1."),
        ("train.non_finite=ignore", "train.non_finite is stop or skip; got 'ignore'."),
        ("train.seed=True", "train.seed is a whole number of at least 0; got True."),
        ("train.output_dir=", "train.output_dir is a text; got ''."),
        ("train.ddp.timeout=0", "train.ddp.timeout is a number above 0; got 0."),
        ("test.prompts=box", "test.prompts is a list of texts; got 'box'."),
        ("optimizer=null", "optimizer is a part of the config; got None."),
        ("dataloader.train.seed=x", "dataloader.train.seed is a whole number of at least 0"),
    ],
)
def test_what_cannot_be(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "SDMatte.py", [override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "override",
    [
        *("train.clip_grad_norm=null", "train.clip_grad_norm=1", "train.max_to_keep=null"),
        *("train.max_iter=1", "train.init_checkpoint=null", "train.best_metric=''"),
        *("train.num_images=0", "train.lora.dropout=0", "dataloader.train.timeout=0"),
    ],
)
def test_what_can_be(override):
    load_config(CONFIGS / "SDMatte.py", [override])


def test_what_a_callable_has_a_default_for_may_be_missing():
    config = load_config(CONFIGS / "SDMatte.py")
    del config.dataloader.train["timeout"]
    check_settings(config, SECTIONS)
    del config.train["seed"]
    with pytest.raises(ConfigError, match="The config lacks train.seed."):
        check_settings(config, SECTIONS)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("lr", -1), ("lr", "x"), ("lr", None), ("lr", float("nan")), ("betas", 0.9)),
        *(("betas", [0.9, 1.0]), ("weight_decay", -0.1), ("eps", "x"), ("fused", "x")),
        ("eight_bit", 1),
    ],
)
def test_an_optimizer_that_cannot_be(setting, value):
    settings = {"lr": 0.1, setting: value}
    with pytest.raises(ConfigError, match=rf"^optimizer.{setting} is .*; got "):
        adamw(nn.Linear(1, 1).parameters(), **settings)


@pytest.mark.parametrize(
    "override", ["decay=0", "decay=x", "warmup_iter=-1", "warmup_iter=2.5", "warmup_factor=x"]
)
def test_a_schedule_that_cannot_be(override):
    config = load_config(CONFIGS / "SDMatte.py", [f"lr_multiplier.{override}"])
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^lr_multiplier.{name} is a .*number .*; got "):
        build(config.lr_multiplier, max_iter=10)


@pytest.mark.parametrize("losses", [["l2_loss"], [], None, "l1_loss"])
def test_losses_that_cannot_be(losses):
    with pytest.raises(ConfigError, match=r"^criterion.losses is a list of some of unknown_l1"):
        MattingCriterion(losses)
    with pytest.raises(ConfigError, match=r"criterion.losses is a list of some of mse, mse_loss"):
        DistillationCriterion(losses)
    for size in (0, "x", None):
        with pytest.raises(ConfigError, match="criterion.size is a number of pixels; got"):
            MattingCriterion(["l1_loss"], size)
    MattingCriterion(["l1_loss"], 32)
    with pytest.raises(ConfigError, match="known_lap_loss needs pictures of at least 64 pixels"):
        MattingCriterion(["l1_loss", "known_lap_loss"], 63)
    smallest = MattingCriterion(["known_lap_loss"], 64)
    smallest(*torch.zeros(3, 1, 1, 64, 64))
