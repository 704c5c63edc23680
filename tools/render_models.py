"""Render 3-D models under image-based light, with exact alpha, for `tools/train_small.py`.

MODELS is a folder with `.obj` files, such as those of Debian's package `sweethome3d-furniture`;
HDRIS is one with equirectangular `.exr` images. Needs `pip install mitsuba trimesh`. Existing
renders are kept, so that an interrupted run can be repeated::

    python tools/render_models.py MODELS HDRIS OUT --views 2
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

try:
    import mitsuba as mi
    import trimesh
except ImportError:
    raise SystemExit("Rendering needs mitsuba and trimesh: pip install mitsuba trimesh") from None

Rng = np.random.Generator
_MAX_TEXTURE = 512  # pixels
_MIN_AREA = 400  # pixels of a render that is worth keeping

mi.set_variant("scalar_rgb")
logger = logging.getLogger("render_models")


def make_material(visual: Any, rng: Rng) -> dict[str, Any]:
    """Describe the material of a mesh to Mitsuba, with a random roughness and tint."""
    material = getattr(visual, "material", None)
    base: dict[str, Any] = {"type": "rgb", "value": [0.6] * 3}
    mask: Any = None
    if material is not None:
        rgba = np.asarray(material.main_color, float) / 255
        tint = rng.uniform(0.7, 1.1, 3) if rng.random() < 0.5 else np.ones(3)
        base["value"] = np.clip(rgba[:3] ** 2.2 * tint, 0, 0.95).tolist()  # sRGB -> linear
        if rgba[3] < 0.99:
            mask = max(0.1, float(rgba[3]))
        image = getattr(material, "image", None)
        if image is not None:
            image = image.convert("RGBA")
            image.thumbnail((_MAX_TEXTURE, _MAX_TEXTURE))
            colors, alpha = np.split(np.array(image), [3], axis=2)
            base = _bitmap(np.ascontiguousarray(colors), raw=False)
            if alpha.min() < 250:
                mask = _bitmap(alpha.astype(np.float32) / 255, raw=True)
    surface = {
        "type": "principled",
        "base_color": base,
        "roughness": float(rng.uniform(0.15, 0.9)),
        "specular": float(rng.uniform(0.2, 0.7)),
    }
    surface = {"type": "twosided", "bsdf": surface}
    return surface if mask is None else {"type": "mask", "opacity": mask, "nested": surface}


def _bitmap(values: np.ndarray, raw: bool) -> dict[str, Any]:
    return {"type": "bitmap", "bitmap": mi.Bitmap(values), "raw": raw}


def make_mesh(geometry: trimesh.Trimesh, material: dict[str, Any]) -> Any:
    """Convert a mesh for Mitsuba."""
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(material)
    uv = getattr(geometry.visual, "uv", None)
    mesh = mi.Mesh(
        "mesh",
        len(geometry.vertices),
        len(geometry.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=uv is not None,
        props=properties,
    )
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = np.asarray(geometry.vertices, np.float32).ravel()
    parameters["vertex_normals"] = np.asarray(geometry.vertex_normals, np.float32).ravel()
    parameters["faces"] = np.asarray(geometry.faces, np.uint32).ravel()
    if uv is not None:
        # Mitsuba counts the rows of a texture from above.
        flipped = np.asarray(uv, np.float32) * (1, -1) + (0, 1)
        parameters["vertex_texcoords"] = flipped.astype(np.float32).ravel()
    parameters.update()
    return mesh


def render(path: Path, lights: list[Path], rng: Rng, size: int, samples: int) -> np.ndarray:
    """Render a model from a random side: uint8 RGBA `[size, size, 4]`."""
    parts = [
        part
        for part in trimesh.load(path, force="scene", process=False).dump()
        if len(getattr(part, "faces", ()))
    ]
    low = np.min([part.bounds[0] for part in parts], axis=0)
    high = np.max([part.bounds[1] for part in parts], axis=0)
    center, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
    turn = mi.ScalarTransform4f().rotate([0, 1, 0], float(rng.uniform(0, 360)))
    scene: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 4, "hide_emitters": True},
        "surroundings": {
            "type": "envmap",
            "filename": str(lights[rng.integers(len(lights))]),
            "scale": float(rng.uniform(0.7, 1.6)),
            "to_world": turn,
        },
    }
    if rng.random() < 0.4:  # the sun
        x, y, z = rng.normal(size=3)
        color = (rng.uniform(0.5, 2.5) * rng.uniform(0.8, 1, 3)).tolist()
        scene["sun"] = {
            "type": "directional",
            "direction": [x, -abs(y) - 0.3, z],
            "irradiance": {"type": "rgb", "value": color},
        }
    for index, part in enumerate(parts):
        scene[f"part{index}"] = make_mesh(part, make_material(part.visual, rng))
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.radians(rng.uniform(-8, 40) if rng.random() < 0.9 else rng.uniform(40, 75))
    fov = float(rng.uniform(22, 55))
    distance = radius / np.sin(np.radians(fov / 2)) * rng.uniform(0.75, 1.0)
    flat = np.cos(elevation)
    direction = (flat * np.sin(azimuth), np.sin(elevation), flat * np.cos(azimuth))
    eye = center + distance * np.array(direction)
    scene["camera"] = {
        "type": "perspective",
        "fov": fov,
        "to_world": mi.ScalarTransform4f().look_at(eye.tolist(), center.tolist(), [0, 1, 0]),
        "film": {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgba"},
        "sampler": {
            "type": "multijitter",
            "sample_count": samples,
            "seed": int(rng.integers(2**31)),
        },
    }
    return develop(np.array(mi.render(mi.load_dict(scene)), np.float32))


def develop(light: np.ndarray) -> np.ndarray:
    """Expose linear, premultiplied RGBA as a photograph: uint8, straight colors."""
    alpha = np.clip(light[..., 3:], 0, 1)
    colors = np.clip(light[..., :3], 0, None) / np.maximum(alpha, 1e-3)
    visible = colors[alpha[..., 0] > 0.5]
    middle = float(np.median(visible)) if len(visible) else 1.0
    colors = colors * np.clip(0.45 / max(middle, 1e-3), 0.3, 4)
    colors = np.clip(1.5 * colors / (1 + colors), 0, 1) ** (1 / 2.2)
    return np.round(np.concatenate([colors, alpha], axis=-1) * 255).astype(np.uint8)


def main() -> None:
    """Render all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("lights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--views", type=int, default=2, help="of each model")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=16, help="per pixel")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lights = sorted(args.lights.glob("*.exr"))
    models = sorted(args.models.rglob("*.obj"))
    for index, path in enumerate(tqdm(models * args.views)):
        target = args.output / f"{path.stem}_{index // len(models)}.webp"
        if target.exists():
            continue
        try:
            rgba = render(path, lights, np.random.default_rng([7, index]), args.size, args.samples)
        except Exception:  # free models are faulty in many ways
            logger.exception("%s was left out.", path)
            continue
        image = Image.fromarray(rgba)
        box = image.getchannel("A").getbbox()
        if box is not None and (box[2] - box[0]) * (box[3] - box[1]) > _MIN_AREA:
            image.crop(box).save(target, quality=92, exact=True)


if __name__ == "__main__":
    main()
