"""SDMatte: interactive image matting with a one-step Stable Diffusion.

The public names are imported on first use, so that importing the package is fast::

    from SDMatte import MattePredictor
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from SDMatte.inference.predictor import MattePredictor
    from SDMatte.inference.result import MatteResult

__all__ = ["MattePredictor", "MatteResult"]
_MODULES = {"MattePredictor": "predictor", "MatteResult": "result"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"SDMatte.inference.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
