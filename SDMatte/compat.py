"""Closes the gaps between detectron2 0.6 without its compiled part and today's packages.

Import this module before anything of detectron2 (ruff sorts it there, see pyproject.toml)::

    import SDMatte.compat  # noqa: F401

    from detectron2.config import LazyConfig

It looks for each gap and closes only those that are there, so that an official, compiled build
stays as it is; importing it twice does no harm:

- ``detectron2._C``: release 0.6 imports the compiled operators with its layers. Where they were not
  built, a placeholder takes their place and says so when an operator is used. Newer revisions do
  without by themselves.
- ``PIL.Image.LINEAR``: Pillow 10 removed this name of ``BILINEAR``, a default argument in
  ``detectron2.data.transforms``.
- Warnings of detectron2 and fvcore, at import and at every gather, that no user can act on.

Not closed, because this project does without: ``detectron2.model_zoo`` (needs ``pkg_resources``),
``LazyConfig.to_py`` (needs ``black``), ``launch`` on more than one CPU process and ``AMPTrainer``
without CUDA (0.6 asserts CUDA in both), the evaluators that use ``np.int`` and ``np.float``.
"""

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from pathlib import Path

from PIL import Image

from SDMatte.errors import DependencyError, SDMatteError

__all__ = ["CompiledOpError", "apply"]

_OPS = "detectron2._C"
_NOT_COMPILED = "not compiled (pure-Python installation)"


class CompiledOpError(SDMatteError, AttributeError):
    """An operator of ``detectron2._C`` was asked for, and detectron2 is installed without them."""


class _MissingOps(types.ModuleType):
    """Stands in for ``detectron2._C``; answers detectron2's environment report and nothing else."""

    @staticmethod
    def get_compiler_version() -> str:
        return _NOT_COMPILED

    @staticmethod
    def get_cuda_version() -> str:
        return _NOT_COMPILED

    @staticmethod
    def has_cuda() -> bool:
        return False

    def __getattr__(self, name: str):
        # The import system and inspect probe for dunder names: those are plainly absent.
        if name.startswith("__"):
            raise AttributeError(name)
        raise CompiledOpError(
            f"detectron2's operator {name!r} needs the compiled build of detectron2, and this one "
            "is pure Python; install the official build from its repository to use it."
        )


def apply() -> None:
    """Closes the gaps that are there; importing the module has already done so once.

    Raises:
        DependencyError: detectron2 is not installed, or is older than 0.6.
    """
    locations = _find_detectron2()
    if _OPS not in sys.modules and _needs_placeholder(locations):
        placeholder = _MissingOps(_OPS, "Placeholder: detectron2 is installed in pure Python.")
        # find_spec raises for a loaded module without a spec.
        placeholder.__spec__ = importlib.machinery.ModuleSpec(_OPS, loader=None)
        sys.modules[_OPS] = placeholder
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR
    _silence()


def _find_detectron2() -> list[str]:
    # Looked up, not imported: importing detectron2 takes seconds, and torch and OpenCV with it.
    try:
        spec = importlib.util.find_spec("detectron2")
    except ValueError:  # somebody put a module without a spec in its place
        spec = None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise DependencyError(
            "detectron2 is not installed in this environment: run `bash script/setup.sh`, or "
            f"`{sys.executable} tools/install_detectron2.py` from the repository's root."
        )
    locations = list(spec.submodule_search_locations)
    if not (Path(locations[0]) / "config" / "lazy.py").is_file():
        raise DependencyError(
            f"the detectron2 in {locations[0]} is older than 0.6 and has no LazyConfig: uninstall "
            "it and run `bash script/setup.sh`."
        )
    return locations


def _needs_placeholder(locations: list[str]) -> bool:
    if importlib.machinery.PathFinder.find_spec(_OPS, locations) is not None:
        return False
    # Later than 0.6 (whose version number did not change) the layers import `_C` in a try block
    # and use this module where it is missing.
    return not (Path(locations[0]) / "utils" / "develop.py").is_file()


def _silence() -> None:
    # Both are attributed to torch's own files, so a filter by module cannot name detectron2.
    for message, category in (
        (r"`torch\.jit\.script` is ", FutureWarning),  # decorators in detectron2 and fvcore
        (r"TypedStorage is deprecated", UserWarning),  # detectron2.utils.comm
        (r"`broadcast_buffers` is deprecated", FutureWarning),  # older torch has nothing else
    ):
        warnings.filterwarnings("ignore", message=message, category=category)


apply()
