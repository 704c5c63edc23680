"""SDMatte as published: all prompt types, five training sets, trained at 512x512, tested at 1024.

Hardware: 8 GPUs with one image each, 30,501 steps (10 epochs of 24,401 samples); on one GPU, set
train.accumulate=8. The duration has not been measured.
Expected on AIM-500 (paper): SAD 31.8 with points, 19.5 with boxes, 14.5 with masks. Not
reproduced here.

Set model.pretrained_model_name_or_path (prepared by process_weight.py) and
dataloader.train.dataset.root (or SDMATTE_DATA_ROOT).
"""

from .common.data import dataloader
from .common.model import criterion, model
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import test, train
