"""Methods that any table needs as a floor, callable on a batch like the models.

Each takes the batch of the loader and gives alpha ``[B, 1, S, S]`` float32 in [0, 1]. None of
them learns anything; GrabCut and the closed-form solver come from OpenCV and pymatting.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from SDMatte.errors import ConfigError, DependencyError, PromptError
from SDMatte.prompts.types import PROMPT_TYPES, get_prompt_type
from SDMatte.runtime.numba_cache import load_compiled


class PromptAsAlpha:
    """The prompt's own map as alpha: what one has without any matting.

    Attributes:
        prompts: Short names of the prompts that it can use.
    """

    prompts: tuple[str, ...] = tuple(prompt.alias for prompt in PROMPT_TYPES.values())

    def __init__(self, prompt: str) -> None:
        """Chooses the prompt.

        Args:
            prompt: Published or short name.

        Raises:
            PromptError: There is no such prompt.
        """
        self.prompt = get_prompt_type(prompt)

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Gives alpha ``[B, 1, S, S]``."""
        return ((batch[self.prompt.mask_key].float() + 1) / 2).clamp(0, 1)  # [-1, 1] -> [0, 1]


class _OneByOne:
    """A method that works on numpy pictures, one at a time.

    Attributes:
        prompts: Short names of the prompts that it can use.
    """

    title = ""
    prompts: tuple[str, ...] = ()

    def __init__(self, prompt: str) -> None:
        self.prompt = get_prompt_type(prompt)
        if self.prompt.alias not in self.prompts:
            raise PromptError(
                f"{self.title} cannot use the prompt {self.prompt.alias!r}, "
                f"only {', '.join(self.prompts)}."
            )

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Gives alpha ``[B, 1, S, S]``."""
        images, prompts = batch["image"], batch[self.prompt.mask_key]
        alphas = []
        for image, prompt in zip(_to_unit(images), _to_unit(prompts), strict=True):
            alphas.append(self.solve(image.transpose(1, 2, 0), prompt[0]))  # [3, S, S] -> [S, S, 3]
        return torch.from_numpy(np.stack(alphas)[:, None].astype(np.float32)).to(images.device)

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Gives alpha ``[S, S]`` from ``[S, S, 3]`` and ``[S, S]``, all in [0, 1]."""
        raise NotImplementedError


class GrabCut(_OneByOne):
    """OpenCV's GrabCut: binary segmentation with colour models, started from the prompt.

    Outside a box is background for good; of a mask only a band along its outline is open; the
    middles of points are foreground for good and all else is open; of a trimap the known pixels
    stay. Pictures are worked on at a smaller size, since time grows with the pixels.
    """

    title = "GrabCut"
    prompts = ("point", "box", "mask", "trimap")

    def __init__(
        self, prompt: str = "box", iterations: int = 5, max_side: int = 512, band: float = 0.03
    ) -> None:
        """Chooses the settings.

        Args:
            prompt: point, box, mask or trimap.
            iterations: Rounds of colour models and cuts.
            max_side: Pictures are shrunk to this, if larger.
            band: How far a mask's outline may be wrong, as a share of the longer side.

        Raises:
            PromptError: GrabCut cannot use that prompt.
            ConfigError: A number is too small.
        """
        super().__init__(prompt)
        if iterations < 1 or max_side < 1 or band < 0:
            raise ConfigError("GrabCut needs at least 1 iteration, 1 pixel and no band below 0.")
        self.iterations = iterations
        self.max_side = max_side
        self.band = band

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """See the base class; the colour models' random start is the same for every picture."""
        height, width = prompt.shape
        scale = min(1.0, self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(np.rint(image * 255).astype(np.uint8), size, None, 0, 0, cv2.INTER_AREA)
        small = cv2.resize(prompt, size, interpolation=cv2.INTER_NEAREST)
        inside = small > 0.5
        if self.prompt.alias == "box":
            labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD)
        elif self.prompt.alias == "mask":
            reach = round(self.band * max(size))
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
            core, halo = (f(inside.astype(np.uint8), disc) > 0 for f in (cv2.erode, cv2.dilate))
            labels = np.select(
                [core, inside, halo], [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD
            )
        elif self.prompt.alias == "point":
            labels = np.select(
                [small > 0.9, inside], [cv2.GC_FGD, cv2.GC_PR_FGD], default=cv2.GC_PR_BGD
            )
        else:
            labels = np.select(
                [small < 0.25, small > 0.75], [cv2.GC_BGD, cv2.GC_FGD], default=cv2.GC_PR_FGD
            )
        labels = labels.astype(np.uint8)
        foreground = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if foreground.all() or not foreground.any():
            return prompt  # no second colour model to tell it from
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(
            np.ascontiguousarray(image[..., ::-1]),  # RGB -> BGR
            labels,
            None,
            *models,
            self.iterations,
            cv2.GC_INIT_WITH_MASK,
        )
        alpha = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        return cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)


class GuidedGrabCut(GrabCut):
    """GrabCut with guided filter: its segmentation feathered by the picture (He et al. 2010).

    What is known for good, outside a box and in a trimap, stays. The default settings were the best
    or close to it, of some, on real pictures and on samples, with every prompt.
    """

    title = "GrabCut with guided filter"

    def __init__(self, prompt: str = "box", radius: float = 0.02, eps: float = 1e-4) -> None:
        """Chooses the settings.

        Args:
            prompt: point, box, mask or trimap.
            radius: Of the filter's windows, as a share of the picture's longer side.
            eps: Variance of colours, of [0, 1], below which a window is smoothed.

        Raises:
            PromptError: GrabCut cannot use that prompt.
            ConfigError: A number is not above 0.
        """
        super().__init__(prompt)
        if not (radius > 0 and eps > 0):
            raise ConfigError("The guided filter needs a radius and an eps above 0.")
        self.radius = radius
        self.eps = eps

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """See the base class."""
        radius = max(1, round(self.radius * max(prompt.shape)))
        alpha = guided_filter(image, super().solve(image, prompt), radius, self.eps).clip(0, 1)
        if self.prompt.alias == "box":
            return np.where(prompt > 0.5, alpha, 0)
        if self.prompt.alias == "trimap":
            return np.select([prompt < 0.25, prompt > 0.75], [0, 1], default=alpha)
        return alpha


def guided_filter(guide: np.ndarray, source: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Filters a map so that its edges follow those of a picture.

    In each window the map is taken for a linear function of the colours; a pixel gets the mean
    over the windows that it is in. K. He, J. Sun, X. Tang, "Guided Image Filtering", ECCV 2010,
    equations 11, 14 and 15 (OpenCV has it in its contributed modules only).

    Args:
        guide: Picture ``[H, W, 3]``, floating in [0, 1].
        source: Map ``[H, W]``, floating.
        radius: Windows are ``2 * radius + 1`` wide and high, mirrored at the border.
        eps: Keeps the functions flat where colours vary by less than its root.

    Returns:
        float64 ``[H, W]``, which may reach a little beyond the range of ``source``.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    guide = np.ascontiguousarray(guide, np.float64)
    source = np.ascontiguousarray(source, np.float64)
    mean_guide, mean_source = mean(guide), mean(source)  # [H, W, 3], [H, W]
    covariance = np.empty((*source.shape, 3, 3))
    for i, j in np.ndindex(3, 3):
        covariance[..., i, j] = mean(guide[..., i] * guide[..., j])
        covariance[..., i, j] -= mean_guide[..., i] * mean_guide[..., j]
    covariance += eps * np.eye(3)
    with_source = mean(guide * source[..., None]) - mean_guide * mean_source[..., None]
    slope = np.linalg.solve(covariance, with_source[..., None])[..., 0]  # [H, W, 3]
    offset = mean_source - np.sum(slope * mean_guide, axis=2)
    return np.sum(mean(slope) * guide, axis=2) + mean(offset)


class ClosedForm(_OneByOne):
    """pymatting's closed-form matting (Levin et al. 2008), which needs a trimap."""

    title = "closed-form"
    prompts = ("trimap",)

    def __init__(self, prompt: str = "trimap") -> None:
        """Finds the solver.

        Args:
            prompt: trimap.

        Raises:
            PromptError: It is another prompt.
            DependencyError: pymatting is not installed.
        """
        super().__init__(prompt)
        try:
            pymatting = load_compiled(lambda: importlib.import_module("pymatting"))
        except ImportError as error:
            raise DependencyError(
                "The closed-form baseline needs pymatting: pip install pymatting."
            ) from error
        self._estimate = pymatting.estimate_alpha_cf

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """See the base class."""
        trimap = np.select([prompt < 0.25, prompt > 0.75], [0.0, 1.0], default=0.5)
        if not ((trimap == 0).any() and (trimap == 1).any() and (trimap == 0.5).any()):
            return prompt  # nothing to solve, or nothing to start from
        return np.clip(self._estimate(image.astype(np.float64), trimap), 0, 1)


BASELINES: dict[str, type[PromptAsAlpha] | type[_OneByOne]] = {
    "prompt": PromptAsAlpha,
    "grabcut": GrabCut,
    "grabcut-guided": GuidedGrabCut,
    "closed-form": ClosedForm,
}
"""Name on the command line -> class, which is made of a prompt's short name."""


def get_baseline(name: str) -> type[PromptAsAlpha] | type[_OneByOne]:
    """Looks a baseline up by name.

    Raises:
        ConfigError: There is no such baseline.
    """
    if name not in BASELINES:
        raise ConfigError(f"Unknown baseline {name!r}; known are {', '.join(BASELINES)}.")
    return BASELINES[name]


def _to_unit(batch: torch.Tensor) -> np.ndarray:
    """``[B, C, S, S]`` in [-1, 1] to a float32 array in [0, 1]."""
    return ((batch.detach().cpu().float() + 1) / 2).clamp(0, 1).numpy()
