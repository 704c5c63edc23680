"""Predict the matte of the object in a box, and put the object on another background.

python examples/predict.py --image photo.jpg --box 10 20 300 400 --model LongfeiHuang/SDMatte
"""

import argparse
from pathlib import Path

from SDMatte import MattePredictor
from SDMatte.images.io import write_image
from SDMatte.samples import real_photographs

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--image", help="default: scikit-image's photograph of coffee")
parser.add_argument("--box", type=float, nargs=4, default=(80, 16, 479, 387))
parser.add_argument("--model", help="folder or hub id (default: the bundled small model)")
parser.add_argument("--output", type=Path, default=Path("output/examples/predict"))
args = parser.parse_args()

predictor = MattePredictor.from_pretrained(args.model)
photographs = {photograph.name: photograph.path for photograph in real_photographs()}
predictor.set_image(args.image or photographs["coffee"])
result = predictor.predict(box=args.box)

print(f"alpha: {result.alpha.shape}, covers {result.alpha.mean():.0%} of the image")
print(write_image(args.output / "alpha.png", result.alpha))
print(write_image(args.output / "cutout.png", result.cutout()))
print(write_image(args.output / "composite.png", result.composite("steelblue")))
