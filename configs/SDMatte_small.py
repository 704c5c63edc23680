"""The bundled small model, fine-tuned on the embedded sample set (data make-samples).

It has SDMatte's classes, losses and training loop, and a U-Net 190 times smaller. Instead of Stable
Diffusion, it starts from weights of this project and the prior of an image classifier; see
docs/small_model.md. train.init_checkpoint="" starts from a random U-Net. Use it to try out the
pipeline and ideas: its scores are far from the paper's.

Hardware: two CPU cores (AMD EPYC with AVX2: 72 steps in 2 min 43 s).
Expected on the sample set's test part, MSE x 1000: box 41 (45 before), point 45, mask 24.
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
model.image_prior = "tf_efficientnet_lite0"

dataloader.train.dataset.names = ["Composition-1K"]
dataloader.train.dataset.root = "data/samples"
dataloader.train.dataset.size = 128
dataloader.train.batch_size = 8
dataloader.train.num_workers = 0  # images are cached, so workers would only take CPU time
dataloader.test.dataset.size = 224
dataloader.test.batch_size = 8
dataloader.test.num_workers = 1
# Lengths in pixels scale with the size; the published ones are for 512.
dataloader.train.dataset.settings.update(
    kernel_sizes=(4, 8), point_radius=6.4, duplicate_prob=0.5, decode="reduced", cache_mb=512.0
)
dataloader.test.dataset.settings.update(kernel_sizes=(7, 13), point_radius=11.2)

# A short run needs a higher rate than the published fine-tuning.
optimizer.lr = 2e-4
lr_multiplier.warmup_iter = 20
lr_multiplier.decay = 0.02
train.output_dir = "output/SDMatte_small"
train.init_checkpoint = str(_small / "model.safetensors")
train.epochs = 0.8
train.checkpoints = 1
train.evaluations = 1
train.clip_grad_norm = 1.0
