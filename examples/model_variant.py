"""Add a model variant: a class, and the config beside this file that trains it.

python -m SDMatte data make-samples
PYTHONPATH=examples bash script/train.sh examples/model_variant_config.py
"""

import torch
from torch import nn

from SDMatte.modeling import SDMatte


class CorrectedSDMatte(SDMatte):
    """SDMatte with a convolutional correction of its output, given the encoded image."""

    new_layers = ("correction.",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        channels = self.unet.config.out_channels
        first, last = nn.Conv2d(2 * channels, 32, 3, padding=1), nn.Conv2d(32, channels, 1)
        self.correction = nn.Sequential(first, nn.SiLU(), last).to(self.unet.dtype)
        nn.init.zeros_(last.weight)  # starts as a plain SDMatte
        nn.init.zeros_(last.bias)

    def predict_latent(self, image_latent, *args, **kwargs):
        """Run the U-Net and correct its output; called by training and by `MattePredictor`."""
        latent, features = super().predict_latent(image_latent, *args, **kwargs)
        seen = torch.cat([image_latent.to(latent), latent], dim=1)
        return latent + self.correction(seen), features
