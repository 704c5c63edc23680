"""What the settings of a run can be; checked as soon as a config is loaded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from SDMatte.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        words: What stands behind "it is", in a message.
        fits: Says whether a value is one.
    """

    words: str
    fits: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Sees that a setting's value is of this kind.

        Raises:
            ConfigError: It is not.
        """
        if not self.fits(value):
            raise ConfigError(f"{name} is {self.words}; got {value!r}.")


def whole(least: int) -> Kind:
    """Whole numbers from the least one on."""
    return Kind(
        f"a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def number(low: float, high: float = math.inf, with_low: bool = False) -> Kind:
    """Numbers from ``low`` to below ``high``; ``low`` itself only on demand."""
    words = f"at least {low:g}" if with_low else f"above {low:g}"
    if high < math.inf:
        words += f" and below {high:g}"
    return Kind(
        f"a number {words}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (low < value < high or (with_low and value == low))
        ),
    )


def one_of(*names: str) -> Kind:
    """One of several words."""
    return Kind(" or ".join(names), lambda value: value in names)


def or_none(kind: Kind) -> Kind:
    """Values of a kind, or None."""
    return Kind(f"None or {kind.words}", lambda value: value is None or kind.fits(value))


def _is_sequence(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, str)) or OmegaConf.is_list(value)


SWITCH = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
TEXTS = Kind("a list of texts", lambda value: _is_sequence(value) and all(map(TEXT.fits, value)))
DECAYS = Kind(
    "a pair of numbers from 0 to below 1",
    lambda value: (
        _is_sequence(value)
        and len(value) == 2
        and all(number(0, 1, with_low=True).fits(item) for item in value)
    ),
)
OPTIONAL_TEXT = Kind("empty or a text", lambda value: value in (None, "") or TEXT.fits(value))

SETTINGS = {
    "train.output_dir": TEXT,
    "train.init_checkpoint": OPTIONAL_TEXT,
    "train.seed": whole(0),
    "train.device": TEXT,
    "train.epochs": number(0),
    "train.max_iter": or_none(whole(1)),
    "train.accumulate": whole(1),
    "train.amp.enabled": SWITCH,
    "train.amp.dtype": one_of("bfloat16", "float16"),
    "train.float32_precision": one_of("highest", "high", "medium"),
    "train.cudnn_benchmark": SWITCH,
    "train.gradient_checkpointing": SWITCH,
    "train.channels_last": SWITCH,
    "train.compile.enabled": SWITCH,
    "train.compile.backend": TEXT,
    "train.lora.enabled": SWITCH,
    "train.lora.rank": whole(1),
    "train.lora.alpha": number(0),
    "train.lora.dropout": number(0, 1, with_low=True),
    "train.lora.target_modules": TEXTS,
    "train.clip_grad_norm": or_none(number(0)),
    "train.ema.enabled": SWITCH,
    "train.ema.decay": number(0, 1),
    "train.non_finite": one_of("stop", "skip"),
    "train.checkpoints": whole(0),
    "train.evaluations": whole(0),
    "train.max_to_keep": or_none(whole(1)),
    "train.best_metric": OPTIONAL_TEXT,
    "train.log_period": whole(1),
    "train.num_images": whole(0),
    "train.ddp.find_unused_parameters": SWITCH,
    "train.ddp.broadcast_buffers": SWITCH,
    "train.ddp.fp16_compression": SWITCH,
    "train.ddp.timeout": number(0),
    "test.prompts": TEXTS,
    "test.protocol": TEXT,
    "test.use_trimap": SWITCH,
    "test.use_captions": SWITCH,
    "test.save_mattes": SWITCH,
    "test.error_maps": SWITCH,
    "test.num_workers": whole(0),
    "dataloader.train.dataset.size": whole(1),
    "dataloader.train.dataset.seed": whole(0),
    "dataloader.train.seed": whole(0),
    "dataloader.train.timeout": number(0, with_low=True),
    "dataloader.train.batch_size": whole(1),
    "dataloader.train.num_workers": whole(0),
    "dataloader.test.dataset.size": whole(1),
    "dataloader.test.dataset.seed": whole(0),
    "dataloader.test.timeout": number(0, with_low=True),
    "dataloader.test.batch_size": whole(1),
    "dataloader.test.num_workers": whole(0),
}
"""The settings that every config has, and their kinds. What a `LazyCall` makes of its others is its
own to check."""


PATHS = (
    "train.output_dir",
    "train.init_checkpoint",
    "model.pretrained_model_name_or_path",
    "distillation.teacher.pretrained_model_name_or_path",
    "distillation.teacher_checkpoint",
    "dataloader.train.dataset.root",
    "dataloader.test.dataset.root",
    "dataloader.test.dataset.prompts_from",
)
"""The settings that are paths, beside those of folder pairs."""


def check_settings(config: DictConfig, sections: Sequence[str]) -> None:
    """Sees that a config has all its parts, and that each of `SETTINGS` is of its kind.

    Args:
        config: The whole config.
        sections: The parts that are mappings.

    Raises:
        ConfigError: Something is not.
    """
    for name in sections:
        if not isinstance(config[name], DictConfig):
            raise ConfigError(f"{name} is a part of the config; got {config[name]!r}.")
    for name, kind in SETTINGS.items():
        *parents, last = name.split(".")
        node: Any = config
        for part in parents:
            node = node.get(part) if isinstance(node, DictConfig) else None
        if isinstance(node, DictConfig) and last in node:
            kind.check(name, node[last])
        elif not isinstance(node, DictConfig) or "_target_" not in node:  # else it has a default
            raise ConfigError(f"The config lacks {name}.")


PATH_KEYS = ("image", "alpha", "trimap", "background", "list_file")
"""Keys of a data set's settings that hold paths."""
