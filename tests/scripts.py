"""Load the files of script/ and tools/, which are not packages, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load_script(name: str) -> ModuleType:
    """Import a script, with the folder of its neighbours on the path meanwhile."""
    path = next(p for d in ("script", "tools") if (p := ROOT / d / f"{name}.py").is_file())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
