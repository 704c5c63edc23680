"""Fine-tuning with low-rank adapters (LoRA, by peft) and the layers that SDMatte adds.

The model's state dict keeps the published layout: reading it merges the adapters into the weights,
and loading it sets the weights and resets the adapters to have no effect. Every checkpoint of such
a run is therefore a plain one. The state needed to resume, unmerged weights and adapters, is saved
by `Adapters`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from SDMatte.errors import CheckpointError, ConfigError, DependencyError
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.modeling.surgery import COORDINATE_LAYERS

logger = logging.getLogger(__name__)

NEW_LAYERS = ("conv_in", "aux_conv_in", *COORDINATE_LAYERS)
"""U-Net layers that are missing or narrower in Stable Diffusion; they are trained in full."""

_NAME = "default"  # peft's name of the only adapter of each layer
_BASE = "base_layer."


class Adapters:
    """Freeze a model's U-Net except new layers, and add adapters to some of its layers.

    New are `NEW_LAYERS` and the `new_layers` of a subclass of SDMatte.

    New adapters have no effect: the model's output does not change.

    Args:
        model: The model, which is changed in place, including which parameters are trainable.
        rank: Rank of the adapters, at least 1.
        alpha: The adapters are scaled by ``alpha / rank``.
        dropout: Fraction of the adapters' inputs to drop in training, in [0, 1).
        target_modules: Names, or ends of names, of linear and convolutional layers of the U-Net.

    Raises:
        ConfigError: No layer has such a name.
        DependencyError: peft is not installed.
    """

    weights_in_use: Callable[[], AbstractContextManager] = nullcontext
    """Context manager that swaps in the weights to save, such as their moving average."""

    def __init__(
        self, model: SDMatte, rank: int, alpha: float, dropout: float, target_modules: Sequence[str]
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
        for name, parameter in model.named_parameters():
            if name.startswith(model.new_layers):
                parameter.requires_grad_(True)
        self.layers = {f"unet.{name}.": model.unet.get_submodule(name) for name in targets}
        # A function, because torch sets an attribute on the hook, which bound methods do not allow.
        model.register_state_dict_post_hook(lambda *args: self._merge(*args))
        model.register_load_state_dict_pre_hook(self._reset)
        logger.info("LoRA of rank %d in %d layers.", rank, len(self.layers))

    @torch.no_grad()
    def _merge(self, module: nn.Module, state: dict[str, Any], prefix: str, *args) -> None:
        for name in list(state):
            value = state.pop(name)  # reinserted below, which keeps the order
            path, inner = self._split(name[len(prefix) :])
            if path is None:
                state[name] = value
            elif inner.startswith(_BASE):
                inner = inner.removeprefix(_BASE)
                if inner == "weight":
                    value = value + self.layers[path].get_delta_weight(_NAME)
                state[prefix + path + inner] = value

    def _reset(self, module: nn.Module, state: dict[str, Any], prefix: str, *args) -> None:
        for name in list(state):
            path, inner = self._split(name[len(prefix) :])
            if path is not None:
                state[prefix + path + _BASE + inner] = state.pop(name)
        for name, value in self._tensors():
            if f".{_BASE}" not in name:
                state[prefix + name] = torch.zeros_like(value) if ".lora_B." in name else value

    def _split(self, name: str) -> tuple[str | None, str]:
        """Split a parameter's name into the prefix of its adapted layer, or None, and the rest."""
        path = next((path for path in self.layers if name.startswith(path)), None)
        return path, name.removeprefix(path or "")

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for path, layer in self.layers.items():
            for inner, value in layer.state_dict().items():
                yield path + inner, value

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the unmerged weights and the adapters, by name in the model."""
        with self.weights_in_use():
            return {name: value.clone() for name, value in self._tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a state from `state_dict`, after the model's own state has been loaded.

        Raises:
            CheckpointError: The state belongs to other adapters.
        """
        own = dict(self._tensors())
        if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in state.items()}:
            raise CheckpointError(
                "The checkpoint was saved with another train.lora.rank or target_modules."
            )
        for name, value in own.items():
            value.copy_(state[name])


def find_targets(unet: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Find layers by name or end of name, except `NEW_LAYERS`, which are trained in full.

    Raises:
        ConfigError: A name matches no layer.
    """
    layers = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.split(".")[0] not in NEW_LAYERS
    ]
    found = {end: [n for n in layers if f".{n}".endswith(f".{end}")] for end in wanted}
    unknown = [end for end, names in found.items() if not names]
    if unknown or not found:
        problem = f"no layer is named {', '.join(unknown)}" if unknown else "the list is empty"
        ends = sorted({re.search(r"[^.]+(\.\d+)*$", name)[0] for name in layers})  # "to_out.0"
        raise ConfigError(
            f"train.lora.target_modules: {problem}. Layers of this U-Net: {', '.join(ends)}."
        )
    chosen = {name for names in found.values() for name in names}
    return [name for name in layers if name in chosen]
