"""Add a model variant: SDMatte with convolutions that correct the predicted latent.

python examples/model_variant.py                    # the small model, on a small sample set
python examples/model_variant.py train.max_iter=500
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from SDMatte.engine.train import train
from SDMatte.modeling import SDMatte
from SDMatte.runtime.config import build, load_config
from SDMatte.samples import make_sample_set

CONFIG = Path(__file__).with_name("model_variant_config.py")


class CorrectedSDMatte(SDMatte):
    """SDMatte whose output is corrected by looking at the encoded image once more."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        channels = self.unet.config.out_channels
        layers = nn.Conv2d(2 * channels, 32, 3, padding=1), nn.Conv2d(32, channels, 3, padding=1)
        self.correction = nn.Sequential(layers[0], nn.SiLU(), layers[1]).to(self.unet.dtype)
        nn.init.zeros_(layers[1].weight)  # starts as a plain SDMatte
        nn.init.zeros_(layers[1].bias)

    def predict_latent(self, image_latent, *args, **kwargs):
        """Run the U-Net and correct its output; both training and `MattePredictor` call this."""
        latent, features = super().predict_latent(image_latent, *args, **kwargs)
        seen = torch.cat([image_latent.to(latent), latent], dim=1)
        return latent + self.correction(seen), features


def main() -> None:
    """Train the variant, starting from the weights of SDMatte_small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", default="output/examples/samples")
    parser.add_argument("--output", default="output/examples/variant", help="a new folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config")
    args = parser.parse_args()

    samples = make_sample_set(args.samples, num_train=12, num_test=8, size=160).root
    overrides = [
        f"dataloader.train.dataset.root={samples}",
        f"train.output_dir={args.output}",
        *args.overrides,
    ]
    config = load_config(CONFIG, overrides)
    model = build(config.model)
    # Checkpoints are loaded strictly, so the new layers are added to the one to start from.
    tensors = model.state_dict() | load_file(config.train.init_checkpoint)
    start = Path(f"{args.output}-start.safetensors")
    start.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, start)
    train(str(CONFIG), [*overrides, f"train.init_checkpoint={start}"])


if __name__ == "__main__":
    main()
