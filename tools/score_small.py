"""Score the small model as users run it, through `MattePredictor`, and compare it with baselines.

Each set is a folder with `image/` and `alpha/`. Boxes, points and masks are drawn from the true
alphas, seeded by the image's name; all methods get the same prompts at the image's own size. Thin
objects whose rough mask is empty count only for boxes and points::

    python tools/score_small.py SET [SET ...] --sheet output/small
"""

import argparse
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from SDMatte import MattePredictor
from SDMatte.evaluation.baselines import GuidedGrabCut
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.listing import scan_folder
from SDMatte.images.sheets import contact_sheet
from SDMatte.prompts.maps import box_prompt, heat_map, mask_prompt, point_prompt
from SDMatte.scoring.protocols import get_protocol, score_pair
from SDMatte.scoring.tables import score_table

PROMPTS = ("box", "point", "mask")
Method = Callable[[np.ndarray, str, dict, np.ndarray], np.ndarray]


def draw(alpha: np.ndarray, prompt: str, name: str) -> tuple[dict, np.ndarray]:
    """Draw a prompt: the arguments of `MattePredictor.predict`, and its map `[H, W]`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    side = min(alpha.shape)
    height, width = alpha.shape
    if prompt == "box":
        drawn = box_prompt(alpha, rng)
        box = drawn.coords * (width, height, width, height) + (0, 0, 1, 1)
        return {"box": np.minimum(box, (width, height, width, height))}, drawn.mask
    if prompt == "point":
        drawn = point_prompt(alpha, rng, side / 20)
        points = np.rint(drawn.coords.reshape(-1, 2) * (width, height))
        return {"points": points}, heat_map(points.astype(int).tolist(), alpha.shape, side / 20)
    drawn = mask_prompt(alpha, rng, (max(2, side * 15 // 512), max(3, side * 29 // 512)))
    return {"mask": drawn.mask}, drawn.mask


def read_set(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the image and the true alpha of each image of a data set."""
    for name in scan_folder(folder / "image").images:
        path = next((folder / "alpha").glob(f"{Path(name).stem}.*"))
        yield name, read_image(folder / "image" / name), read_alpha(path)


def main() -> None:
    """Score the sets, print tables and write sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--model", help="default: the model that ships")
    parser.add_argument("--sheet", type=Path, help="folder of contact sheets")
    parser.add_argument("--only-model", action="store_true", help="skip the baselines")
    args = parser.parse_args()
    predictor = MattePredictor.from_pretrained(*([args.model] if args.model else []))

    def model(image: np.ndarray, prompt: str, given: dict, shown: np.ndarray) -> np.ndarray:
        return predictor.predict(**given, image=predictor.encode(image)).alpha

    def grabcut(image: np.ndarray, prompt: str, given: dict, shown: np.ndarray) -> np.ndarray:
        return GuidedGrabCut(prompt).solve(image / np.float32(255), shown)

    methods: dict[str, Method] = {"SDMatte_small": model}
    if not args.only_model:
        methods |= {"prompt as alpha": lambda i, p, g, shown: shown, "GrabCut, guided": grabcut}
    protocol = get_protocol("official")
    for folder in args.sets:
        tiles = []
        scores: dict[str, list] = {}
        for name, image, truth in read_set(folder):
            row = [image]
            for prompt in PROMPTS:
                given, shown = draw(truth, prompt, name)
                if not shown.any():  # the rough mask of a thin or faint object can be empty
                    row.append(np.zeros_like(truth))
                    continue
                for title, method in methods.items():
                    alpha = np.clip(method(image, prompt, given, shown), 0, 1).astype(np.float32)
                    key = f"{title}, {prompt}"
                    pred = (alpha * 255).astype(np.uint8)  # [0, 1] -> [0, 255], truncated
                    scores.setdefault(key, []).append(score_pair(pred, protocol.as_scored(truth)))
                    if title == "SDMatte_small":
                        row.append(alpha)
                        if prompt == "box":
                            x0, y0, x1, y1 = np.rint(given["box"]).astype(int).tolist()
                            row[0] = image.copy()
                            cv2.rectangle(row[0], (x0, y0), (x1, y1), (255, 210, 0), 3)
            tiles += [*row, truth]
        means = {
            key: {m: float(np.mean([one[m] for one in many])) for m in many[0]}
            for key, many in scores.items()
        }
        print(f"{folder.name}, {len(tiles) // 5} images, protocol official\n")
        print(score_table(means, display=True), flush=True)
        if args.sheet:
            labels = ["image", "box", "points", "mask", "truth"]
            path = args.sheet / f"{folder.name}.png"
            print(write_image(path, contact_sheet(tiles, labels, columns=5)))


if __name__ == "__main__":
    main()
