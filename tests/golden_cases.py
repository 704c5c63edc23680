"""The reference's numbers in tests/golden; its README describes how they were made."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def cases() -> list[dict]:
    return json.loads((GOLDEN / "cases.json").read_text())


def published_shapes(kind: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / f"state_dict_{kind}.json").read_text())


@functools.lru_cache(maxsize=2)  # drawn once for the cases that share them
def filled_state_dict(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Weights of the golden models, drawn from the published name of each tensor."""
    return {name: fill(name, shape, seed) for name, shape in published_shapes(kind).items()}


def fill(name: str, shape: list[int], seed: int) -> torch.Tensor:
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF)
    value = random.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        value = value / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1 + 0.1 * value
    elif len(shape) == 1:
        value = 0.02 * value
    else:
        value = np.ones(shape)
    return torch.from_numpy(value.astype(np.float32))


def inputs(seed: int, caption: list[str] | None = None) -> dict:
    with np.load(GOLDEN / f"inputs_{seed}.npz") as file:
        batch = {name: torch.from_numpy(file[name]) for name in file.files}
    return {**batch, "caption": caption or ["", ""]}
