"""Loads the scripts, which are no package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "script"


def load_script(name: str) -> ModuleType:
    """Imports a script, with the folder of its neighbours on the path meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT))
        spec = importlib.util.spec_from_file_location(name, SCRIPT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
