"""Fine-tuning with low-rank adapters (LoRA, through peft) and the layers that are new in SDMatte.

Outside nothing changes: the model's state dict stays the published one. Reading it merges the
adapters into the weights; loading one sets the weights, and starts the adapters anew, without
effect. So every checkpoint of such a run is a plain one. What it takes to go on training, the
weights below the adapters and the adapters themselves, is the state of `Adapters`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from SDMatte.errors import CheckpointError, ConfigError, DependencyError
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.modeling.surgery import COORDINATE_LAYERS

logger = logging.getLogger(__name__)

NEW_LAYERS = ("conv_in", "aux_conv_in", *COORDINATE_LAYERS)
"""Layers of the U-Net that Stable Diffusion lacks, or has narrower; they are trained in full."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of all attentions."""

_NAME = "default"  # what peft calls the only adapter of each layer
_BASE = "base_layer."


class Adapters:
    """Freezes a model's U-Net, all but `NEW_LAYERS`, and puts adapters beside some of its layers.

    At first they have no effect: the model's output stays what it was.

    Args:
        model: Changed in place; its parameters that are trained are other ones after.
        rank: Rank of the adapters, at least 1.
        alpha: They are scaled by ``alpha / rank``.
        dropout: Share of their inputs that is dropped in training, in [0, 1).
        target_modules: Names of linear layers and convolutions of the U-Net, or ends of names.

    Raises:
        ConfigError: There is no such layer; the message says which there are.
        DependencyError: peft is not installed.
    """

    weights_in_use: Callable[[], AbstractContextManager] = nullcontext
    """Gives the model the weights that its state dict is to hold: their average, if there is."""

    def __init__(
        self,
        model: SDMatte,
        rank: int = 8,
        alpha: float = 8,
        dropout: float = 0.0,
        target_modules: Sequence[str] = ATTENTION,
    ):
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise DependencyError(
                "train.lora needs the package peft: "
                "pip install -c constraints.txt -r requirements-finetune.txt"
            ) from error
        targets = find_targets(model.unet, target_modules)
        settings = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets
        )
        inject_adapter_in_model(settings, model.unet, _NAME)  # freezes all but the adapters
        for name in NEW_LAYERS:
            model.unet.get_submodule(name).requires_grad_(True)
        self.layers = {f"unet.{name}.": model.unet.get_submodule(name) for name in targets}
        # A function, not the method: torch marks it with an attribute, which methods do not take.
        model.register_state_dict_post_hook(lambda *args: self._merge(*args))
        model.register_load_state_dict_pre_hook(self._start_anew)
        logger.info("LoRA of rank %d in %d layers.", rank, len(self.layers))

    @torch.no_grad()
    def _merge(self, module: nn.Module, state: dict[str, Any], prefix: str, *args) -> None:
        for name in list(state):
            value = state.pop(name)  # all are put in again, so their order stays
            path, inner = self._split(name[len(prefix) :])
            if path is None:
                state[name] = value
            elif inner.startswith(_BASE):
                inner = inner.removeprefix(_BASE)
                if inner == "weight":
                    value = value + self.layers[path].get_delta_weight(_NAME)
                state[prefix + path + inner] = value

    def _start_anew(self, module: nn.Module, state: dict[str, Any], prefix: str, *args) -> None:
        for name in list(state):
            path, inner = self._split(name[len(prefix) :])
            if path is not None:
                state[prefix + path + _BASE + inner] = state.pop(name)
        for path, layer in self.layers.items():
            for inner, value in layer.state_dict().items():
                if not inner.startswith(_BASE):
                    value = torch.zeros_like(value) if inner.startswith("lora_B") else value
                    state[prefix + path + inner] = value

    def _split(self, name: str) -> tuple[str | None, str]:
        """Parts a name in the model into an adapted layer's and the rest."""
        for depth in range(name.count("."), 0, -1):
            path = ".".join(name.split(".")[:depth]) + "."
            if path in self.layers:
                return path, name[len(path) :]
        return None, name

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights below the adapters and the adapters, by name in the model."""
        with self.weights_in_use():
            return {
                path + inner: value.clone()
                for path, layer in self.layers.items()
                for inner, value in layer.state_dict().items()
            }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up a state of `state_dict`; to be done after the model's own.

        Raises:
            CheckpointError: It is of other adapters.
        """
        own = {
            path + inner: value
            for path, layer in self.layers.items()
            for inner, value in layer.state_dict().items()
        }
        if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in state.items()}:
            raise CheckpointError(
                "The checkpoint is of a run with another train.lora.rank or target_modules."
            )
        for name, value in own.items():
            value.copy_(state[name])


def find_targets(unet: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Finds the layers that are to get adapters, by name or end of name.

    Args:
        unet: Where to look. `NEW_LAYERS` are left out, for they are trained in full.
        wanted: What to look for.

    Raises:
        ConfigError: Something was not found; the message says what there is.
    """
    layers = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.split(".")[0] not in NEW_LAYERS
    ]
    found = {end: [n for n in layers if f".{n}".endswith(f".{end}")] for end in wanted}
    unknown = [end for end, names in found.items() if not names]
    if unknown or not found:
        ends = sorted({".".join(_last_names(name)) for name in layers})
        raise ConfigError(
            f"train.lora.target_modules finds no layer {', '.join(unknown) or 'at all'}; "
            f"there are {', '.join(ends)}."
        )
    chosen = {name for names in found.values() for name in names}
    return [name for name in layers if name in chosen]


def _last_names(name: str) -> list[str]:
    """The end of a name that says what a layer is: numbers alone say nothing."""
    parts = name.split(".")
    first = len(parts) - 1
    while first > 0 and parts[first].isdigit():
        first -= 1
    return parts[first:]
