"""Baselines without learning, callable on a batch like the models.

GrabCut comes from OpenCV and the closed-form solver from pymatting.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from SDMatte.errors import DependencyError, PromptError
from SDMatte.images.guided import guided_filter
from SDMatte.prompts.types import PROMPT_TYPES, get_prompt_type
from SDMatte.runtime.numba_cache import load_compiled


class Baseline:
    """Base class of methods that compute one alpha at a time, in numpy."""

    title = ""  # name in messages
    prompts: tuple[str, ...] = ()  # short names of the supported ones

    def __init__(self, prompt: str) -> None:
        """Select a prompt by its published or short name; raise `PromptError` if unsupported."""
        self.prompt = get_prompt_type(prompt)
        if self.prompt.alias not in self.prompts:
            raise PromptError(
                f"{self.title} does not support the prompt {self.prompt.alias!r}, "
                f"only {', '.join(self.prompts)}."
            )

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Compute alpha, float32 ``[B, 1, S, S]`` in [0, 1], for a batch from the loader."""
        images, prompts = batch["image"], batch[self.prompt.mask_key]
        alphas = [
            self.solve(image.transpose(1, 2, 0), prompt[0])  # [3, S, S] -> [S, S, 3]
            for image, prompt in zip(_to_unit(images), _to_unit(prompts), strict=True)
        ]
        return torch.from_numpy(np.stack(alphas)[:, None].astype(np.float32)).to(images.device)

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Compute alpha ``[S, S]`` from image ``[S, S, 3]`` and prompt ``[S, S]`` in [0, 1]."""
        raise NotImplementedError


class PromptBaseline(Baseline):
    """The prompt map itself as alpha."""

    title = "The prompt baseline"
    prompts = tuple(prompt.alias for prompt in PROMPT_TYPES.values())

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Return the prompt."""
        return prompt


class GrabCut(Baseline):
    """OpenCV's GrabCut: binary segmentation with color models, initialized from the prompt.

    The outside of a box, a mask except for a band along its outline, the centers of points, and
    the known pixels of a trimap are fixed. Images are processed at a reduced size, since the time
    grows with the number of pixels.
    """

    title = "GrabCut"
    prompts = ("point", "box", "mask", "trimap")
    iterations = 5  # rounds of color models and cuts
    max_side = 512  # pixels; larger images are reduced
    band = 0.03  # half width of the band along a mask's outline, as a fraction of the longer side

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Segment the image, with the same random seed for every image."""
        height, width = prompt.shape
        scale = min(1.0, self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(np.rint(image * 255).astype(np.uint8), size, None, 0, 0, cv2.INTER_AREA)
        labels = self._label(cv2.resize(prompt, size, interpolation=cv2.INTER_NEAREST))
        inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if inside.all() or not inside.any():
            return prompt  # no pixels for the second color model
        cv2.setRNGSeed(0)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        rectangle, mode = (0, 0, 0, 0), cv2.GC_INIT_WITH_MASK  # the mode ignores the rectangle
        image = np.ascontiguousarray(image[..., ::-1])  # RGB -> BGR
        cv2.grabCut(image, labels, rectangle, background, foreground, self.iterations, mode)
        alpha = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        return cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)

    def _label(self, prompt: np.ndarray) -> np.ndarray:
        """Convert a prompt map to GrabCut's labels, uint8 ``[h, w]``."""
        inside = prompt > 0.5
        if self.prompt.alias == "box":
            labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD)
        elif self.prompt.alias == "mask":
            radius = round(self.band * max(prompt.shape))
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
            core, halo = (f(inside.astype(np.uint8), disc) > 0 for f in (cv2.erode, cv2.dilate))
            labels = np.select(
                [core, inside, halo], [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD
            )
        elif self.prompt.alias == "point":
            labels = np.select(
                [prompt > 0.9, inside], [cv2.GC_FGD, cv2.GC_PR_FGD], default=cv2.GC_PR_BGD
            )
        else:
            labels = np.select(
                [prompt < 0.25, prompt > 0.75], [cv2.GC_BGD, cv2.GC_FGD], default=cv2.GC_PR_FGD
            )
        return labels.astype(np.uint8)


class GuidedGrabCut(GrabCut):
    """GrabCut, refined by a guided filter with the image as guide (He et al. 2010).

    The outside of a box and the known pixels of a trimap are kept. ``radius`` and ``eps`` were
    tuned on photographs and on the sample set, with every prompt.
    """

    title = "GrabCut with guided filter"
    radius = 0.02  # radius of the filter's windows, as a fraction of the longer side
    eps = 1e-4  # variance of colors in [0, 1] below which a window is smoothed

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Segment the image and filter the result."""
        radius = max(1, round(self.radius * max(prompt.shape)))
        alpha = super().solve(image, prompt).astype(np.float64)
        alpha = guided_filter(image.astype(np.float64), alpha, radius, self.eps).clip(0, 1)
        if self.prompt.alias == "box":
            return np.where(prompt > 0.5, alpha, 0)
        if self.prompt.alias == "trimap":
            return np.select([prompt < 0.25, prompt > 0.75], [0, 1], default=alpha)
        return alpha


class ClosedForm(Baseline):
    """Closed-form matting (Levin et al. 2008) from pymatting, which needs a trimap."""

    title = "closed-form"
    prompts = ("trimap",)

    def __init__(self, prompt: str) -> None:
        """Import the solver; raise `DependencyError` if pymatting is not installed."""
        super().__init__(prompt)
        try:
            pymatting = load_compiled(lambda: importlib.import_module("pymatting"))
        except ImportError as error:
            raise DependencyError(
                "The closed-form baseline needs pymatting: pip install pymatting."
            ) from error
        self._estimate = pymatting.estimate_alpha_cf

    def solve(self, image: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Solve for the unknown pixels of the trimap."""
        trimap = np.select([prompt < 0.25, prompt > 0.75], [0.0, 1.0], default=0.5)
        if not ((trimap == 0).any() and (trimap == 1).any() and (trimap == 0.5).any()):
            return prompt  # nothing to solve, or no constraints
        return np.clip(self._estimate(image.astype(np.float64), trimap), 0, 1)


BASELINES: dict[str, type[Baseline]] = {
    "prompt": PromptBaseline,
    "grabcut": GrabCut,
    "grabcut-guided": GuidedGrabCut,
    "closed-form": ClosedForm,
}
"""Classes by their name on the command line."""


def _to_unit(batch: torch.Tensor) -> np.ndarray:
    """Convert ``[B, C, S, S]`` in [-1, 1] to a float32 array in [0, 1]."""
    return ((batch.detach().cpu().float() + 1) / 2).clamp(0, 1).numpy()
