"""Data pipeline: from the paper's data sets, or your own, to batches (data/README.md)."""

from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, data_root, list_samples
from SDMatte.data.dataset import MattingDataset
from SDMatte.data.listing import Sample
from SDMatte.data.loader import build_test_loader, build_train_loader, collate
from SDMatte.data.samplers import EpochSampler
from SDMatte.data.settings import DataSettings

__all__ = [
    "TEST_SETS",
    "TRAIN_SETS",
    "DataSettings",
    "EpochSampler",
    "MattingDataset",
    "Sample",
    "build_test_loader",
    "build_train_loader",
    "collate",
    "data_root",
    "list_samples",
]
