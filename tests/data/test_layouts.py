"""Every set of the catalog, from its files to its samples, on miniature trees."""

import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import LAYOUTS, make_layouts

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, list_samples
from SDMatte.images.io import read_alpha, read_image, read_trimap
from SDMatte.images.resize import resize_bilinear, resize_trimap
from SDMatte.samples import OBJECT_KINDS

README = Path(__file__).resolve().parents[2] / "data/README.md"
SETTINGS = {"kernel_sizes": [3, 5], "point_radius": 3}

# The published trees, spelled out independently: the generator takes its folders from the catalog,
# so comparing those two would not reveal a wrong folder.
FOLDERS = {
    "Combined_Dataset/Training_set/combined_fg": r"\d-12[0-9a-f]{8}dfXY\.(png|jpg)",
    "Combined_Dataset/Training_set/combined_alpha": r"\d-12[0-9a-f]{8}dfXY\.png",
    "Distinctions-646/Train/FG": r"\d\.png",
    "Distinctions-646/Train/GT": r"\d\.png",
    "AM-2K/train/original": r"m_[0-9a-f]{8}\.jpg",
    "AM-2K/train/fg": r"m_[0-9a-f]{8}\.png",
    "AM-2K/train/mask": r"m_[0-9a-f]{8}\.png",
    "UHRSD/UHRSD_TR_2K/image": r"[0-9a-f]{8}_\d\.jpg",
    "UHRSD/UHRSD_TR_2K/mask": r"[0-9a-f]{8}_\d\.png",
    "UHRSD/UHRSD_TE_2K/image": r"[0-9a-f]{8}_\d\.jpg",
    "UHRSD/UHRSD_TE_2K/mask": r"[0-9a-f]{8}_\d\.png",
    "RefMatte/RefMatte/train/img": r"rim_train_\d{8}\.jpg",
    "RefMatte/RefMatte/train/mask": r"rim_train_\d{8}_[01]\.png",
    "P3M-10k/train/blurred_image": r"p_[0-9a-f]{8}\.jpg",
    "P3M-10k/train/mask": r"p_[0-9a-f]{8}\.png",
    "RealWorldPortrait-636/image": r"\d{4}\.jpg",
    "RealWorldPortrait-636/alpha": r"\d{4}\.png",
    "Transparent-460/Train/fg": r"[0-9a-f]{8}\.jpg",
    "Transparent-460/Train/alpha": r"[0-9a-f]{8}\.png",
    "COCO_Matting": r"COCO_Matte\.json",
    "COCO_Matting/train2017": r"\d{12}\.jpg",
    "COCO_Matting/alpha": r"\d{12}_[01]\.png",
    "COCO_Matting/trimap": r"\d{12}_[01]\.png",
    "BG-20K/train": r"h_[0-9a-f]{8}\.jpg",
    "BG-20K/testval": r"h_[0-9a-f]{8}\.jpg",
    "txt": r"(Composition-1K|DIS-646|UHRSD|RefMatte|COCO-Matting|AIM-500)_transparent_samples\.txt",
    "AIM-500/original": r"o_[0-9a-f]{8}\.jpg",
    "AIM-500/mask": r"o_[0-9a-f]{8}\.png",
    "AIM-500/trimap": r"o_[0-9a-f]{8}\.png",
    "AM-2K/validation/original": r"m_[0-9a-f]{8}\.jpg",
    "AM-2K/validation/mask": r"m_[0-9a-f]{8}\.png",
    "AM-2K/validation/trimap": r"m_[0-9a-f]{8}\.png",
    "P3M-10k/validation/P3M-500-NP/original_image": r"p_[0-9a-f]{8}\.jpg",
    "P3M-10k/validation/P3M-500-NP/mask": r"p_[0-9a-f]{8}\.png",
    "P3M-10k/validation/P3M-500-NP/trimap": r"p_[0-9a-f]{8}\.png",
    "RefMatte_RW_100": r"refmatte_rw100_label\.json",
    "RefMatte_RW_100/image": r"p_[0-9a-f]{8}\.jpg",
    "RefMatte_RW_100/mask": r"p_[0-9a-f]{8}_[01]\.png",
    "Transparent-460/Test/fg": r"[0-9a-f]{8}\.jpg",
    "Transparent-460/Test/alpha": r"[0-9a-f]{8}\.png",
    "Transparent-460/Test/trimap": r"[0-9a-f]{8}\.png",
    "Combined_Dataset/Test_set/merged": r"boy-1518482_1920_\d\.png",
    "Combined_Dataset/Test_set/alpha_copy": r"boy-1518482_1920_\d\.png",
    "Combined_Dataset/Test_set/trimaps": r"boy-1518482_1920_\d\.png",
}

# (name, training): numbers of natural, composite and transparent samples, for 2 images a folder
SAMPLES = {
    ("Composition-1K", True): (0, 6, 3),
    ("DIS-646", True): (0, 6, 3),
    ("AM-2K", True): (2, 4, 0),
    ("UHRSD", True): (4, 0, 2),
    ("RefMatte", True): (4, 0, 2),
    ("P3M-10K", True): (2, 0, 0),
    ("RWP-636", True): (2, 0, 0),
    ("Trans-460", True): (2, 10, 12),
    ("COCO-Matting", True): (4, 0, 2),
    ("AIM-500", False): (2, 0, 1),
    ("AM-2K", False): (2, 0, 0),
    ("P3M-500-NP", False): (2, 0, 0),
    ("RefMatte-RW-100", False): (4, 0, 0),
    ("Trans-460", False): (2, 0, 2),
    ("Composition-1K", False): (2, 0, 1),
    ("UHRSD", False): (2, 0, 1),
}
WITH_TRIMAP = {
    ("COCO-Matting", True),
    ("AIM-500", False),
    ("AM-2K", False),
    ("Trans-460", False),
    ("Composition-1K", False),
}
each_set = pytest.mark.parametrize(
    ("name", "training"), SAMPLES, ids=lambda v: {True: "train", False: "test"}.get(v, v)
)


def files(root):
    """Map relative paths to digests of their content."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def folders(paths):
    """Group file names by folder."""
    found = {}
    for path in map(Path, paths):
        found.setdefault(path.parent.as_posix(), []).append(path.name)
    return found


# --------------------------------------------------------------- the generator


def test_layouts_cover_the_catalog():
    assert {name for name, training in SAMPLES if training} == set(TRAIN_SETS)
    assert {name for name, training in SAMPLES if not training} == set(TEST_SETS)
    assert set(LAYOUTS) == {*TRAIN_SETS, *TEST_SETS, "BG-20K"}


def test_generated_trees_match_the_published_ones(layout_root):
    made = folders(files(layout_root))
    assert made.keys() == FOLDERS.keys()
    for folder, names in made.items():
        wrong = [name for name in names if not re.fullmatch(FOLDERS[folder], name)]
        assert not wrong, folder


def drawn_folders(text):
    """Parse the folders from the trees drawn in a README."""
    found = set()
    for tree in re.findall(r"```\n<data root>/\n(.*?)```", text, re.DOTALL):
        path = []
        for line in tree.splitlines():
            indent, name = re.fullmatch(r"([│├└─ ]*)(\S+).*", line).groups()
            depth = len(indent) // 4 - 1
            path[depth:] = [name.rstrip("/")]
            if name.endswith("/"):
                found.add("/".join(path))
    return found


def test_readme_documents_the_trees():
    leaves = drawn_folders(README.read_text(encoding="utf-8"))
    assert set(FOLDERS) <= leaves
    parents = {parent.as_posix() for folder in FOLDERS for parent in Path(folder).parents}
    assert leaves <= parents | set(FOLDERS)


def test_trees_are_reproducible_and_independent(layout_root, tmp_path):
    whole = files(layout_root)
    part = make_layouts(tmp_path / "part", ["RefMatte", "AIM-500"], num=2, size=80)
    assert {path.split("/")[0] for path in files(part)} == {"RefMatte", "AIM-500", "txt"}
    assert files(part).items() <= whole.items()
    other = make_layouts(tmp_path / "other", ["AIM-500"], num=2, size=80, seed=1)
    assert not set(files(other).values()) & set(whole.values())


def test_only_composited_sets_come_with_backgrounds(tmp_path):
    for name, expected in (("DIS-646", True), ("P3M-10K", False), ("BG-20K", True)):
        root = make_layouts(tmp_path / name, [name], num=1, size=64)
        assert (root / "BG-20K").exists() == expected


def test_images_are_composites_of_their_foregrounds(layout_root):
    folder = layout_root / "AM-2K/train"
    for path in (folder / "mask").iterdir():
        alpha = read_alpha(path)
        image = read_image(folder / "original" / f"{path.stem}.jpg").astype(int)
        fg = read_image(folder / "fg" / path.name).astype(int)
        difference = np.abs(image - fg).mean(-1)
        assert difference[alpha == 1].mean() < 6 < 20 < difference[alpha == 0].mean()


def test_paired_objects_do_not_overlap(layout_root):
    folder = layout_root / "RefMatte_RW_100/mask"
    first, second = (read_alpha(path) for path in sorted(folder.iterdir())[:2])
    assert first.shape == second.shape and first.max() == second.max() == 1
    assert (first * second).max() == 0


def test_trimaps_agree_with_alphas(layout_root):
    for folder in FOLDERS:
        if not folder.endswith(("trimap", "trimaps")):
            continue
        alphas = next(p for p in (layout_root / folder).parent.iterdir()
                      if p.name in ("mask", "alpha", "alpha_copy"))  # fmt: skip
        for path in (layout_root / folder).iterdir():
            trimap, alpha = read_trimap(path), read_alpha(alphas / path.name)
            assert set(np.unique(trimap)) <= {0, 128, 255} and (trimap == 128).any()
            assert (alpha[trimap == 0] == 0).all() and (alpha[trimap == 255] == 1).all()


# ------------------------------------------------------------------- the samples


@each_set
def test_listed_samples(layout_root, name, training):
    samples = list_samples(name, layout_root, training)
    natural, composites, transparent = SAMPLES[name, training]
    assert Counter(bool(s.background) for s in samples) == Counter(
        {False: natural, True: composites}
    )
    assert sum(sample.is_trans for sample in samples) == transparent
    assert {sample.dataset for sample in samples} == {name}
    for sample in samples:
        has_trimap = (name, training) in WITH_TRIMAP
        assert Path(sample.trimap).parent.name.startswith("trimap") == has_trimap
        assert bool(sample.caption) == (name == "RefMatte-RW-100")
        paths = [sample.image, sample.alpha, sample.trimap, sample.background]
        assert all((layout_root / path).is_file() for path in paths if path)
        assert not any(Path(path).is_absolute() for path in paths)
        stem = Path(sample.alpha).stem
        if name in ("RefMatte", "RefMatte-RW-100", "COCO-Matting"):
            stem = stem[:-2]
        assert Path(sample.image).stem == stem


def test_captions_describe_object_and_side(layout_root):
    samples = list_samples("RefMatte-RW-100", layout_root, training=False)
    for sample, side in zip(samples, ["left", "right"] * 2, strict=True):
        kind = re.fullmatch(rf"the (\w+) on the {side}", sample.caption).group(1)
        assert kind in OBJECT_KINDS
        columns = read_alpha(layout_root / sample.alpha).sum(0).nonzero()[0]
        middle = read_alpha(layout_root / sample.alpha).shape[1] / 2
        assert columns.max() < middle if side == "left" else columns.min() >= middle


@each_set
def test_loaded_samples(layout_root, name, training):
    dataset = MattingDataset(
        name, root=layout_root, size=32, training=training, settings=SETTINGS, max_bad_samples=0
    )
    for i, sample in enumerate(dataset.samples):
        item = dataset[i]
        alpha = read_alpha(layout_root / sample.alpha)
        assert item["image_name"] == Path(sample.alpha).name and item["dataset"] == name
        assert int(item["is_trans"]) == sample.is_trans
        assert item["caption"] == sample.caption
        assert item["image"].isfinite().all() and item["alpha"].max() > 0
        height, width = alpha.shape
        if sample.background:
            assert item["hw"].tolist() == [height, 2 * width] and item["image_path"] == ""
            continue
        assert item["hw"].tolist() == [height, width]
        assert item["image_path"] == str(layout_root / sample.image)
        expected = torch.from_numpy(resize_bilinear(alpha, 32) * 2 - 1)
        assert torch.allclose(item["alpha"][0], expected, atol=1e-6)
        if sample.trimap:
            given = resize_trimap(read_trimap(layout_root / sample.trimap), 32)
            assert np.array_equal(
                item["trimap"][0].numpy(), given * 2 - 1
            )  # {0, 0.5, 1} -> {-1, 0, 1}


@pytest.mark.parametrize("name", ["Composition-1K", "DIS-646", "UHRSD", "COCO-Matting"])
def test_transparency_without_a_list_is_measured(layout_root, tmp_path, name):
    shutil.copytree(layout_root, tmp_path / "trees", ignore=shutil.ignore_patterns("txt"))
    listed = [sample.is_trans for sample in list_samples(name, layout_root)]
    dataset = MattingDataset(name, root=tmp_path / "trees", size=16, settings=SETTINGS)
    assert {sample.is_trans for sample in dataset.samples} == {None}
    assert [int(dataset[i]["is_trans"]) for i in range(len(dataset))] == listed
