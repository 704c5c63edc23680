"""Patches for detectron2 0.6 without its compiled part, next to today's packages.

Import this module before detectron2 (ruff sorts it so, see pyproject.toml)::

    import SDMatte.compat  # noqa: F401

    from detectron2.config import LazyConfig

Only what is missing is patched, so an official, compiled build is unchanged:

- ``detectron2._C``: release 0.6 imports the compiled operators with its layers. A placeholder
  replaces them and raises an error when one is used. Newer revisions do not need it.
- ``PIL.Image.LINEAR``: removed in Pillow 10, but a default argument in
  ``detectron2.data.transforms``.
- Warnings of detectron2 and fvcore that users cannot act on.

Not patched, because this project does not use them: ``detectron2.model_zoo`` (needs
``pkg_resources``), ``LazyConfig.to_py`` (needs ``black``), ``launch`` on several CPU processes and
``AMPTrainer`` without CUDA, and evaluators that use ``np.int`` and ``np.float``.
"""

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from pathlib import Path

from PIL import Image

from SDMatte.errors import DependencyError, SDMatteError

_OPS = "detectron2._C"
_NOT_COMPILED = "not compiled (pure-Python installation)"


class CompiledOpError(SDMatteError, AttributeError):
    """A compiled operator of detectron2 was used, but the installation has none."""


class _MissingOps(types.ModuleType):
    """Placeholder for ``detectron2._C``; only answers detectron2's environment report."""

    get_compiler_version = get_cuda_version = staticmethod(lambda: _NOT_COMPILED)
    has_cuda = staticmethod(lambda: False)

    def __getattr__(self, name: str):
        # The import system and inspect probe for dunder names.
        if name.startswith("__"):
            raise AttributeError(name)
        raise CompiledOpError(
            f"detectron2's operator {name!r} needs the compiled build, and this one is pure "
            "Python: install the official build from its repository."
        )


def apply() -> None:
    """Apply the patches; importing this module calls this once.

    Raises:
        DependencyError: detectron2 is not installed or is older than 0.6.
    """
    folder = _find_detectron2()
    compiled = importlib.machinery.PathFinder.find_spec(_OPS, [str(folder)]) is not None
    # Revisions after 0.6 (with the same version number) have this module and import `_C` in a try
    # block.
    newer = (folder / "utils" / "develop.py").is_file()
    if _OPS not in sys.modules and not compiled and not newer:
        placeholder = _MissingOps(_OPS, "Placeholder: detectron2 is installed in pure Python.")
        # find_spec raises for a loaded module without a spec.
        placeholder.__spec__ = importlib.machinery.ModuleSpec(_OPS, loader=None)
        sys.modules[_OPS] = placeholder
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.Resampling.BILINEAR  # type: ignore[attr-defined]
    # The warnings are attributed to torch's files, so detectron2 cannot be filtered by module.
    for message, category in (
        (r"`torch\.jit\.script` is ", FutureWarning),  # decorators in detectron2 and fvcore
        (r"TypedStorage is deprecated", UserWarning),  # detectron2.utils.comm
        (r"`broadcast_buffers` is deprecated", FutureWarning),  # older torch needs it
    ):
        warnings.filterwarnings("ignore", message=message, category=category)


def _find_detectron2() -> Path:
    # Importing detectron2 would take seconds, with torch and OpenCV.
    try:
        spec = importlib.util.find_spec("detectron2")
    except ValueError:  # a module without a spec
        spec = None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise DependencyError(
            "detectron2 is not installed in this environment: run `bash script/setup.sh`, or "
            f"`{sys.executable} tools/install_detectron2.py` from the repository's root."
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / "config" / "lazy.py").is_file():
        raise DependencyError(
            f"The detectron2 in {folder} is older than 0.6 and has no LazyConfig: uninstall "
            "it and run `bash script/setup.sh`."
        )
    return folder


apply()
