"""The set-up scripts, the lists of requirements and the installer of detectron2; no network."""

import ast
import base64
import csv
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
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
    assert code[-1] == "bash script/run_tests.sh"
    assert [line.split()[0] for line in code[1:-1]] == ["set", "cd"]


@pytest.mark.parametrize("name", ["train", "test", "quickstart"])
def test_scripts_hand_their_arguments_on(name):
    assert (ROOT / "script" / f"{name}.sh").read_text().rstrip().endswith(f'SDMatte {name} "$@"')


# --- requirements


def read_requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


REQUIREMENTS = read_requirements("requirements.txt")
DEVELOPMENT = read_requirements("requirements-dev.txt")
FINETUNE = read_requirements("requirements-finetune.txt")
CONSTRAINTS = read_requirements("constraints.txt")


class RequiredImports(ast.NodeVisitor):
    """Top-level names of a file's absolute imports, less those in a `try` for ImportError."""

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
    """Like importlib.metadata's function, which in Python 3.10 misses what has no top_level.txt."""
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
        ("SDMatte", REQUIREMENTS),
        ("configs", REQUIREMENTS),
        ("script", REQUIREMENTS),
        ("tools", REQUIREMENTS),
        ("tests", REQUIREMENTS + DEVELOPMENT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requirements_cover_every_import(folder, required):
    known = {canonicalize_name(requirement.name) for requirement in required}
    files = sorted((ROOT / folder).rglob("*.py"))
    local = {"SDMatte", "configs", "tests", "detectron2"}  # detectron2: script/setup.sh
    local |= {path.stem for path in [*files, *ROOT.glob("*.py")]}
    missing = {}
    for path in files:
        for name in RequiredImports(path).names - set(sys.stdlib_module_names) - local:
            if not known & distributions_by_import().get(name, {name}):
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


def test_the_installed_package_declares_what_the_files_say():
    try:
        distribution = importlib.metadata.distribution("sdmatte")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SDMatte is used from its folder, not installed")
    declared = {canonicalize_name(Requirement(text).name) for text in distribution.requires}
    listed = REQUIREMENTS + DEVELOPMENT + FINETUNE
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


PACKAGE = {
    "pb1-detectron2-0.6/LICENSE": b"Apache License\n",
    "pb1-detectron2-0.6/setup.py": b"raise SystemExit('not to be run')\n",
    "pb1-detectron2-0.6/detectron2/__init__.py": b"__version__ = '0.6'\n",
    "pb1-detectron2-0.6/detectron2/utils/comm.py": b"SIZE = 1\n",
    "pb1-detectron2-0.6/detectron2/model_zoo/configs/a.yaml": b"a: 1\n",
    "pb1-detectron2-0.6/projects/other/detectron2/no.py": b"",
}


def make_archive(path, files=PACKAGE, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


def test_wheel_holds_the_python_files_and_a_true_record(installer, tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz")
    wheel = installer.build_wheel(archive, tmp_path / "wheel")
    assert wheel.name == "detectron2-0.6+pure-py3-none-any.whl"
    info = "detectron2-0.6+pure.dist-info"
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    assert set(contents) == {
        "detectron2/__init__.py",
        "detectron2/utils/comm.py",
        *(f"{info}/{name}" for name in ("LICENSE", "METADATA", "WHEEL", "RECORD", "top_level.txt")),
    }
    rows = {row[0]: row[1:] for row in csv.reader(contents[f"{info}/RECORD"].decode().split())}
    assert set(rows) == set(contents)
    for name, (digest, size) in rows.items():
        if not name.endswith("/RECORD"):
            expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest())
            assert digest == "sha256=" + expected.decode().rstrip("=")
            assert int(size) == len(contents[name])

    again = installer.build_wheel(archive, tmp_path / "again")
    assert again.read_bytes() == wheel.read_bytes()


def test_pip_accepts_the_wheel(installer, tmp_path, monkeypatch):
    wheel = installer.build_wheel(make_archive(tmp_path / "a.tar.gz"), tmp_path / "wheel")
    target = tmp_path / "site"
    monkeypatch.setenv("PIP_TARGET", str(target))
    installer.install(wheel)
    assert (target / "detectron2" / "utils" / "comm.py").read_bytes() == b"SIZE = 1\n"
    (info,) = target.glob("*.dist-info")
    distribution = importlib.metadata.Distribution.at(info)
    assert distribution.metadata["Name"] == "detectron2"
    assert distribution.version == "0.6+pure"
    assert distribution.metadata["License"] == "Apache-2.0"
    needed = {canonicalize_name(Requirement(text).name) for text in distribution.requires}
    assert needed <= {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}


@pytest.mark.parametrize(
    "name",
    ["../detectron2/evil.py", "pb1/detectron2/../../evil.py", "/detectron2/evil.py", "a\\..\\b"],
)
def test_unsafe_paths_are_refused(installer, tmp_path, name):
    archive = make_archive(tmp_path / "a.tar.gz", {**PACKAGE, name: b""})
    with pytest.raises(installer.InstallError, match="unsafe path"):
        installer.build_wheel(archive, tmp_path / "wheel")
    assert not (tmp_path / "wheel").exists()


def test_links_in_the_package_are_refused(installer, tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", links=["pb1/detectron2/evil.py"])
    with pytest.raises(installer.InstallError, match="no ordinary file"):
        installer.build_wheel(archive, tmp_path / "wheel")


def test_other_archives_are_refused(installer, tmp_path):
    empty = make_archive(tmp_path / "empty.tar.gz", {"pb1/setup.py": b""})
    with pytest.raises(installer.InstallError, match="holds no detectron2"):
        installer.build_wheel(empty, tmp_path / "wheel")
    cut = make_archive(tmp_path / "cut.tar.gz")
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(installer.InstallError, match="no readable source archive"):
        installer.build_wheel(cut, tmp_path / "wheel")


@pytest.fixture
def no_pip(installer, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("pip was called")

    monkeypatch.setattr(installer, "run_pip", fail)


@pytest.mark.usefixtures("no_pip")
def test_a_wrong_hash_is_refused(installer, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(installer, "find_installed", lambda: None)
    assert installer.main(["--archive", str(make_archive(tmp_path / "a.tar.gz"))]) == 1
    assert "was not installed" in caplog.text and installer.ARCHIVE_SHA256 in caplog.text
    assert installer.main(["--archive", str(tmp_path / "none.tar.gz")]) == 1
    assert "none.tar.gz: No such file" in caplog.text


@pytest.mark.usefixtures("no_pip")
def test_an_installed_detectron2_is_left_alone(installer, tmp_path, monkeypatch, caplog):
    package = tmp_path / "detectron2"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    # A folder without __init__.py is no package, but what an uninstallation left.
    assert (installer.find_installed() or ("", None))[1] != package
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    assert installer.find_installed()[1] == package
    caplog.set_level("INFO")
    assert installer.main([]) == 0
    assert "left as it is" in caplog.text


@pytest.mark.usefixtures("no_pip")
def test_files_without_metadata_are_installed_again(installer, tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installer.importlib.metadata, "version", missing)
    assert installer.find_installed() == ("(a source folder)", tmp_path / "detectron2")
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda name: str(tmp_path))
    assert installer.find_installed() is None


# --- setup.sh, with a pip that notes what it is asked for


STUB_PIP = """
import os, pathlib, sys
log = pathlib.Path(sys.prefix, "pip.log")
log.write_text((log.read_text() if log.exists() else "") + " ".join(sys.argv[1:]) + "\\n")
sys.exit(os.environ.get("FAIL", "nothing") in sys.argv)
"""


class Clone:
    """A copy of the repository's set-up in an empty folder, and the ways to run it."""

    def __init__(self, folder):
        self.root = folder
        self.venv = folder / ".venv"
        shutil.copytree(ROOT / "script", folder / "script")
        shutil.copytree(ROOT / "tools", folder / "tools")
        for path in (*ROOT.glob("requirements*.txt"), ROOT / "constraints.txt"):
            shutil.copy(path, folder)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "SDMatte").mkdir()
        for name in ("__init__.py", "errors.py", "compat.py"):
            shutil.copy(ROOT / "SDMatte" / name, folder / "SDMatte")

    def make_venv(self):
        command = [sys.executable, "-m", "venv", "--without-pip", self.venv]
        subprocess.run(command, check=True)
        stubs = {
            "pip/__main__.py": STUB_PIP,
            "PIL/__init__.py": "class Image:\n    LINEAR = 2\n",
            "detectron2/__init__.py": "",
            "detectron2/engine.py": "",
            "detectron2/_C.py": "",
            "detectron2/config/lazy.py": "",
            **{f"{name}.py": "" for name in "torch torchvision cv2 diffusers transformers".split()},
            "detectron2-0.6.dist-info/METADATA": "Metadata-Version: 2.1\nName: detectron2\n"
            "Version: 0.6\n",
            "detectron2-0.6.dist-info/RECORD": "detectron2/engine.py,,0\n",
        }
        for name, text in stubs.items():
            self.site.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            self.site.joinpath(name).write_text(text)

    @property
    def site(self):
        return next(self.venv.glob("lib/python*/site-packages"))

    def setup(self, **env):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SDMATTE_", "PYTHON"))}
        result = subprocess.run(
            ["bash", self.root / "script" / "setup.sh"],
            env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
        return result.returncode, result.stdout

    def pip_log(self):
        return (self.venv / "pip.log").read_text()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_setup_installs_once_and_again_when_a_list_changes(clone):
    clone.make_venv()
    status, output = clone.setup()
    assert status == 0, output
    assert "done" in output
    assert "--constraint constraints.txt --requirement requirements.txt" in clone.pip_log()
    assert "--no-deps --no-build-isolation --editable ." in clone.pip_log()

    calls = clone.pip_log()
    status, output = clone.setup()
    assert status == 0 and "is current" in output
    assert clone.pip_log() == calls

    with open(clone.root / "constraints.txt", "a") as file:
        file.write("# another\n")
    status, output = clone.setup()
    assert status == 0 and "done" in output
    assert clone.pip_log() != calls


def test_setup_says_what_to_do_and_mends_what_was_interrupted(clone):
    clone.make_venv()
    status, output = clone.setup(FAIL="requirements.txt")
    assert status == 1
    assert "could not install the packages" in output and "Check the network" in output

    broken = clone.site / "halfway-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway\nVersion: 1.0\n")
    (broken / "RECORD").write_text("halfway/__init__.py,sha256=x,12\n")
    compiled = clone.site / "compiled-1.0.dist-info"  # what Python and pip wrote themselves
    compiled.mkdir()
    (compiled / "METADATA").write_text("Metadata-Version: 2.1\nName: compiled\nVersion: 1.0\n")
    (compiled / "RECORD").write_text("a.pyc,sha256=x,12\ncompiled-1.0.dist-info/RECORD,,\n")
    whole = clone.site / "detectron2-0.6.dist-info"
    status, output = clone.setup()
    assert status == 0, output
    assert "halfway-1.0 is incomplete" in output
    assert not broken.exists() and whole.is_dir() and compiled.is_dir()
    assert "is current" in clone.setup()[1]


def test_setup_names_a_damaged_environment(clone):
    clone.make_venv()
    (clone.site / "torch.py").write_text("raise ImportError('libtorch.so: file too short')\n")
    status, output = clone.setup()
    assert status == 1
    assert "file too short" in output and f"remove {clone.venv} and run this again" in output


def test_setup_needs_a_suitable_python(clone):
    status, output = clone.setup(SDMATTE_PYTHON="/nowhere/python3")
    assert status == 1
    assert "SDMATTE_PYTHON=/nowhere/python3 does not run" in output

    tools = clone.root / "tools"  # a PATH without any Python
    tools.mkdir()
    for name in ("bash", "dirname", "basename", "ls", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    status, output = clone.setup(PATH=str(tools))
    assert status == 1
    assert "no Python 3.10 to 3.14 on the PATH: install one" in output

    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # fails the version check
    old.chmod(0o755)
    assert clone.setup(PATH=str(tools))[0] == 1


def test_setup_needs_venv(clone):
    python = clone.root / "python"
    python.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            case "$2" in *ensurepip*) exit 1 ;; esac
            exec {sys.executable} "$@"
            """
        )
    )
    python.chmod(0o755)
    status, output = clone.setup(SDMATTE_PYTHON=str(python))
    assert status == 1
    assert "comes without venv: install it" in output


def test_setup_removes_no_folder_that_is_not_its_own(clone):
    folder = clone.root / "photos"
    folder.mkdir()
    (folder / "one.png").touch()
    status, output = clone.setup(SDMATTE_VENV=str(folder))
    assert status == 1
    assert "holds no Python that runs" in output
    assert [path.name for path in folder.iterdir()] == ["one.png"]


def test_training_without_environment_points_to_setup(clone):
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    kept.pop("SDMATTE_VENV", None)
    command = ["bash", clone.root / "script" / "train.sh"]
    result = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"run `bash .*/script/setup.sh` first", result.stderr)
