"""Methods that any table needs as a floor, callable on a batch like the models.

Each takes the batch of the loader and gives alpha ``[B, 1, S, S]`` float32 in [0, 1]. None of
them learns anything; GrabCut and the closed-form solver come from OpenCV and pymatting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from SDMatte.errors import ConfigError, DependencyError, PromptError
from SDMatte.prompts import PROMPT_TYPES, get_prompt_type


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
        self.name = f"{self.prompt.alias} as alpha"

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Gives alpha ``[B, 1, S, S]``."""
        return ((batch[self.prompt.mask_key].float() + 1) / 2).clamp(0, 1)  # [-1, 1] -> [0, 1]


class BoxAsAlpha(PromptAsAlpha):
    """The box, filled."""

    def __init__(self) -> None:
        """Nothing to choose."""
        super().__init__("box")


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
        self.name = f"{self.title} ({self.prompt.alias})"

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

    Outside a box is background for good; a mask is a first guess; of a trimap the known pixels
    stay. Pictures are worked on at a smaller size, since time grows with the pixels.
    """

    title = "GrabCut"
    prompts = ("box", "mask", "trimap")

    def __init__(self, prompt: str = "box", iterations: int = 5, max_side: int = 512) -> None:
        """Chooses the settings.

        Args:
            prompt: box, mask or trimap.
            iterations: Rounds of colour models and cuts.
            max_side: Pictures are shrunk to this, if larger.

        Raises:
            PromptError: GrabCut cannot use that prompt.
            ConfigError: A number is below 1.
        """
        super().__init__(prompt)
        if iterations < 1 or max_side < 1:
            raise ConfigError("GrabCut needs at least 1 iteration and 1 pixel.")
        self.iterations = iterations
        self.max_side = max_side

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
            labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
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
            import pymatting
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


BASELINES = {"prompt": PromptAsAlpha, "grabcut": GrabCut, "closed-form": ClosedForm}
"""Name on the command line -> class, which is made of a prompt's short name."""


def get_baseline(name: str) -> type[PromptAsAlpha] | type[GrabCut] | type[ClosedForm]:
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
