"""A small SDMatte that trains on two CPU cores, on the embedded sample set.

The classes, the losses and the loop are those of SDMatte; the U-Net is 190 times smaller. It does
not start from Stable Diffusion but from weights of the project's own: an autoencoder
(tools/train_small_vae.py) and a U-Net (tools/train_small_unet.py). It shows that everything
works, and serves for trying ideas; its numbers are not the paper's.

With train.init_checkpoint="" the U-Net starts from random weights.
"""

from pathlib import Path

import SDMatte

from .common.data import dataloader
from .common.model import criterion, model
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import test, train

_small = Path(SDMatte.__file__).parent / "assets" / "small"
model.pretrained_model_name_or_path = str(_small)
model.load_weight = ["vae"]

dataloader.train.dataset.names = ["Composition-1K"]
dataloader.train.dataset.root = "data/samples"
dataloader.train.dataset.size = 96
dataloader.train.batch_size = 8
dataloader.train.num_workers = 0  # what is read stays in memory: a process more would only disturb
dataloader.test.dataset.size = 128
dataloader.test.batch_size = 8
dataloader.test.num_workers = 1
# Lengths in pixels go with the size: the published ones, 15 to 29 and 25, are for 512.
dataloader.train.dataset.settings.update(
    kernel_sizes=(3, 6), point_radius=5.0, duplicate_prob=0.5, decode="reduced", cache_mb=512.0
)
dataloader.test.dataset.settings.update(kernel_sizes=(4, 8), point_radius=5.0)

# Short, where the published recipe fine-tunes for long.
optimizer.lr = 1e-3
lr_multiplier.warmup_iter = 20
lr_multiplier.decay = 0.02
train.output_dir = "output/SDMatte_small"
train.init_checkpoint = str(_small / "start.safetensors")
train.epochs = 8
train.checkpoints = 2
train.evaluations = 2
train.clip_grad_norm = 1.0
