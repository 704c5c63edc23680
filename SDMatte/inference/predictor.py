"""Mattes of objects in pictures: encode a picture once, then ask with any number of prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from SDMatte.errors import ConfigError, DataError, PromptError
from SDMatte.images.arrays import flatten, read_pixels
from SDMatte.images.resize import aspect_shape, resize_alpha, resize_bilinear, to_tensor
from SDMatte.inference.loading import InferenceDefaults, find_model, offload_model
from SDMatte.inference.result import MatteResult
from SDMatte.inference.tiles import refine_with_tiles
from SDMatte.modeling import SDMatte
from SDMatte.prompts.maps import extent
from SDMatte.prompts.pixels import PixelPrompt, read_prompts
from SDMatte.prompts.types import PROMPT_TYPES, get_prompt_type
from SDMatte.runtime.devices import choose_device, release_memory

_LONGEST = 16
# From so many pixels of a batch on, freed memory is given back before the decoder needs its own;
# below, it is little, and to get it anew takes longer than it is worth.
_LARGE = 2**20
_PREDICT_KEYS = ("box", "points", "mask", "trimap", "transparent")


@dataclass(frozen=True)
class EncodedImage:
    """An image and what the autoencoder made of it, to be used with any number of prompts.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB; gray where the image is transparent all through.
        latent: ``[1, C, h, w]``, on the predictor's device.
        size: Height and width at which the model saw it.
        opacity: The image's own alpha, float32 ``[H, W]`` in [0, 1]; None where it is opaque.
    """

    image: np.ndarray
    latent: torch.Tensor
    size: tuple[int, int]
    opacity: np.ndarray | None = None


class _Task(NamedTuple):
    """One matte that is to be made."""

    encoded: EncodedImage
    prompt: PixelPrompt
    transparent: bool


class MattePredictor:
    """Predicts mattes interactively.

    Example::

        predictor = MattePredictor.from_pretrained("LongfeiHuang/SDMatte")
        predictor.set_image("photo.jpg")
        result = predictor.predict(box=(10, 20, 300, 400))
        result.alpha  # float32 [H, W] in [0, 1]

    Args:
        model: An `SDMatte`, used on the device that it is on; it is set to evaluation mode.
        resolution: Side of the square that the model sees a picture as, a multiple of the model's
            ``size_divisor``. None: what the model wants, see ``defaults``.
        keep_aspect: Show pictures to the model in their own proportions, with about as many pixels
            as the square has (longer ones than 16 to 1 are squashed to that). The published
            models were trained and tested on squares. None: what the model wants.
        prompts: Short names of the prompts that the model may be asked with. None: those that it
            was trained with (its ``aux_input_list``), also ``auto`` if boxes are among them (it
            is a box around everything), and ``trimap`` if masks are.
        batch_size: How many mattes are computed at a time.
        defaults: How the model wants its pictures.
        device: Where to compute, if that is not where the model is: of one that is offloaded.
        progress: Count the tiles of ``refine="tiles"`` on standard error.

    Raises:
        ConfigError: A setting cannot be.
    """

    def __init__(
        self,
        model: SDMatte,
        *,
        resolution: int | None = None,
        keep_aspect: bool | None = None,
        prompts: Iterable[str] | None = None,
        batch_size: int = 4,
        defaults: InferenceDefaults | None = None,
        device: torch.device | None = None,
        progress: bool = False,
    ):
        defaults = defaults or InferenceDefaults()
        self.model = model.eval()
        self.device = device or model.unet.device
        self.resolution = defaults.resolution if resolution is None else resolution
        self.keep_aspect = defaults.keep_aspect if keep_aspect is None else keep_aspect
        self.batch_size = batch_size
        self.progress = progress
        steps = {"resolution": model.size_divisor, "batch_size": 1}
        for name, step in steps.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % step:
                raise ConfigError(f"{name} must be a multiple of {step} above 0; got {value!r}.")
        self.point_radius = defaults.point_radius * self.resolution / defaults.resolution
        self.prompts = _known_prompts(model) if prompts is None else _named_prompts(prompts)
        self._current: EncodedImage | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        resolution: int | None = None,
        keep_aspect: bool | None = None,
        prompts: Iterable[str] | None = None,
        batch_size: int = 4,
        offload: bool = False,
        progress: bool = False,
        **arguments: Any,
    ) -> "MattePredictor":
        """Loads a model, published or trained here.

        Args:
            path_or_hub_id: A folder or hub id with component configs and a checkpoint beside them
                (``LongfeiHuang/SDMatte``, ``LongfeiHuang/LiteSDMatte``, or what
                ``save_pretrained`` writes), the folder of a training run, or the checkpoint file
                in one of these.
            checkpoint: Which of the folder's checkpoints, ``SDMatte_plus.pth`` for SDMatte*.
            device: ``"auto"``, or a device's name; see `SDMatte.runtime.devices.choose_device`.
            dtype: ``"auto"``, or a type; see `SDMatte.runtime.devices.choose_dtype`.
            resolution: See `MattePredictor`.
            keep_aspect: See `MattePredictor`.
            prompts: See `MattePredictor`.
            batch_size: See `MattePredictor`.
            offload: For GPUs too small for the whole model: only the part that computes is
                there.
            progress: See `MattePredictor`.
            **arguments: Of the model's constructor, in place of those saved with it.

        Raises:
            CheckpointError: The model is not there, or does not fit.
            ConfigError: A setting cannot be.
        """
        device = choose_device(device)
        source = find_model(path_or_hub_id, checkpoint)
        model = source.load(device, dtype, **arguments)
        if offload:
            offload_model(model, device)
        else:
            model.to(device)
        model.release_text_encoder()  # there are no captions here
        return cls(
            model,
            resolution=resolution,
            keep_aspect=keep_aspect,
            prompts=prompts,
            batch_size=batch_size,
            defaults=source.defaults,
            device=device,
            progress=progress,
        )

    def set_image(self, image: Any, *, ignore_alpha: bool = False) -> EncodedImage:
        """Encode an image, which the next calls of `predict` are about.

        What is transparent in it stays so: the model sees the image on mid-gray, mattes never
        exceed the image's own alpha, and colors under alpha 0 show nowhere.

        Args:
            image: A path, a Pillow image, an array or a tensor; see
                `SDMatte.images.arrays.read_pixels`.
            ignore_alpha: Take the colors as they are stored, and the image as opaque.

        Returns:
            The encoded image: for ``predict(..., image=...)``, if several are in use.

        Raises:
            DataError: It is not an image.
        """
        self._current = None  # an image that cannot be read leaves none behind
        self._current = self.encode(image, ignore_alpha=ignore_alpha)
        return self._current

    def encode(self, image: Any, *, ignore_alpha: bool = False) -> EncodedImage:
        """Encode an image as `set_image` does, and leave the one that is set alone."""
        colors, opacity = read_pixels(image, ignore_alpha)
        encoded = self._encode(flatten(colors, opacity), self._model_size(colors.shape))
        return replace(encoded, image=colors, opacity=opacity)

    def predict(
        self,
        *,
        box: Any = None,
        points: Any = None,
        mask: Any = None,
        trimap: Any = None,
        transparent: bool | None = None,
        refine: str | None = None,
        image: EncodedImage | None = None,
    ) -> MatteResult | list[MatteResult]:
        """Predicts the matte of what a prompt points at; without a prompt, of what stands out.

        All coordinates are in pixels of the image. What does not fit is refused, not clipped.

        Args:
            box: x0, y0, x1, y1, the edges of a box, from 0 to width and height; or a list of
                boxes. Fractions of the size are refused.
            points: One to ten (x, y) on the object.
            mask: ``[H, W]``, roughly the object: bool, 0 and 1, 0 to 255, or floating point in
                [0, 1]; or a list of masks. See `SDMatte.prompts.pixels.read_prompts`.
            trimap: ``[H, W]``: 0 background, 128 unknown, 255 foreground, or 0, 1, 2; or a list of
                trimaps.
            transparent: Whether the object is transparent (glass, smoke); None: it is not.
            refine: ``"tiles"``: a second pass over the edges at full resolution; see
                `SDMatte.inference.tiles`.
            image: An earlier picture; None: the last that was set.

        Returns:
            The result; of a list, a list of results.

        Raises:
            PromptError: The prompt does not fit the picture or the model, or there is no picture.
            DataError: ``image`` is something else.
            ConfigError: ``refine`` is unknown, or ``dtype`` is too coarse for the model.
        """
        encoded = self._current if image is None else image
        if encoded is None:
            raise PromptError("There is no picture to predict on: call set_image first.")
        if not isinstance(encoded, EncodedImage):
            raise DataError("image is what encode or set_image gave; other pictures go there.")
        prompts, many = self._read_prompts(
            encoded, box=box, points=points, mask=mask, trimap=trimap
        )
        tasks = [_Task(encoded, prompt, _opacity(transparent)) for prompt in prompts]
        results = self._run(tasks, refine)
        return results if many else results[0]

    def predict_batch(
        self,
        images: Sequence[Any],
        prompts: Sequence[Mapping[str, Any]],
        refine: str | None = None,
        *,
        ignore_alpha: bool = False,
    ) -> list[MatteResult]:
        """Predict one matte of each of several images, in batches.

        Args:
            images: As `set_image` takes them; the image set there is left alone.
            prompts: For each picture the arguments of `predict`, such as
                ``{"box": (10, 20, 300, 400)}``; one box, mask or trimap each.
            refine: See `predict`.
            ignore_alpha: See `set_image`.

        Returns:
            The results, in order.

        Raises:
            DataError: Something is no picture.
            PromptError: A prompt does not fit its picture, or their numbers differ.
            ConfigError: See `predict`.
        """
        if len(images) != len(prompts):
            raise PromptError(f"There are {len(images)} pictures and {len(prompts)} prompts.")
        tasks = []
        for image, given in zip(images, prompts, strict=True):
            if not isinstance(given, Mapping) or not set(given) <= set(_PREDICT_KEYS):
                raise PromptError(
                    f"A prompt of a batch is a mapping with {', '.join(_PREDICT_KEYS)}; got "
                    f"{given!r:.80}."
                )
            given, encoded = dict(given), self.encode(image, ignore_alpha=ignore_alpha)
            transparent = _opacity(given.pop("transparent", None))
            read, many = self._read_prompts(encoded, **given)
            if many:
                raise PromptError("A prompt of a batch is one box, mask or trimap, not a list.")
            tasks.append(_Task(encoded, read[0], transparent))
        return self._run(tasks, refine)

    def _read_prompts(self, encoded: EncodedImage, **given) -> tuple[list[PixelPrompt], bool]:
        prompts, many = read_prompts(encoded.image.shape[:2], **given)
        alias = prompts[0].kind.alias
        if alias not in self.prompts:
            raise PromptError(
                f"This model was not trained with the {alias} prompt, so it cannot be asked with "
                f"it; it takes {', '.join(self.prompts)}."
            )
        return prompts, many

    def _encode(self, image: np.ndarray, size: tuple[int, int]) -> EncodedImage:
        small = resize_bilinear(image, size) / np.float32(255)  # [0, 255] -> [0, 1]
        latent = self.model.encode(to_tensor(small)[None].to(self.device))  # [1, C, h, w]
        return EncodedImage(image, latent, size)

    def _model_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width at which the model sees a picture of a shape."""
        if not self.keep_aspect:
            return self.resolution, self.resolution
        height, width = shape[:2]
        proportions = (min(height, _LONGEST * width), min(width, _LONGEST * height))
        return aspect_shape(proportions, self.resolution, self.model.size_divisor)

    def _run(self, tasks: Sequence[_Task], refine: str | None) -> list[MatteResult]:
        if refine is not None and refine != "tiles":
            raise ConfigError(f"refine is None or 'tiles'; got {refine!r}.")
        results = []
        for task, small in zip(tasks, self._infer(tasks), strict=True):
            image, opacity = task.encoded.image, task.encoded.opacity
            if refine is not None:
                # How many there are shows only on the way.
                with tqdm(unit="tile", leave=False, disable=not self.progress) as bar:
                    predict = partial(self._predict_crops, transparent=task.transparent, bar=bar)
                    alpha = refine_with_tiles(
                        flatten(image, opacity),
                        small,
                        predict,
                        self.resolution,
                        self.batch_size,
                    )
            else:
                alpha = resize_alpha(small, image.shape[:2])
            if opacity is not None:
                alpha = np.minimum(alpha, opacity)
            results.append(MatteResult(image, alpha, task.prompt.kind.alias, opacity))
        return results

    def _infer(self, tasks: Sequence[_Task]) -> list[np.ndarray]:
        """Runs the model: float32 ``[h, w]`` in [0, 1] for each task, at the model's size."""
        groups: dict[tuple, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault((task.prompt.kind.alias, task.encoded.size), []).append(index)
        mattes: dict[int, np.ndarray] = {}
        for indices in groups.values():
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                mattes |= zip(batch, self._infer_batch([tasks[i] for i in batch]), strict=True)
        return [mattes[index] for index in range(len(tasks))]

    @torch.no_grad()
    def _infer_batch(self, tasks: Sequence[_Task]) -> np.ndarray:
        """Runs the model on tasks of one kind and size: float32 ``[B, h, w]`` in [0, 1]."""
        size, kind = tasks[0].encoded.size, tasks[0].prompt.kind
        drawn = [task.prompt.draw(size, self.point_radius) for task in tasks]
        latent, _ = self.model.predict_latent(
            torch.cat([task.encoded.latent for task in tasks]),
            torch.stack([to_tensor(prompt.mask) for prompt in drawn]).to(self.device),
            torch.from_numpy(np.stack([prompt.coords for prompt in drawn])).to(self.device),
            kind,
            is_trans=torch.tensor([int(task.transparent) for task in tasks]),
        )
        if len(tasks) * size[0] * size[1] >= _LARGE:
            release_memory()
        alpha = self.model.decode(latent)[:, 0].cpu().numpy()  # [B, h, w]
        if not np.isfinite(alpha).all():
            raise ConfigError(
                f"The model's values overflow in {self.model.unet.dtype}: use dtype=float32, or "
                f"bfloat16 where the device has it."
            )
        return alpha

    def _predict_crops(
        self,
        crops: Sequence[np.ndarray],
        mattes: Sequence[np.ndarray],
        transparent: bool,
        bar: tqdm,
    ) -> list[np.ndarray]:
        """Predicts parts of a picture, prompted with what is known of their mattes."""
        divisor = self.model.size_divisor
        tasks = []
        for crop, matte in zip(crops, mattes, strict=True):
            height, width = (-(-n // divisor) * divisor for n in crop.shape[:2])
            encoded = self._encode(crop, (height, width))
            tasks.append(_Task(encoded, self._prompt_of_matte(matte), transparent))
        pairs = zip(self._infer(tasks), crops, strict=True)
        bar.update(len(crops))
        return [resize_alpha(small, crop.shape[:2]) for small, crop in pairs]

    def _prompt_of_matte(self, matte: np.ndarray) -> PixelPrompt:
        """Asks for what a matte shows: with a mask, or a box if the model knows no masks."""
        if "mask" in self.prompts:
            return PixelPrompt(get_prompt_type("mask"), matte.shape, matte)
        x0, y0, x1, y1 = extent(matte >= min(0.5, float(matte.max())))
        box = np.array([x0, y0, x1 + 1, y1 + 1], np.float64)
        return PixelPrompt(get_prompt_type("box"), matte.shape, box)


def _opacity(transparent: Any) -> bool:
    if transparent is not None and not isinstance(transparent, bool | np.bool_):
        raise PromptError(f"transparent is True, False or None; got {transparent!r}.")
    return bool(transparent)


def _known_prompts(model: SDMatte) -> tuple[str, ...]:
    trained = {PROMPT_TYPES[name].alias for name in model.aux_input_list}
    more = {"auto"} if "box" in trained else set()
    more |= {"trimap"} if "mask" in trained else set()
    return tuple(kind.alias for kind in PROMPT_TYPES.values() if kind.alias in trained | more)


def _named_prompts(names: Iterable[str]) -> tuple[str, ...]:
    known = tuple(dict.fromkeys(get_prompt_type(name).alias for name in names))
    if not known:
        raise ConfigError("prompts names none: the model could not be asked.")
    return known
