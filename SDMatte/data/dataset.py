"""The dataset, which turns listed files into the model's samples (data/README.md)."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from SDMatte.data.catalog import data_root, list_sets
from SDMatte.data.compositing import composite
from SDMatte.data.listing import Sample
from SDMatte.data.samplers import Mix
from SDMatte.data.settings import DataSettings
from SDMatte.data.sources import Source, SourceReader
from SDMatte.data.transforms import change_colors, crop_window, make_trimap, to_gray
from SDMatte.data.transparency import SIDE, is_transparent_alpha
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.resize import (
    BilinearGrid,
    Window,
    aspect_shape,
    pick,
    resize_trimap,
    to_tensor,
    unit,
)
from SDMatte.prompts.frozen import PromptFile, sample_key
from SDMatte.prompts.maps import (
    auto_prompt,
    box_prompt,
    extent,
    mask_prompt,
    point_prompt,
)
from SDMatte.prompts.perturb import PromptPerturbation
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.settings import DatasetSettings

logger = logging.getLogger(__name__)

# Seeds depend on the order, so append new stages at the end.
_STAGES = ("composite", "trimap", "mask", "box", "point", "gray", "crop", "flip", "color")


class MattingDataset(Dataset):
    """Samples with all prompts, for training or testing.

    Images with an alpha channel keep their stored colors, as in the reference: in data sets, they
    are foregrounds with colors under transparent pixels, or the channel has no meaning.
    (`SDMatte.MattePredictor` respects transparency.)

    In training, a sample depends only on the seed, its index and the epoch. In testing, it depends
    on the seed and the alpha's file name, so every evaluation of a set, or of part of it, uses the
    same prompts. Each stage (composite, trimap, mask, ...) has its own random stream.
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
        prompts_from: str | Path | None = None,
        perturb: PromptPerturbation | Mapping[str, Any] | None = None,
    ) -> None:
        """List the samples; no image is read.

        Args:
            names: Data sets and folder pairs, see `SDMatte.data.catalog.list_sets`.
            samples: The samples themselves, instead of ``names``.
            root: The data root of the config, see `SDMatte.data.catalog.data_root`.
            size: Side of the square that images are resized to; in testing with ``keep_aspect``,
                images get about as many pixels.
            training: Whether to draw samples as in training and skip unreadable files.
            seed: Seed of all random choices.
            settings: Settings of the samples.
            limit: Use only the first samples.
            max_bad_samples: Number of different training samples that may be unreadable.
            prompts_from: For testing, a file of boxes, points and masks to use instead of drawing
                them, see `SDMatte.prompts.frozen`.
            perturb: For testing, how to perturb the prompts.

        Raises:
            ConfigError: A setting is unknown or not allowed.
            DataError: A set is unknown, not found, or incomplete, or the prompt file does not
                match.
        """
        if (names is None) == (samples is None):
            raise ConfigError("A dataset takes either names or samples.")
        numbers = dict(size=size, seed=seed, limit=limit, max_bad_samples=max_bad_samples)
        DatasetSettings.of(numbers, "dataset")
        self.root = data_root(root)
        self.mix: Mix | None = None
        if samples is None:
            sets = list_sets(names, root, training)
            samples = [sample for _, listed in sets for sample in listed]
            if training:
                self.mix = Mix.of([(entry, len(listed)) for entry, listed in sets])
        if limit is not None and self.mix is not None:
            raise ConfigError("A dataset takes either weights or a limit.")
        self.samples = list(samples[:limit])
        self.size = size
        self.training = training
        self.seed = seed
        self.settings = DataSettings.of(settings, "dataset.settings")
        self._reader = SourceReader(self.settings.decode == "reduced", self.settings.cache_mb)
        self._transparent: dict[str, bool] = {}
        self.max_bad_samples = max_bad_samples
        self.frozen = self._read_prompts(prompts_from) if prompts_from else None
        self.perturb = PromptPerturbation.of(perturb, "perturb")
        if training and self.perturb != PromptPerturbation():
            raise ConfigError("perturb is for test sets only.")
        # Shared memory, so that the limit holds over all loader workers together.
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return a sample.

        Args:
            key: An index, or (epoch, index); the epoch counts earlier draws of the sample.

        Returns:
            ``image`` float32 ``[3, S, S]``; ``alpha``, ``trimap``, ``bbox_mask``, ``point_mask``,
            ``mask``, ``auto_mask`` float32 ``[1, S, S]``, all in [-1, 1]; the coordinates of each
            prompt, float32 ``[4]`` or ``[20]``; ``is_trans`` int64 ``[]``; ``hw`` int64 ``[2]``,
            height and width before resizing (of a composite with both copies; of a crop, those of
            the crop); ``caption``, ``image_name`` (the alpha's file name), ``alpha_path``,
            ``image_path`` ("" for a composite), ``trimap_path`` ("" without one), ``dataset``: str.

        Raises:
            ConfigError: The sample does not fit into memory.
            DataError: In testing, a file is unreadable; in training, too many are. Up to
                ``max_bad_samples``, the next readable sample replaces an unreadable one.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if not self.training:
            return self._make(self.samples[index], self.streams(index))
        errors = []
        for step in range(len(self)):
            i = (index + step) % len(self)
            try:
                return self._make(self.samples[i], self.streams(i, epoch))
            except DataError as error:
                self._count_bad(i, error)
                errors.append(error)
        names = ", ".join(dict.fromkeys(sample.dataset for sample in self.samples))
        raise DataError(f"No training sample of {names} can be read. The first error: {errors[0]}")

    def streams(self, index: int, epoch: int = 0) -> dict[str, np.random.Generator]:
        """Return the random streams of a sample by stage."""
        key: tuple[int, ...] = (0, self.seed, epoch, index)
        if not self.training:
            name = Path(self.samples[index].alpha).name.encode("utf-8", "surrogateescape")
            key = 1, self.seed, int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
        seeds = np.random.SeedSequence(key).spawn(len(_STAGES))
        return {s: np.random.default_rng(q) for s, q in zip(_STAGES, seeds, strict=True)}

    def prompt_key(self, sample: Sample) -> tuple[str, str]:
        """Return the data set and key of a sample in prompt files."""
        return sample.dataset, sample_key(self.root / sample.alpha, self.root)

    def _read_prompts(self, path: str | Path) -> PromptFile:
        if self.training:
            raise ConfigError("prompts_from is for test sets only; training draws its prompts.")
        frozen = PromptFile.read(path)
        keys = [self.prompt_key(sample) for sample in self.samples]
        frozen.check(self.size, self.settings.radius(False), self.settings.psm, keys)
        return frozen

    def _count_bad(self, index: int, error: DataError) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            logger.warning("Skipping a sample: %s", error)
        count = int(self._bad.sum())
        if count > self.max_bad_samples:
            raise DataError(
                f"{count} training samples cannot be read, {self.max_bad_samples} are allowed "
                f"(max_bad_samples). The last error: {error}"
            ) from error

    def _make(self, sample: Sample, rng: Mapping[str, np.random.Generator]) -> dict[str, Any]:
        """Make a sample; convert the errors of numpy and OpenCV for a lack of memory."""
        try:
            return self._build(sample, rng)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.STS_NO_MEM:
                raise
            part = "train" if self.training else "test"
            raise ConfigError(
                f"Out of memory while reading {self.root / sample.image}: lower "
                f"dataloader.{part}.dataset.size, which is {self.size}."
            ) from error

    def _build(self, sample: Sample, rng: Mapping[str, np.random.Generator]) -> dict[str, Any]:
        settings = self.settings
        image, alpha, trimap, hw, is_trans = self._read(sample, rng)
        if self.training and rng["flip"].random() < settings.flip_prob:
            image, alpha, trimap = (
                None if a is None else np.ascontiguousarray(a[:, ::-1])
                for a in (image, alpha, trimap)
            )
        if trimap is None:
            trimap = make_trimap(alpha, rng["trimap"], settings.kernel_sizes)
        auto, radius = auto_prompt(alpha.shape), settings.radius(self.training)
        jitter = settings.jitter(self.training)
        prompts = {
            "mask": mask_prompt(alpha, rng["mask"], settings.kernel_sizes, settings.mask_threshold),
            "bbox_mask": box_prompt(alpha, rng["box"], jitter, settings.box_loosen),
            "point_mask": point_prompt(alpha, rng["point"], radius, settings.psm),
            "auto_mask": auto,
            "trimap": auto._replace(mask=trimap),
        }
        if self.frozen is not None:
            prompts |= self.frozen.prompts(*self.prompt_key(sample), alpha.shape)
        prompts |= self.perturb.change(prompts, radius, settings.psm)
        if self.training:
            image = change_colors(image, rng["color"], settings)
            if rng["gray"].random() < settings.gray_prob:
                image = to_gray(image)

        result: dict[str, Any] = {"image": to_tensor(image), "alpha": to_tensor(alpha)}
        for name, prompt in prompts.items():
            result[name] = to_tensor(prompt.mask)
            result[PROMPT_TYPES[name].coords_key] = torch.from_numpy(prompt.coords)
        result["is_trans"] = torch.tensor(int(is_trans != self.perturb.opacity))
        result["hw"] = torch.tensor(hw)
        result["caption"] = sample.caption
        result["image_name"] = Path(sample.alpha).name
        result["image_path"] = "" if sample.background else str(self.root / sample.image)
        result["alpha_path"] = str(self.root / sample.alpha)
        result["trimap_path"] = str(self.root / sample.trimap) if sample.trimap else ""
        result["dataset"] = sample.dataset
        return result

    def _read(
        self, sample: Sample, rng: Mapping[str, np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, int], bool]:
        """Read a sample, composite it or crop it (with ``keep_aspect``), and resize it.

        Returns:
            Image ``[S, S, 3]``, alpha ``[S, S]``, and trimap ``[S, S]`` or None if not given, all
            float32 in [0, 1]; height and width before resizing; whether it is transparent.
        """
        at_least = self._at_least(sample)
        alpha = self._reader.matte(self.root / sample.alpha, at_least)
        image = self._reader.image(self.root / sample.image, at_least)
        self._check_size(sample, sample.image, image, alpha)
        is_trans = self._is_trans(sample, alpha)
        crop = rng["crop"] if self.training and self.settings.keep_aspect else None
        if sample.background:
            background = self._reader.image(self.root / sample.background, at_least)
            try:
                small, target, hw = composite(
                    image.pixels,
                    alpha.pixels,
                    background.pixels,
                    self.size,
                    rng["composite"],
                    self.settings,
                    hw=alpha.hw,
                    crop=crop,
                )
            except DataError as error:
                raise DataError(f"{self.root / sample.image}: {error}") from error
            return small, target, None, hw, is_trans

        shape = alpha.pixels.shape
        window, size = Window.whole(shape), (self.size, self.size)
        if crop is not None:
            window = crop_window(extent(alpha.pixels > 0), shape, crop)
        elif self.settings.keep_aspect:
            size = aspect_shape(alpha.hw, self.size, self.settings.size_multiple)
        whole = window.scaled(shape, alpha.hw)  # the window in pixels of the files
        trimap = None
        if sample.trimap:
            given = self._reader.trimap(self.root / sample.trimap)
            self._check_size(sample, sample.trimap, given, alpha)
            trimap = resize_trimap(whole.cut(given.pixels), size)
        grid = BilinearGrid(window, size)  # only the pixels it needs become floats
        small = grid.combine(pick(image.pixels, grid.rows, grid.columns).astype(np.float32))
        small /= 255  # [0, 255] -> [0, 1]
        target = grid.combine(unit(pick(alpha.pixels, grid.rows, grid.columns)))
        return small, target, trimap, (whole.height, whole.width), is_trans

    def _at_least(self, sample: Sample) -> tuple[int, int]:
        """Return how many rows and columns a sample needs from its files."""
        side = self.size
        if self.settings.keep_aspect:  # a crop has at least half the side of the image
            side *= 2
        if sample.is_trans is None:
            side = max(side, SIDE)  # for `is_transparent_alpha`
        return side, side

    def _is_trans(self, sample: Sample, alpha: Source) -> bool:
        if sample.is_trans is not None:
            return bool(sample.is_trans)
        if sample.alpha not in self._transparent:
            self._transparent[sample.alpha] = is_transparent_alpha(unit(alpha.pixels))
        return self._transparent[sample.alpha]

    def _check_size(self, sample: Sample, path: str, source: Source, alpha: Source) -> None:
        if source.hw != alpha.hw:
            (h, w), (ah, aw) = source.hw, alpha.hw
            raise DataError(
                f"{self.root / path} has {w}x{h} pixels, but its alpha "
                f"{self.root / sample.alpha} has {aw}x{ah}; the two must agree."
            )
