"""The set-up scripts, the requirements and the installer of detectron2, without network."""

import ast
import functools
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SCRIPTS = sorted((ROOT / "script").glob("*.sh"))


# --- scripts


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shell_scripts_are_strict(path):
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    if path.name == "common.sh":  # sourced
        assert not lines[0].startswith("#!")
        return
    assert lines[0] == "#!/usr/bin/env bash"
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert os.access(path, os.X_OK)


def test_ci_runs_the_tests_and_nothing_else():
    code = (ROOT / ".ci" / "run").read_text().splitlines()
    assert code[3:] == ["bash script/run_tests.sh", "bash script/run_tests.sh -m slow"]
    assert [line.split()[0] for line in code[1:3]] == ["set", "cd"]


@pytest.mark.parametrize("name", ["train", "test", "quickstart"])
def test_scripts_pass_their_arguments_on(name):
    assert (ROOT / "script" / f"{name}.sh").read_text().rstrip().endswith(f'SDMatte {name} "$@"')


# --- requirements


def read_requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


REQUIREMENTS = read_requirements("requirements.txt")
DEVELOPMENT = read_requirements("requirements-dev.txt")
FINETUNE = read_requirements("requirements-finetune.txt")
DEMO = read_requirements("requirements-demo.txt")
ONNX = read_requirements("requirements-onnx.txt")
TOOLS = [Requirement("OpenEXR")]  # installed by hand, for tools/make_small_data.py
CONSTRAINTS = read_requirements("constraints.txt")


class RequiredImports(ast.NodeVisitor):
    """Top-level names of a file's absolute imports, except those in a `try` for ImportError."""

    def __init__(self, path):
        self.names = set()
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_Import(self, node):
        self.names |= {alias.name.split(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node):
        if node.level == 0:
            self.names.add(node.module.split(".")[0])

    def visit_Try(self, node):
        handled = " ".join(ast.unparse(handler.type or node) for handler in node.handlers)
        if "ImportError" not in handled and "ModuleNotFoundError" not in handled:
            self.generic_visit(node)


@functools.cache
def distributions_by_import():
    """Map top-level names to distributions, also of those without a top_level.txt."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        for path in distribution.files or ():
            top = path.parts[0] if len(path.parts) > 1 else path.name.partition(".")[0]
            found.setdefault(top, set()).add(name)
    return found


@pytest.mark.parametrize(
    "folder, required",
    [
        ("SDMatte", REQUIREMENTS + DEMO + ONNX),
        ("configs", REQUIREMENTS),
        ("script", REQUIREMENTS),
        ("tools", REQUIREMENTS + TOOLS),
        ("examples", REQUIREMENTS),
        ("tests", REQUIREMENTS + DEVELOPMENT + DEMO),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requirements_cover_every_import(folder, required):
    known = {canonicalize_name(requirement.name) for requirement in required}
    files = sorted((ROOT / folder).rglob("*.py"))
    local = {"SDMatte", "configs", "tests", "detectron2"}  # detectron2: script/setup.sh
    local |= {path.stem for path in [*files, *ROOT.glob("*.py")]}
    local |= {path.parent.name for path in files}
    missing = {}
    for path in files:
        for name in RequiredImports(path).names - set(sys.stdlib_module_names) - local:
            if not known & distributions_by_import().get(name, {canonicalize_name(name)}):
                missing.setdefault(name, str(path.relative_to(ROOT)))
    assert not missing


@pytest.mark.parametrize("requirement", REQUIREMENTS + DEVELOPMENT + FINETUNE, ids=lambda r: r.name)
def test_requirements_have_a_lower_bound_and_a_tested_version(requirement):
    assert any(spec.operator in (">=", "==") for spec in requirement.specifier)
    for python in PYTHONS:
        environment = {"python_version": python}
        pins = [
            pin
            for pin in CONSTRAINTS
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(pins) == 1, f"Python {python}: {pins}"
        (pin,) = pins[0].specifier
        assert pin.operator == "==" and pin.version in requirement.specifier


def test_opencv_needs_no_display():
    names = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS + CONSTRAINTS}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}


def test_the_installed_package_declares_its_requirements():
    try:
        distribution = importlib.metadata.distribution("sdmatte")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SDMatte is used from its folder, not installed")
    declared = {canonicalize_name(Requirement(text).name) for text in distribution.requires}
    listed = REQUIREMENTS + DEVELOPMENT + FINETUNE + DEMO
    assert declared == {canonicalize_name(r.name) for r in listed}
    (command,) = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("sdmatte", "SDMatte.cli.main:main")


# --- the installer of detectron2


@pytest.fixture(scope="module")
def installer():
    path = ROOT / "tools" / "install_detectron2.py"
    spec = importlib.util.spec_from_file_location("install_detectron2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_archive(path):
    files = {"LICENSE": b"Apache", "setup.py": b"1/0", "detectron2/utils/comm.py": b"SIZE = 1\n"}
    files |= {"detectron2/__init__.py": b"", "detectron2/configs/a.yaml": b"a: 1", "b/c.py": b""}
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_the_wheel_holds_the_python_files(installer, tmp_path):
    wheel = installer.build_wheel(make_archive(tmp_path / "a.tar.gz"), tmp_path)
    assert wheel.name == "detectron2-0.6+pure-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        assert names == {"detectron2/__init__.py", "detectron2/utils/comm.py"}
        assert any(name.endswith("LICENSE") for name in file.namelist())
        metadata = file.read("detectron2-0.6+pure.dist-info/METADATA").decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.M)
    listed = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    assert needed and {canonicalize_name(name) for name in needed} <= listed


def test_other_archives_are_refused(installer, tmp_path, monkeypatch):
    monkeypatch.setattr(installer, "find_installed", lambda: None)
    monkeypatch.setattr(installer, "run_pip", None)
    with pytest.raises(SystemExit, match=f"not {installer.ARCHIVE_SHA256}.*was not installed"):
        installer.main(["--archive", str(make_archive(tmp_path / "a.tar.gz"))])
    with pytest.raises(SystemExit, match="cannot read .*none.tar.gz: No such file"):
        installer.main(["--archive", str(tmp_path / "none.tar.gz")])


def test_an_installed_detectron2_is_kept(installer, tmp_path, monkeypatch, capsys):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(installer, "run_pip", None)
    installer.main([])
    assert f"{tmp_path}/detectron2; kept" in capsys.readouterr().out


# --- setup.sh, with a pip that records its arguments


STUB_PIP = """
import os, pathlib, signal, sys
with open(pathlib.Path(sys.prefix, "pip.log"), "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("INTERRUPT") in sys.argv:  # like Ctrl-C, after which pip exits with 1
    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    os.killpg(0, signal.SIGINT)
sys.exit(os.environ.get("FAIL", "nothing") in sys.argv)
"""


class Clone:
    """The files that set-up reads, in a new folder, with an environment of empty packages."""

    def __init__(self, root):
        self.root = root
        self.venv = root / "venv"
        for name in ("script", "tools"):
            shutil.copytree(ROOT / name, root / name)
        for path in (*ROOT.glob("requirements*.txt"), ROOT / "constraints.txt"):
            shutil.copy(path, root)
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "SDMatte").mkdir()
        for name in ("__init__.py", "errors.py", "compat.py"):
            shutil.copy(ROOT / "SDMatte" / name, root / "SDMatte")

    def make_venv(self):
        command = [sys.executable, "-m", "venv", "--without-pip", self.venv]
        subprocess.run(command, check=True)
        stubs = {
            "pip/__main__.py": STUB_PIP,
            "PIL/__init__.py": "class Image:\n    LINEAR = 2\n",
            **{
                f"{name}.py": ""
                for name in "torch torchvision cv2 diffusers transformers psutil".split()
            },
            **{f"detectron2/{n}.py": "" for n in ("__init__", "engine", "_C", "config/lazy")},
        }
        (site,) = self.venv.glob("lib/python*/site-packages")
        for name, text in stubs.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)

    def setup(self, **env):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SDMATTE_", "PYTHON"))}
        env = {"PYTHONDONTWRITEBYTECODE": "1", "SDMATTE_VENV": str(self.venv), **env}
        result = subprocess.run(
            ["bash", self.root / "script" / "setup.sh"],
            env={**kept, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            start_new_session=True,
        )
        return result.returncode, result.stdout

    def pip_log(self):
        return (self.venv / "pip.log").read_text()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_setup_reinstalls_when_a_requirement_changes(clone):
    clone.make_venv()
    status, output = clone.setup()
    assert status == 0 and "done" in output, output
    assert "--constraint constraints.txt --requirement requirements.txt" in clone.pip_log()
    assert "--no-deps --no-build-isolation --editable ." in clone.pip_log()
    calls = clone.pip_log()
    status, output = clone.setup()
    assert status == 0 and "is up to date" in output and clone.pip_log() == calls
    with open(clone.root / "constraints.txt", "a") as file:
        file.write("# another\n")
    status, output = clone.setup()
    assert status == 0 and "done" in output and clone.pip_log() != calls
    assert "--force-reinstall" not in clone.pip_log()


def test_an_unfinished_setup_starts_over(clone):
    clone.make_venv()
    status, output = clone.setup(FAIL="requirements.txt")
    assert status == 1
    assert "could not install the packages" in output and "Check the network" in output
    status, output = clone.setup()
    assert status == 0 and "did not finish: starting over" in output
    assert "--force-reinstall" in clone.pip_log()
    # Its own folder is removed instead.
    clone.venv = clone.venv.rename(clone.root / ".venv")
    (clone.venv / ".sdmatte-pending").touch()
    (clone.venv / ".sdmatte-stamp").unlink()
    status, output = clone.setup(SDMATTE_PYTHON="/nowhere")
    assert status == 1 and not clone.venv.exists()


def test_an_interrupted_setup_can_be_finished(clone):
    clone.make_venv()
    status, output = clone.setup(INTERRUPT="requirements.txt")
    assert status == 130 and output.endswith("interrupted; run this again to finish.\n")
    assert "error" not in output
    status, output = clone.setup()
    assert status == 0 and "did not finish: starting over" in output


def test_help_of_the_demo_installer_installs_nothing():
    command = [sys.executable, ROOT / "tools" / "install_demo.py"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Install the requirements of" in done.stdout
    done = subprocess.run([*command, "now"], capture_output=True, text=True)
    assert done.returncode == 2 and "unrecognized arguments: now" in done.stderr


@pytest.mark.parametrize("has_python", [True, False])
def test_setup_needs_a_suitable_python(clone, has_python):
    status, output = clone.setup(SDMATTE_PYTHON="/nowhere/python3")
    assert status == 1 and "SDMATTE_PYTHON=/nowhere/python3 does not run" in output
    programs = clone.root / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "basename", "ls", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    if has_python:
        (programs / "python3").write_text("#!/bin/sh\nexit 1\n")  # fails the version check
        (programs / "python3").chmod(0o755)
    status, output = clone.setup(PATH=str(programs))
    assert status == 1 and "no Python 3.10 to 3.14 on the PATH: install one" in output


def test_setup_removes_no_folder_of_others(clone):
    clone.venv = clone.root / "photos"
    clone.venv.mkdir()
    (clone.venv / "one.png").touch()
    status, output = clone.setup()
    assert status == 1 and "has no working Python" in output
    assert [path.name for path in clone.venv.iterdir()] == ["one.png"]


def run_train_script(clone, **env):
    names = ("VIRTUAL_ENV", "CONDA_PREFIX", "SDMATTE_VENV", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    command = ["bash", "script/train.sh"]
    result = subprocess.run(
        command, env={**kept, **env}, cwd=clone.root, capture_output=True, text=True
    )
    assert result.returncode == 1
    return result.stderr


def test_training_without_an_environment_names_setup(clone):
    # CDPATH would make `cd script` print a path.
    error = run_train_script(clone, CDPATH=str(clone.root))
    assert error.endswith(f"run `bash {clone.root}/script/setup.sh` first.\n")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("fault", ["interrupted", "no packages", "broken Python"])
@pytest.mark.parametrize("variable", ["SDMATTE_VENV", "VIRTUAL_ENV"])
def test_training_in_an_incomplete_environment_names_setup(clone, fault, variable):
    if fault == "interrupted":
        clone.make_venv()
        (clone.venv / ".sdmatte-pending").touch()
    elif fault == "no packages":
        command = [sys.executable, "-m", "venv", "--without-pip", clone.venv]
        subprocess.run(command, check=True)
    else:
        (clone.venv / "bin").mkdir(parents=True)
        (clone.venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
        (clone.venv / "bin" / "python").chmod(0o755)
    path = f"{clone.venv / 'bin'}:{os.environ['PATH']}"
    error = run_train_script(clone, PATH=path, **{variable: str(clone.venv)})
    assert len(error.splitlines()) == 1
    assert f"{clone.venv}/bin/python does not run, lacks packages, or its set-up did" in error
    assert error.endswith(f"run `bash {clone.root}/script/setup.sh` first.\n")


def test_training_runs_in_a_complete_environment(clone):
    clone.make_venv()
    error = run_train_script(clone, SDMATTE_VENV=str(clone.venv))
    assert error.endswith("'SDMatte' is a package and cannot be directly executed\n")
