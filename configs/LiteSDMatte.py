"""LiteSDMatte: a smaller U-Net and autoencoder, distilled from a trained SDMatte.

Hardware: 8 GPUs with one image each, 30,501 steps. The duration has not been measured.
Expected on AIM-500 (paper): SAD 34.4 with points, 20.8 with boxes, 15.8 with masks. Not
reproduced here.

Needs a trained SDMatte: distillation.teacher_checkpoint.
"""

from detectron2.config import LazyCall as L

from SDMatte.modeling.losses import DistillationCriterion

from .common.data import dataloader
from .common.model import criterion
from .common.model import lite_model as model
from .common.model import model as teacher
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import test, train

teacher.load_weight = False
distillation = dict(
    teacher=teacher,
    teacher_checkpoint="pretrained/SDMatte/SDMatte.pth",
    criterion=L(DistillationCriterion)(losses=["mse"]),
)
train.output_dir = "output/LiteSDMatte"
