"""SDMatte.compat, and imports of everything that this project uses from detectron2."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import SDMatte.compat

import pytest

from SDMatte.errors import SDMatteError

ROOT = Path(__file__).resolve().parents[2]


def project_files():
    for folder in ("SDMatte", "configs", "script", "tools", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted(ROOT.glob("*.py"))


def imports(path):
    """Absolute imports of a file as (module, names); no names for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, tuple(alias.name for alias in node.names)


def run(code, *argv, path=()):
    """Run code in a new interpreter, with folders first on its path."""
    paths = [*map(str, path), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", textwrap.dedent(code)]
        + list(map(str, argv)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,  # importing torch takes minutes on a busy machine
    )


# --- the modules


def test_everything_used_from_detectron2_imports(tmp_path):
    wanted = {}
    for path in project_files():
        for module, names in imports(path):
            if module.split(".")[0] == "detectron2":
                wanted.setdefault(module, set()).update(names)
    result = run(
        """
        import importlib, json, sys
        import SDMatte.compat
        for module, names in json.loads(sys.argv[1]).items():
            loaded = importlib.import_module(module)
            for name in names:
                if not hasattr(loaded, name):
                    importlib.import_module(f"{module}.{name}")

        # In this process, since it sets up loggers and seeds global generators.
        from detectron2.config import LazyConfig
        from detectron2.engine import default_argument_parser, default_setup
        from omegaconf import OmegaConf
        cfg = OmegaConf.create({"train": {"output_dir": sys.argv[2], "seed": 0}})
        default_setup(cfg, default_argument_parser().parse_args([]))
        """,
        json.dumps({module: sorted(names) for module, names in wanted.items()}),
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "Environment info" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "config.yaml").is_file()


def test_the_package_loads_compat_before_detectron2():
    for path in sorted((ROOT / "SDMatte").rglob("*.py")):
        modules = [module for module, _ in imports(path)]
        if not any(module.split(".")[0] == "detectron2" for module in modules):
            continue
        packages = [p / "__init__.py" for p in path.parents if (p / "__init__.py").is_file()]
        assert any(
            "SDMatte.compat" in [module, *(f"{module}.{name}" for name in names)]
            for file in [path, *packages]
            for module, names in imports(file)
        ), f"{path.relative_to(ROOT)} imports detectron2 without SDMatte.compat"


# --- the patches


@pytest.fixture
def fake(tmp_path):
    """Create a folder with a detectron2 package of empty files."""

    def make(*files):
        for name in ("__init__.py", *files):
            file = tmp_path / "detectron2" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return tmp_path

    return make


def test_missing_operators_are_named(fake):
    result = run(
        """
        import SDMatte.compat
        from SDMatte.errors import SDMatteError
        from detectron2 import _C
        import detectron2._C as same
        assert same is _C and not hasattr(_C, "roi_align") and not _C.has_cuda()
        try:
            _C.deform_conv_forward
        except SDMatteError as error:
            print(error)
        SDMatte.compat.apply()
        from detectron2 import _C as again
        assert again is _C
        """,
        path=[fake("config/lazy.py")],
    )
    assert result.returncode == 0, result.stderr
    assert "'deform_conv_forward' needs the compiled build" in result.stdout


@pytest.mark.parametrize("file", ["_C.py", "utils/develop.py"])
def test_no_placeholder_where_none_is_needed(fake, file):
    result = run(
        """
        import sys
        import SDMatte.compat
        assert "detectron2._C" not in sys.modules
        """,
        path=[fake("config/lazy.py", file)],
    )
    assert result.returncode == 0, result.stderr


def test_removed_pillow_names_are_restored():
    from PIL import Image

    assert Image.LINEAR == Image.BILINEAR


@pytest.mark.parametrize("module", ["None", "types.ModuleType('detectron2')"])
def test_without_detectron2(module):
    result = run(
        f"""
        import sys, types
        sys.modules["detectron2"] = {module}
        from SDMatte.errors import DependencyError
        try:
            import SDMatte.compat
        except DependencyError as error:
            print(error)
        """
    )
    assert result.returncode == 0, result.stderr
    assert "not installed" in result.stdout and "script/setup.sh" in result.stdout


def test_with_an_outdated_detectron2(fake):
    result = run("import SDMatte.compat", path=[fake("config/config.py")])
    assert "DependencyError: The detectron2 in" in result.stderr
    assert "older than 0.6" in result.stderr


def test_apply_twice_is_apply_once():
    before = sys.modules.get("detectron2._C")
    SDMatte.compat.apply()
    assert sys.modules.get("detectron2._C") is before
    assert issubclass(SDMatte.compat.CompiledOpError, SDMatteError)
