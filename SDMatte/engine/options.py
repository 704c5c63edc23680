"""Optimizer and compiler options for speed and memory."""

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import SDMatte.compat  # noqa: F401

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, model_validator
from typing_extensions import Self

from SDMatte.errors import ConfigError, DependencyError, first_line
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.runtime.schema import Settings

logger = logging.getLogger(__name__)

BACKEND = "inductor"  # of torch.compile; tests use one that needs no C++ compiler
_Decay = Annotated[float, Field(ge=0, lt=1)]


class _AdamWSettings(Settings):
    lr: NonNegativeFloat
    betas: Annotated[tuple[_Decay, _Decay], Field(strict=False)]
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat
    fused: bool
    eight_bit: bool


class ParamsSettings(Settings):
    """``optimizer.params``, for detectron2's `get_default_optimizer_params`."""

    model_config = ConfigDict(extra="ignore")  # another callable has other settings

    base_lr: NonNegativeFloat | None = None
    bias_lr_factor: NonNegativeFloat | None = None
    overrides: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _check_bias(self) -> Self:
        if self.bias_lr_factor not in (None, 1) and self.base_lr is None:
            raise ValueError("needs base_lr for its bias_lr_factor")
        return self


def adamw(
    params: Iterable,
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    fused: bool,
    eight_bit: bool,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Build AdamW, either torch's or, with an 8-bit state, that of bitsandbytes.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Decoupled weight decay.
        fused: Whether torch updates all parameters with one kernel; ignored with ``eight_bit``.
        eight_bit: Whether to use `AdamW8bit`: a quarter of the memory, slightly different steps.
        eps: Added to the denominator.

    Raises:
        ConfigError: A value is out of range.
        DependencyError: bitsandbytes is not installed.
    """
    settings = _AdamWSettings.of(
        dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused, eight_bit=eight_bit
        ),
        "optimizer",
    ).model_dump(exclude={"fused", "eight_bit"})
    if not eight_bit:
        return torch.optim.AdamW(params, fused=fused, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise DependencyError(
            "optimizer.eight_bit needs the package bitsandbytes: "
            "pip install -c constraints.txt -r requirements-finetune.txt"
        ) from error
    return AdamW8bit(params, **settings)


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the memory layout of its parameters.

    Fused kernels pair parameters and state by memory position, and a loaded state has the layout
    of the run that saved it.

    Raises:
        ValueError: The state has 8 bits, with quantized blocks that are tied to one layout.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if same_shape and value.stride() != parameter.stride():
                if value.dtype == torch.uint8:
                    raise ValueError("optimizer.eight_bit with another train.channels_last")
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compile_model(model: SDMatte, device: torch.device) -> None:
    """Compile a model in place with `torch.compile`; parameter names stay the same.

    Raises:
        ConfigError: torch has no working compiler here.
    """
    try:  # now, rather than in the first step
        torch.compile(torch.sin, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # dynamo, its backends and compilers share no base class
        raise ConfigError(
            f"train.compile.enabled=True does not work here ({first_line(error)}); set it to False."
        ) from error
    model.compile(backend=BACKEND)
    logger.info("The first step with each prompt type is slower: it compiles the model.")
