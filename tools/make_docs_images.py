"""Make the images of docs/inference.md with the commands printed there, and that of README.md.

    .venv/bin/python tools/make_docs_images.py

The photographs are part of scikit-image's wheel (coffee cup: Rachel Michetti, CC0; rocket: SpaceX,
public domain); the large image is drawn. The commands read and write files in output/docs.
"""

import argparse
import shlex
from pathlib import Path

import cv2
import numpy as np
from check_large_image import draw

from SDMatte import MattePredictor
from SDMatte.cli.main import main as sdmatte
from SDMatte.cli.quickstart_run import draw_photographs
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.sheets import checkerboard, contact_sheet
from SDMatte.samples import real_photographs

ROOT = Path(__file__).parents[1]
WORK = Path("output/docs")
BOX = (80, 16, 478, 386)
POINTS = ((280, 120), (200, 200), (330, 200), (280, 280))
DETAIL = (770, 280, 930, 440)  # the enlarged part of the large image: x0, y0, x1, y1

COMMANDS = (
    "sdmatte matte output/docs/coffee.png --box 80 16 478 386 --alpha-only -o output/docs/box.png",
    "sdmatte matte output/docs/coffee.png --points 280 120 200 200 330 200 280 280"
    " --alpha-only -o output/docs/points.png",
    "sdmatte matte output/docs/coffee.png --mask output/docs/rough.png"
    " --alpha-only -o output/docs/mask.png",
    "sdmatte matte output/docs/coffee.png --mask output/docs/rough.png -o output/docs/cut_out.png",
    "sdmatte matte output/docs/coffee.png --mask output/docs/rough.png"
    " --background output/docs/rocket.png -o output/docs/postcard.png",
    "sdmatte matte output/docs/large.png --box 378 98 902 622 --refine none"
    " --alpha-only -o output/docs/plain.png",
    "sdmatte matte output/docs/large.png --box 378 98 902 622 --refine tiles"
    " --alpha-only -o output/docs/tiles.png",
)


def main() -> None:
    """Prepare the inputs, run the commands, and lay out the results."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    prepare()
    for command in COMMANDS:
        print("$", command, flush=True)
        if sdmatte(shlex.split(command)[1:]):
            raise SystemExit(f"failed: {command}")
    for name, sheet in sheets().items():
        print(write_image(ROOT / "docs" / f"inference_{name}.jpg", sheet))
    path = ROOT / "docs" / "photographs.jpg"
    draw_photographs(MattePredictor.from_pretrained(), path, tile=132)
    print(path)


def prepare() -> None:
    """Write the inputs of the commands."""
    WORK.mkdir(parents=True, exist_ok=True)
    for photograph in real_photographs():
        if photograph.name in ("coffee", "rocket"):
            write_image(WORK / f"{photograph.name}.png", photograph.load())
    rough = np.zeros(read_image(WORK / "coffee.png").shape[:2], np.uint8)
    cv2.ellipse(rough, (280, 200), (170, 150), 0, 0, 360, 255, -1)
    write_image(WORK / "rough.png", rough)
    image, alpha = draw(1280, 720)
    write_image(WORK / "large.png", image)
    write_image(WORK / "large_alpha.png", alpha)


def sheets() -> dict[str, np.ndarray]:
    """Lay out the sheets, uint8 `[H, W, 3]` by name."""
    photo, rough = read_image(WORK / "coffee.png"), read_alpha(WORK / "rough.png")
    boxed, dotted = photo.copy(), photo.copy()
    cv2.rectangle(boxed, BOX[:2], BOX[2:], (255, 210, 0), 4)
    for point in POINTS:
        cv2.circle(dotted, point, 9, (255, 210, 0), -1)
    masked = (photo * (0.35 + 0.65 * rough[..., None])).astype(np.uint8)
    mattes = [read_alpha(WORK / f"{name}.png") for name in ("box", "points", "mask")]
    rgba = cv2.cvtColor(cv2.imread(str(WORK / "cut_out.png"), -1), cv2.COLOR_BGRA2RGBA)
    colors, alpha = rgba[..., :3], rgba[..., 3]
    large = [read_image(WORK / "large.png")]
    large += [read_alpha(WORK / f"{name}.png") for name in ("plain", "tiles", "large_alpha")]
    details = [image[DETAIL[1] : DETAIL[3], DETAIL[0] : DETAIL[2]] for image in large]
    black, raw = np.zeros_like(photo), over(photo, alpha, np.zeros_like(photo))
    return {
        "prompts": contact_sheet(
            [boxed, dotted, masked, *mattes], ["--box", "--points", "--mask"], 3, 300
        ),
        "cutout": contact_sheet(
            [photo, over(colors, alpha, checkerboard(alpha.shape)),
             read_image(WORK / "postcard.png")],
            ["coffee.png", "cut_out.png, on a checkerboard", "postcard.png"], 3, 300,
        ),
        "colors": contact_sheet(
            [raw, over(colors, alpha, black)],
            ["colors of the image under the matte", "cut_out.png: estimated colors"], 2, 400,
        ),
        "tiles": contact_sheet(
            [*large, *details],
            ["large.png", "plain.png", "tiles.png", "true matte", f"enlarged: {DETAIL}"], 4, 300,
        ),
    }  # fmt: skip


def over(colors: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Composite colors over a background, uint8 `[H, W, 3]`; alpha is uint8 `[H, W]`."""
    weight = alpha[..., None] / np.float32(255)
    return np.round(weight * colors + (1 - weight) * background).astype(np.uint8)


if __name__ == "__main__":
    main()
