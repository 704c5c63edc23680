"""SDMatte*: boxes only, trained on Composition-1K, DIS-646, AM-2K and COCO-Matting.

Hardware: 8 GPUs with one image each, 10 epochs. The duration has not been measured.
Expected on AIM-500 (paper): SAD 16.4 with boxes. Not reproduced here.
"""

from .common.data import dataloader
from .common.model import criterion, model
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import test, train

model.aux_input = "bbox_mask"
model.aux_input_list = ["bbox_mask"]
dataloader.train.dataset.names = ["Composition-1K", "DIS-646", "AM-2K", "COCO-Matting"]
train.output_dir = "output/SDMatte_star"
