"""A predictor with a tiny model, and a picture to ask it about."""

import hypothesis
import numpy as np
import pytest
from models import tiny_model

from SDMatte import MattePredictor

# The same examples in every run, and no files left behind.
hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny():
    return tiny_model(aux_input=None)


@pytest.fixture(scope="module")
def predictor(tiny):
    return MattePredictor(tiny, resolution=64)


@pytest.fixture(scope="session")
def picture():
    """uint8 [70, 90, 3]."""
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
