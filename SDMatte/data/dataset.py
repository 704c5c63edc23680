"""From a list of files to the samples that the model takes (data/README.md, "A sample's way")."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from SDMatte.data.catalog import Sample, data_root, list_samples
from SDMatte.data.compositing import composite
from SDMatte.data.prompts import (
    Prompt,
    auto_prompt,
    box_prompt,
    mask_prompt,
    point_prompt,
    whole_picture,
)
from SDMatte.data.settings import DataSettings
from SDMatte.data.transforms import (
    make_trimap,
    resize_bilinear,
    resize_trimap,
    to_gray,
    to_tensor,
)
from SDMatte.data.transparency import is_transparent_alpha
from SDMatte.errors import ConfigError, DataError
from SDMatte.image_io import read_alpha, read_image, read_trimap
from SDMatte.prompts import PROMPT_TYPES

logger = logging.getLogger(__name__)

_STAGES = ("composite", "trimap", "mask", "box", "point", "gray")


class MattingDataset(Dataset):
    """Samples with all prompts, for training or test.

    A sample depends on nothing but the seed, its index and, in training, the epoch: not on the
    worker, the rank or the order. In test it depends on the seed and the alpha's file name, so
    that two evaluations, of the set or a part of it, see the same prompts. Each stage (composite,
    trimap, mask, box, point, gray) has a random stream of its own.
    """

    def __init__(
        self,
        names: Any = None,
        *,
        samples: Sequence[Sample] | None = None,
        root: str | Path | None = None,
        size: int = 512,
        training: bool = True,
        seed: int = 0,
        settings: DataSettings | Mapping[str, Any] | None = None,
        limit: int | None = None,
        max_bad_samples: int = 100,
    ) -> None:
        """Lists the samples; no picture is read.

        Args:
            names: Data sets and folder pairs, see :func:`~SDMatte.data.catalog.list_samples`.
            samples: The records themselves, in place of ``names``.
            root: The data root of the config, see :func:`~SDMatte.data.catalog.data_root`.
            size: Side of the square that pictures are squashed to.
            training: Whether to draw as in training, and to leave out unreadable files.
            seed: Seed of all random choices.
            settings: The knobs, or a mapping of some of them.
            limit: Takes only the first so many samples.
            max_bad_samples: In training, so many different samples may be unreadable.

        Raises:
            ConfigError: A setting cannot be.
            DataError: A set is unknown, not there, or incomplete.
        """
        if (names is None) == (samples is None):
            raise ConfigError("A data set takes either names or samples.")
        if size < 1:
            raise ConfigError(f"The size of the pictures must be at least 1, not {size}.")
        self.root = data_root(root)
        self.samples = list_samples(names, root, training) if samples is None else list(samples)
        self.samples = self.samples[:limit]
        self.size = size
        self.training = training
        self.seed = seed
        self.settings = DataSettings.of(settings)
        self.max_bad_samples = max_bad_samples
        # Shared, so that the limit holds over all loader workers together.
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        """The number of samples in an epoch."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Makes a sample.

        Args:
            key: An index, or (epoch, index).

        Returns:
            ``image`` float32 ``[3, S, S]``; ``alpha``, ``trimap``, ``bbox_mask``, ``point_mask``,
            ``mask``, ``auto_mask`` float32 ``[1, S, S]``, all in [-1, 1]; the coordinates of each
            prompt, float32 ``[4]`` or ``[20]``; ``is_trans`` int64 ``[]``; ``hw`` int64 ``[2]``,
            height and width of the picture before resizing (of a composite: with both copies);
            ``caption``, ``image_name`` (the alpha's file name), ``alpha_path``, ``image_path`` (""
            for a composite), ``trimap_path`` ("" if there is none), ``dataset``: str.

        Raises:
            DataError: In test: a file cannot be read. In training: too many cannot; up to
                ``max_bad_samples`` the next readable sample takes the place of a bad one.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if not self.training:
            return self._make(self.samples[index], self._test_key(self.samples[index]))
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self._make(self.samples[place], (0, self.seed, epoch, place))
            except DataError as error:
                self._note_bad(place, error)
        raise DataError("No training sample can be read.")

    def _note_bad(self, index: int, error: DataError) -> None:
        """Counts a sample that cannot be read, and gives up when there are too many."""
        if not self._bad[index]:
            self._bad[index] = True
            logger.warning("A sample is left out: %s", error)
        count = int(self._bad.sum())
        if count > self.max_bad_samples:
            raise DataError(
                f"{count} training samples cannot be read, {self.max_bad_samples} are allowed "
                f"(max_bad_samples); the last one: {error}"
            ) from error

    def _test_key(self, sample: Sample) -> tuple[int, ...]:
        name = Path(sample.alpha).name.encode("utf-8", "surrogateescape")
        return 1, self.seed, int.from_bytes(hashlib.sha256(name).digest()[:8], "big")

    def _make(self, sample: Sample, key: tuple[int, ...]) -> dict[str, Any]:
        seeds = np.random.SeedSequence(key).spawn(len(_STAGES))
        rng = {s: np.random.default_rng(q) for s, q in zip(_STAGES, seeds, strict=True)}
        alpha = read_alpha(self.root / sample.alpha)
        image = read_image(self.root / sample.image)
        self._check_size(sample, sample.image, image, alpha)
        is_trans = is_transparent_alpha(alpha) if sample.is_trans is None else sample.is_trans
        hw = alpha.shape
        trimap = None
        if sample.background:
            background = read_image(self.root / sample.background)
            image, alpha, hw = composite(
                image, alpha, background, self.size, rng["composite"], self.settings
            )
        else:
            if sample.trimap:
                trimap = read_trimap(self.root / sample.trimap)
                self._check_size(sample, sample.trimap, trimap, alpha)
                trimap = resize_trimap(trimap, self.size)
            image = resize_bilinear(image, self.size) / np.float32(255)  # [0, 255] -> [0, 1]
            alpha = resize_bilinear(alpha, self.size)
        if trimap is None:
            trimap = make_trimap(alpha, rng["trimap"], self.settings.kernel_sizes)
        prompts = self._prompts(alpha, trimap, rng)
        if self.training and rng["gray"].random() < self.settings.gray_prob:
            image = to_gray(image)

        result: dict[str, Any] = {"image": to_tensor(image), "alpha": to_tensor(alpha)}
        for name, prompt in prompts.items():
            result[name] = to_tensor(prompt.mask)
            result[PROMPT_TYPES[name].coords_key] = torch.from_numpy(prompt.coords)
        result["is_trans"] = torch.tensor(int(is_trans))
        result["hw"] = torch.tensor(hw)
        result["caption"] = sample.caption
        result["image_name"] = Path(sample.alpha).name
        result["image_path"] = "" if sample.background else str(self.root / sample.image)
        result["alpha_path"] = str(self.root / sample.alpha)
        result["trimap_path"] = str(self.root / sample.trimap) if sample.trimap else ""
        result["dataset"] = sample.dataset
        return result

    def _prompts(
        self, alpha: np.ndarray, trimap: np.ndarray, rng: dict[str, np.random.Generator]
    ) -> dict[str, Prompt]:
        """Draws every prompt there is; training picks one of them a step."""
        knobs, training = self.settings, self.training
        return {
            "mask": mask_prompt(alpha, rng["mask"], knobs.kernel_sizes, knobs.mask_threshold),
            "bbox_mask": box_prompt(alpha, rng["box"], knobs.jitter(training)),
            "point_mask": point_prompt(alpha, rng["point"], knobs.radius(training), knobs.psm),
            "auto_mask": auto_prompt(alpha.shape),
            "trimap": Prompt(trimap, whole_picture()),
        }

    def _check_size(self, sample: Sample, path: str, array: np.ndarray, alpha: np.ndarray) -> None:
        if array.shape[:2] != alpha.shape:
            (h, w), (ah, aw) = array.shape[:2], alpha.shape
            raise DataError(
                f"{self.root / path} has {w}x{h} pixels, but its alpha "
                f"{self.root / sample.alpha} has {aw}x{ah}; the two must agree."
            )
