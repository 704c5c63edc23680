"""Fine-tune the small model on a folder of images and a folder of alphas with the same names.

python examples/finetune_on_folder.py --folders IMAGES ALPHAS train.max_iter=500
"""

import argparse
from pathlib import Path

from SDMatte import MattePredictor
from SDMatte.engine.train import train
from SDMatte.samples import make_sample_set

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--folders", nargs=2, help="images and alphas (default: a sample set's)")
parser.add_argument("--samples", default="output/examples/samples")
parser.add_argument("--output", default="output/examples/finetune", help="a new folder")
parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config")
args = parser.parse_args()
if args.folders is None:
    samples = make_sample_set(args.samples, num_train=12, num_test=8, size=160).root
    args.folders = samples / "AIM-500/original", samples / "AIM-500/mask"
images, alphas = args.folders
# A quarter of the pairs, chosen by name, is held out for evaluation.
pairs = f"{{image: {images}, alpha: {alphas}, holdout: 0.25}}"
settings = [f"dataloader.train.dataset.names=[{pairs}]", f"train.output_dir={args.output}"]
train("configs/SDMatte_small.py", [*settings, "train.max_iter=20", *args.overrides])

predictor = MattePredictor.from_pretrained(args.output)
predictor.set_image(min(Path(images).iterdir()))
print("alpha of the first image:", predictor.predict().alpha.shape)
