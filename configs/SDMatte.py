"""SDMatte as published: a random prompt a step, five training sets, 512 in training, 1024 in test.

The paths to edit: model.pretrained_model_name_or_path (of process_weight.py) and
dataloader.train.dataset.root (or the environment's SDMATTE_DATA_ROOT).
"""

from .common.data import dataloader
from .common.model import criterion, model
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import test, train
