"""Fixtures that several parts share."""

import logging
import os

import pytest
import torch

from SDMatte.data.synthetic import make_layouts, make_sample_set

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def pytest_report_header():
    """Says what computes: script/run_tests.sh restricts it."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}: {capability}, {torch.get_num_threads()} threads"


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory):
    """A tiny embedded sample set: Composition-1K and AIM-500 layouts."""
    root = tmp_path_factory.mktemp("samples") / "set"
    make_sample_set(root, num_train=6, num_test=4, size=96, num_workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def layout_root(tmp_path_factory):
    """Miniature trees of all known sets, two pictures a folder; not to be written to."""
    return make_layouts(tmp_path_factory.mktemp("layouts") / "trees", num=2, size=80)


@pytest.fixture
def no_data_root(monkeypatch):
    """Takes the user's own data root out of the environment."""
    monkeypatch.delenv("SDMATTE_DATA_ROOT", raising=False)


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Undoes how an earlier test's run set up logging: to a stream that is closed by now."""
    for name in ("SDMatte", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
