"""Weighted mixes of training sets: how large a share of the training each set gets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from SDMatte.data.catalog import items_of, list_samples
from SDMatte.data.listing import Sample
from SDMatte.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """The shares of the sets that a training draws from.

    An epoch is as long as all sets together, so that steps and schedule are those of the same
    sets without weights; a weight only says how much of it a set gets.

    Attributes:
        names: The sets, in the order of the config.
        sizes: Samples of each.
        weights: Their weights, of any scale.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks that every set gets something.

        Raises:
            ConfigError: A weight is not a positive number, or too small to matter.
        """
        for name, weight in zip(self.names, self.weights, strict=True):
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 < weight < math.inf:
                raise ConfigError(
                    f"The weight of {name} is {weight!r}; it must be a number above 0. To leave "
                    f"a set out, take it off the list."
                )
        for name, quota in zip(self.names, self.quotas(), strict=True):
            if quota == 0:
                raise ConfigError(
                    f"The weight of {name} is too small beside the others: of "
                    f"{sum(self.sizes)} samples an epoch it would get none."
                )

    def quotas(self) -> tuple[int, ...]:
        """Samples of each set in an epoch, rounded so that they add up (largest remainders)."""
        exact = np.array(self.weights, np.float64) / sum(self.weights) * sum(self.sizes)
        quotas = np.floor(exact).astype(int)
        missing = sum(self.sizes) - int(quotas.sum())
        quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
        return tuple(quotas.tolist())

    def describe(self) -> str:
        """Says an epoch's length and what it is made of."""
        parts = (
            f"{quota} of {name} (each sample {quota / size:.3g} times)"
            for name, quota, size in zip(self.names, self.quotas(), self.sizes, strict=True)
        )
        return f"An epoch has {sum(self.sizes)} samples: {', '.join(parts)}."


def list_mix(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    root: str | Path | None = None,
) -> tuple[list[Sample], Mix | None]:
    """Lists training sets of which each may have a ``weight``.

    Args:
        names: As `SDMatte.data.catalog.list_samples` takes them; a mapping may also hold
            ``weight``. Shares go with the weights, whatever the sizes: weights 2 and 1 give a set
            twice as many samples an epoch as the other.
        root: The data root of the config.

    Returns:
        All samples, set by set, and the mix, None where no set has a weight: then each sample
        comes once an epoch.

    Raises:
        ConfigError: Some sets have a weight and some have none, or a weight cannot be.
        DataError: As of `SDMatte.data.catalog.list_samples`.
    """
    items = items_of(names)
    bare = [without_weight(item) for item in items]
    if bare == items:
        return list_samples(items, root), None
    parts = [list_samples(item, root) for item in bare]
    mix = mix_of(items, [part[0].dataset for part in parts], [len(part) for part in parts])
    return list(chain(*parts)), mix


def mix_of(
    items: Sequence[str | Mapping[str, Any]], names: Sequence[str], sizes: Sequence[int]
) -> Mix | None:
    """Makes the mix of listed sets, None where no set has a weight.

    Args:
        items: The sets, as the config has them.
        names: Their names.
        sizes: Their samples.

    Raises:
        ConfigError: Some sets have a weight and some have none, or a weight cannot be.
    """
    weights = [item.get("weight") if isinstance(item, Mapping) else None for item in items]
    if all(weight is None for weight in weights):
        return None
    if any(weight is None for weight in weights):
        lacking = names[weights.index(None)]
        raise ConfigError(f"Give every training set a weight, or none: {lacking} has none.")
    return Mix(tuple(names), tuple(sizes), tuple(weights))


def without_weight(item: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """An item of the config as the catalogue takes it."""
    if not isinstance(item, Mapping):
        return item
    return {key: value for key, value in item.items() if key != "weight"}
