"""Fixtures shared by several test packages."""

import logging
import os

import cv2
import hypothesis
import numpy as np
import pytest
import torch
from layouts import make_layouts
from models import tiny_model
from runs import finish, settings

from SDMatte import MattePredictor
from SDMatte.images.io import write_image
from SDMatte.samples import make_sample_set

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def pytest_report_header():
    """Report the instruction set and threads, which script/run_tests.sh restricts."""
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
    """Miniature trees of all known sets, two images per folder; read only."""
    return make_layouts(tmp_path_factory.mktemp("layouts") / "trees", num=2, size=80)


@pytest.fixture(autouse=True, scope="session")
def no_data_root():
    """Remove the user's own data root from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SDMATTE_DATA_ROOT", raising=False)
        yield


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Undo the logging setup of earlier tests, whose streams are closed."""
    for name in ("SDMatte", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@pytest.fixture(scope="session")
def stateful(sample_root):
    """Return a function for the settings of a run with every stateful feature on."""

    def make(output, *more):
        return settings(
            sample_root,
            output,
            "train.amp.enabled=True",
            "train.ema.enabled=True",
            "train.ema.decay=0.5",
            "train.best_metric=AIM-500/box/SAD",
            "dataloader.train.num_workers=1",
            *more,
        )

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory, stateful):
    """An uninterrupted run with the settings of `stateful`."""
    folder = tmp_path_factory.mktemp("whole")
    finish(stateful(folder / "run"), folder / "log")
    return folder / "run"


@pytest.fixture
def truths(tmp_path):
    """Five soft discs of different sizes with trimaps and images, on disk."""
    rng = np.random.default_rng(0)
    for i in range(5):
        height, width = 40 + 3 * i, 60 - 2 * i
        disc = np.zeros((height, width), np.uint8)
        cv2.circle(disc, (width // 2, height // 2), 10 + i, 255, -1)
        alpha = cv2.GaussianBlur(disc, (0, 0), 2)
        trimap = np.select([alpha < 5, alpha > 250], [0, 255], 128).astype(np.uint8)
        write_image(tmp_path / "truth" / f"t{i}.png", alpha)
        write_image(tmp_path / "trimaps" / f"t{i}.png", trimap)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        write_image(tmp_path / "images" / f"t{i}.jpg", image)
    return tmp_path


# Use the same examples in every run, and leave no files behind.
hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny():
    return tiny_model(aux_input=None)


@pytest.fixture(scope="module")
def predictor(tiny):
    return MattePredictor(tiny, resolution=64)


@pytest.fixture(scope="session")
def rgb():
    """uint8 [70, 90, 3]."""
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
