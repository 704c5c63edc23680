"""Training options that change speed or memory and not what is learnt."""

import logging
from collections.abc import Iterable, Sequence

import SDMatte.compat  # noqa: F401

import torch

from SDMatte.errors import ConfigError, DependencyError
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.runtime.settings import DECAYS, SWITCH, number

logger = logging.getLogger(__name__)


def adamw(
    params: Iterable,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    fused: bool = True,
    eight_bit: bool = False,
) -> torch.optim.Optimizer:
    """Builds AdamW, torch's own or one that keeps its state in 8 bits.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
        fused: One kernel for all parameters, in place of torch's loops; the 8-bit one has its own.
        eight_bit: The state of bitsandbytes' `AdamW8bit`: a quarter of the memory, and not quite
            the same steps.

    Raises:
        ConfigError: A value cannot be.
        DependencyError: bitsandbytes is not installed.
    """
    settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    at_least_0 = number(0, with_low=True)
    kinds = {"lr": at_least_0, "betas": DECAYS, "eps": at_least_0, "weight_decay": at_least_0}
    for name, kind in kinds.items():
        kind.check(f"optimizer.{name}", settings[name])
    SWITCH.check("optimizer.fused", fused)
    SWITCH.check("optimizer.eight_bit", eight_bit)
    settings["betas"] = tuple(betas)
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
    """Lays out the state of an optimizer in memory as the parameters are.

    One kernel for all parameters takes their memory and that of their state side by side, in
    whatever order the numbers lie; and a state that was loaded lies as in the run that saved it.

    Raises:
        ValueError: The state is of 8 bits, which mean something only in the order that they had.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if same_shape and value.stride() != parameter.stride():
                if value.dtype == torch.uint8:
                    raise ValueError("it has optimizer.eight_bit and another train.channels_last")
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compile_model(model: SDMatte, backend: str, device: torch.device) -> None:
    """Compiles a model in place with `torch.compile`; the names of its weights stay.

    Args:
        model: The model.
        backend: Of `torch.compile`; ``inductor`` is its own.
        device: Where it is.

    Raises:
        ConfigError: There is no such backend, or nothing that it could compile with.
    """
    check_compiler(backend, device)
    model.compile(backend=backend)
    logger.info("The first step with each kind of prompt takes longer: it compiles the model.")


def check_compiler(backend: str, device: torch.device) -> None:
    """Compiles something small, to tell now what would otherwise fail in the first step.

    Raises:
        ConfigError: It does not work; the message says why.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.ones(2, device=device))
    except Exception as error:  # what dynamo, backends and compilers raise has no common base
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"train.compile.backend={backend} cannot work here ({reason}); set "
            f"train.compile.enabled=False."
        ) from error
