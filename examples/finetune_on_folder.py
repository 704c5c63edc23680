"""Fine-tune a model on a folder of images and a folder of alphas with the same names.

python examples/finetune_on_folder.py               # the small model, on a small sample set
python examples/finetune_on_folder.py --images IMAGES --alphas ALPHAS train.max_iter=500
"""

import argparse
from pathlib import Path

from SDMatte import MattePredictor
from SDMatte.engine.train import train
from SDMatte.samples import make_sample_set

CONFIG = Path(__file__).parents[1] / "configs" / "SDMatte_small.py"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--images", help="default: images of the sample set")
parser.add_argument("--alphas")
parser.add_argument("--samples", default="output/examples/samples")
parser.add_argument("--output", default="output/examples/finetune", help="a new folder")
parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config")
args = parser.parse_args()

if args.images is None:
    samples = make_sample_set(args.samples, num_train=12, num_test=8, size=160).root
    args.images, args.alphas = samples / "AIM-500/original", samples / "AIM-500/mask"
# A quarter of the pairs, chosen by their names, is held out and evaluated on.
pairs = f"{{image: {args.images}, alpha: {args.alphas}, holdout: 0.25}}"
overrides = [
    f"dataloader.train.dataset.names=[{pairs}]",
    f"train.output_dir={args.output}",
    "train.max_iter=20",
    "optimizer.lr=1e-4",
    *args.overrides,
]
train(str(CONFIG), overrides)

predictor = MattePredictor.from_pretrained(args.output)
predictor.set_image(sorted(Path(args.images).iterdir())[0])
print("alpha of the first image:", predictor.predict().alpha.shape)
