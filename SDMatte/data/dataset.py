"""From a list of files to the samples that the model takes (data/README.md, "A sample's way")."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from SDMatte.data import augment
from SDMatte.data.catalog import data_root, list_samples
from SDMatte.data.compositing import composite
from SDMatte.data.listing import Sample
from SDMatte.data.mix import Mix, list_mix
from SDMatte.data.settings import DataSettings, check_whole
from SDMatte.data.sources import Source, SourceReader
from SDMatte.data.transforms import make_trimap, to_gray
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
    Prompt,
    auto_prompt,
    box_prompt,
    extent,
    mask_prompt,
    point_prompt,
    whole_picture,
)
from SDMatte.prompts.perturb import PromptPerturbation
from SDMatte.prompts.types import PROMPT_TYPES

logger = logging.getLogger(__name__)

MAX_BAD_SAMPLES = 100
"""So many different training samples may be unreadable, unless the config says otherwise."""

# A new stage goes to the end: the seeds of the others stay as they are.
_STAGES = ("composite", "trimap", "mask", "box", "point", "gray", *augment.STAGES)

_MOST_WORKERS = 128


class _Picture(NamedTuple):
    """A resized picture, before prompts are drawn.

    ``image`` float32 ``[S, S, 3]``, ``alpha`` float32 ``[S, S]`` and ``trimap`` likewise, or None
    where none is given, all in [0, 1]; ``hw`` height and width before.
    """

    image: np.ndarray
    alpha: np.ndarray
    trimap: np.ndarray | None
    hw: tuple[int, int]
    is_trans: bool

    def flipped(self) -> "_Picture":
        """Left and right exchanged."""
        image, alpha, trimap = (
            None if a is None else np.ascontiguousarray(a[:, ::-1]) for a in self[:3]
        )
        return self._replace(image=image, alpha=alpha, trimap=trimap)


class MattingDataset(Dataset):
    """Samples with all prompts, for training or test.

    Of images with an alpha channel the colors count as they are stored, as in the reference: in
    data sets they are foregrounds, whose colors go on under their alpha, or channels of no
    meaning. (`SDMatte.MattePredictor` heeds the transparency of images.)

    A sample depends on nothing but the seed, its index and, in training, the epoch: not on the
    worker, the rank or the order. In test it depends on the seed and the alpha's file name, so
    that two evaluations, of the set or a part of it, see the same prompts. Each stage (composite,
    trimap, mask, box, point, gray, and those of `SDMatte.data.augment`) has a random stream
    of its own.
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
        max_bad_samples: int = MAX_BAD_SAMPLES,
        prompts_from: str | Path | None = None,
        perturb: PromptPerturbation | Mapping[str, Any] | None = None,
    ) -> None:
        """Lists the samples; no picture is read.

        Args:
            names: Data sets and folder pairs, see `SDMatte.data.catalog.list_samples`; in
                training with weights, see `SDMatte.data.mix.list_mix`.
            samples: The records themselves, in place of ``names``.
            root: The data root of the config, see `SDMatte.data.catalog.data_root`.
            size: Side of the square that pictures are squashed to; in test with ``keep_aspect``,
                of the square that has as many pixels.
            training: Whether to draw as in training, and to leave out unreadable files.
            seed: Seed of all random choices.
            settings: The knobs, or a mapping of some of them.
            limit: Takes only the first so many samples.
            max_bad_samples: In training, so many different samples may be unreadable.
            prompts_from: In test, a file of boxes, points and masks to use in place of drawn ones,
                see `SDMatte.prompts.frozen`.
            perturb: In test, how prompts are made worse, or a mapping of some of that.

        Raises:
            ConfigError: A setting cannot be.
            DataError: A set is unknown, not there, or incomplete, or the prompt file does not fit.
        """
        if (names is None) == (samples is None):
            raise ConfigError("A data set takes either names or samples.")
        check_whole("size", [size], 1)
        check_whole("seed", [seed], 0)
        check_whole("limit", [] if limit is None else [limit], 1)
        check_whole("max_bad_samples", [max_bad_samples], 0)
        self.root = data_root(root)
        self.mix: Mix | None = None
        if samples is not None:
            self.samples = list(samples)
        elif training:
            self.samples, self.mix = list_mix(names, root)
        else:
            self.samples = list_samples(names, root, training=False)
        if limit is not None and self.mix is not None:
            raise ConfigError("A data set takes either weights or a limit.")
        self.samples = self.samples[:limit]
        self.size = size
        self.training = training
        self.seed = seed
        self.settings = DataSettings.of(settings)
        self._reader = SourceReader(self.settings.decode == "reduced", self.settings.cache_mb)
        self._guesses: dict[str, bool] = {}
        self.max_bad_samples = max_bad_samples
        self.frozen = self._read_prompts(prompts_from) if prompts_from else None
        self.perturb = PromptPerturbation.of(perturb)
        if training and self.perturb != PromptPerturbation():
            raise ConfigError("Prompts are made worse in test only.")
        # Shared, so that the limit holds over all loader workers together.
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self._making = torch.full((_MOST_WORKERS,), -1).share_memory_()

    def __len__(self) -> int:
        """The number of samples in an epoch."""
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Makes a sample.

        Args:
            key: An index, or (epoch, index); the epoch counts how often the sample came before.

        Returns:
            ``image`` float32 ``[3, S, S]``; ``alpha``, ``trimap``, ``bbox_mask``, ``point_mask``,
            ``mask``, ``auto_mask`` float32 ``[1, S, S]``, all in [-1, 1]; the coordinates of each
            prompt, float32 ``[4]`` or ``[20]``; ``is_trans`` int64 ``[]``; ``hw`` int64 ``[2]``,
            height and width of the picture before resizing (of a composite: with both copies; of
            a part that was cut out: the part's);
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
            return self._make(index, 0)
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self._make(place, epoch)
            except DataError as error:
                self._note_bad(place, error)
        raise DataError("No training sample can be read.")

    def being_made(self) -> list[str]:
        """The alphas of the samples that loader workers are at, for messages on what hangs."""
        return [str(self.root / self.samples[i].alpha) for i in self._making.tolist() if i >= 0]

    def streams(self, index: int, epoch: int = 0) -> dict[str, np.random.Generator]:
        """The random streams of a sample, by the stage that draws from them."""
        key: tuple[int, ...] = (0, self.seed, epoch, index)
        if not self.training:
            name = Path(self.samples[index].alpha).name.encode("utf-8", "surrogateescape")
            key = 1, self.seed, int.from_bytes(hashlib.sha256(name).digest()[:8], "big")
        seeds = np.random.SeedSequence(key).spawn(len(_STAGES))
        return {s: np.random.default_rng(q) for s, q in zip(_STAGES, seeds, strict=True)}

    def prompt_key(self, sample: Sample) -> tuple[str, str]:
        """How prompt files know a sample: its set and its name there."""
        return sample.dataset, sample_key(self.root / sample.alpha, self.root)

    def _read_prompts(self, path: str | Path) -> PromptFile:
        if self.training:
            raise ConfigError("Prompts come from a file in test only; training draws them.")
        frozen = PromptFile.read(path)
        keys = [self.prompt_key(sample) for sample in self.samples]
        frozen.check(self.size, self.settings.radius(False), self.settings.psm, keys)
        return frozen

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

    def _make(self, index: int, epoch: int) -> dict[str, Any]:
        """Makes a sample, and lets the other processes know meanwhile."""
        worker = get_worker_info()
        place = worker.id % _MOST_WORKERS if worker else 0
        self._making[place] = index
        try:
            return self._draw(self.samples[index], self.streams(index, epoch))
        finally:
            self._making[place] = -1

    def _draw(self, sample: Sample, rng: Mapping[str, np.random.Generator]) -> dict[str, Any]:
        knobs = self.settings
        picture = self._picture(sample, rng)
        if self.training and augment.flips(rng["flip"], knobs):
            picture = picture.flipped()
        image, alpha, trimap = picture.image, picture.alpha, picture.trimap
        if trimap is None:
            trimap = make_trimap(alpha, rng["trimap"], knobs.kernel_sizes)
        prompts = self._prompts(alpha, trimap, rng)
        if self.frozen is not None:
            prompts |= self.frozen.prompts(*self.prompt_key(sample), alpha.shape)
        prompts |= self.perturb.change(prompts, knobs.radius(self.training), knobs.psm)
        if self.training:
            image = augment.change_look(image, rng, knobs)
            if rng["gray"].random() < knobs.gray_prob:
                image = to_gray(image)

        result: dict[str, Any] = {"image": to_tensor(image), "alpha": to_tensor(alpha)}
        for name, prompt in prompts.items():
            result[name] = to_tensor(prompt.mask)
            result[PROMPT_TYPES[name].coords_key] = torch.from_numpy(prompt.coords)
        result["is_trans"] = torch.tensor(int(picture.is_trans != self.perturb.opacity))
        result["hw"] = torch.tensor(picture.hw)
        result["caption"] = sample.caption
        result["image_name"] = Path(sample.alpha).name
        result["image_path"] = "" if sample.background else str(self.root / sample.image)
        result["alpha_path"] = str(self.root / sample.alpha)
        result["trimap_path"] = str(self.root / sample.trimap) if sample.trimap else ""
        result["dataset"] = sample.dataset
        return result

    def _picture(self, sample: Sample, rng: Mapping[str, np.random.Generator]) -> _Picture:
        """Reads what a sample is made of, composites where it is a composite, and resizes."""
        at_least = self._at_least(sample)
        alpha = self._reader.matte(self.root / sample.alpha, at_least)
        image = self._reader.image(self.root / sample.image, at_least)
        self._check_size(sample, sample.image, image, alpha)
        is_trans = self._is_trans(sample, alpha)
        if not sample.background:
            return self._natural(sample, image, alpha, is_trans, rng["crop"])
        crop = rng["crop"] if self.training and self.settings.keep_aspect else None
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
        return _Picture(small, target, None, hw, is_trans)

    def _natural(
        self,
        sample: Sample,
        image: Source,
        alpha: Source,
        is_trans: bool,
        crop: np.random.Generator,
    ) -> _Picture:
        """Resizes a picture as it is, or with ``keep_aspect`` a part of it."""
        shape = alpha.pixels.shape
        window, size = Window.whole(shape), (self.size, self.size)
        if self.settings.keep_aspect and self.training:
            window = augment.crop_window(extent(alpha.pixels > 0), shape, crop)
        elif self.settings.keep_aspect:
            size = aspect_shape(alpha.hw, self.size, self.settings.size_multiple)
        whole = window.scaled(shape, alpha.hw)  # the window, in pixels of the files
        trimap = None
        if sample.trimap:
            given = self._reader.trimap(self.root / sample.trimap)
            self._check_size(sample, sample.trimap, given, alpha)
            trimap = resize_trimap(whole.cut(given.pixels), size)
        grid = BilinearGrid(window, size)  # of a hundred megapixels, few become floats
        small = grid.combine(pick(image.pixels, grid.rows, grid.columns).astype(np.float32))
        small /= 255  # -> [0, 1]
        target = grid.combine(unit(pick(alpha.pixels, grid.rows, grid.columns)))
        return _Picture(small, target, trimap, (whole.height, whole.width), is_trans)

    def _at_least(self, sample: Sample) -> tuple[int, int]:
        """How many rows and columns of the files a sample needs, if they are reduced."""
        height = width = self.size
        if self.settings.keep_aspect:  # a part of no less than half the picture may be cut out
            height, width = 2 * height, 2 * width
        if sample.is_trans is None:
            height, width = max(height, SIDE), max(width, SIDE)  # the rule's own size
        return height, width

    def _is_trans(self, sample: Sample, alpha: Source) -> bool:
        """Whether the object is transparent; a guess from the alpha is made once."""
        if sample.is_trans is not None:
            return bool(sample.is_trans)
        if sample.alpha not in self._guesses:
            self._guesses[sample.alpha] = is_transparent_alpha(unit(alpha.pixels))
        return self._guesses[sample.alpha]

    def _prompts(
        self, alpha: np.ndarray, trimap: np.ndarray, rng: dict[str, np.random.Generator]
    ) -> dict[str, Prompt]:
        """Draws every prompt there is; training picks one of them a step."""
        knobs, training = self.settings, self.training
        return {
            "mask": mask_prompt(alpha, rng["mask"], knobs.kernel_sizes, knobs.mask_threshold),
            "bbox_mask": box_prompt(alpha, rng["box"], knobs.jitter(training), knobs.box_loosen),
            "point_mask": point_prompt(alpha, rng["point"], knobs.radius(training), knobs.psm),
            "auto_mask": auto_prompt(alpha.shape),
            "trimap": Prompt(trimap, whole_picture()),
        }

    def _check_size(self, sample: Sample, path: str, source: Source, alpha: Source) -> None:
        if source.hw != alpha.hw:
            (h, w), (ah, aw) = source.hw, alpha.hw
            raise DataError(
                f"{self.root / path} has {w}x{h} pixels, but its alpha "
                f"{self.root / sample.alpha} has {aw}x{ah}; the two must agree."
            )
