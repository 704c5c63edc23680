"""Prompt files, and prompts whose maps are files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SDMatte.errors import DataError
from SDMatte.images.io import write_image
from SDMatte.inference.batch import Batch
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import PromptRequest, read_prompt_file

AUTO = PromptRequest("auto")

JSON = {
    "a.png": {"box": [1, 2, 30, 40], "transparent": True},
    "b.jpg": [{"points": [[5, 6], [7, 8]]}, {"mask": "masks/b.png"}],
    "c.webp": {"auto": True},
}
CSV = """\
image,box,points,mask,auto,transparent
a.png,1 2 30 40,,,,yes
b.jpg,,"5,6,7,8",,,
b.jpg,,,masks/b.png,,0
c.webp,,,,1,
"""


def test_prompt_files(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(JSON))
    (tmp_path / "p.csv").write_text("\ufeff" + CSV)
    expected = {
        "a.png": [PromptRequest("box", [1, 2, 30, 40], True)],
        "b.jpg": [
            PromptRequest("points", [[5, 6], [7, 8]]),
            PromptRequest("mask", tmp_path / "masks" / "b.png"),
        ],
        "c.webp": [AUTO],
    }
    assert read_prompt_file(tmp_path / "p.json") == expected
    assert read_prompt_file(tmp_path / "p.csv") == expected


def test_maps_are_loaded_for_their_image(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1] = 255
    write_image(tmp_path / "masks" / "a.png", mask)
    image = tmp_path / "in" / "a.jpg"
    for value in (tmp_path / "masks", tmp_path / "masks" / "a.png"):
        loaded = PromptRequest("mask", value, True).load(image)
        np.testing.assert_array_equal(loaded["mask"], mask)
        assert loaded["transparent"] is True
        trimap = PromptRequest("trimap", value).load(image)["trimap"]
        np.testing.assert_array_equal(trimap, mask)
    assert AUTO.load(image) == {"transparent": False}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "must be a .json or a .csv file"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", "[]", "must map image names"),
        ("p.json", "{}", "has no prompts"),
        ("p.json", '{"a.png": 3}', "a.png: a prompt must be like"),
        ("p.json", '{"a.png": {}}', "got nothing"),
        ("p.json", '{"a.png": {"box": [1], "auto": true}}', "must have one of box, points"),
        ("p.json", '{"a.png": {"bbox": [1, 2, 3, 4]}}', "got bbox"),
        ("p.json", '{"a.png": {"auto": true, "transparent": "no"}}', "transparent='no'"),
        ("p.json", '{"a.png": {"auto": "false"}}', "auto='false'"),
        ("p.json", '{"a.png": {"mask": [1]}}', "mask must be a file"),
        ("p.json", '{"../a.png": {"auto": true}}', "relative to the image folder"),
        ("p.json", "[" * 200_000, "not valid JSON"),
        ("p.json", '{"a": {"auto": true}, "a": {"auto": true}}', "'a' occurs twice"),
        ("p.json", '{"": {"auto": true}}', "relative to the image folder"),
        ("p.json", '{".": {"auto": true}}', "relative to the image folder"),
        (
            "p.json",
            '{"a.png": {"box": [[1, 2, 3, 4], [5, 6, 7, 8]]}}',
            "box must be a list of four",
        ),
        ("p.csv", f"image,box\n{'a' * 200_000},1 2 3 4\n", "not valid CSV"),
        ("p.csv", "picture,box\n", "the column image"),
        ("p.csv", "image,box,box\na.png,1 2 3 4,5 6 7 8\n", "each once"),
        ("p.csv", 'image,box\na.png,"1 2 3 4\nb.png,1 2 3 4\n', "not valid CSV"),
        ("p.csv", "image,box\na.png,1 two 3 4\n", "line 2: box must be a list of numbers"),
        ("p.csv", "image,points\na.png,1 2 3\n", "points must be pairs x y; got 3 numbers"),
        ("p.csv", "image,auto\na.png,maybe\n", "auto must be 1 or 0"),
        ("p.csv", "image,auto\na.png,1,2\n", "no more values than columns"),
        ("p.csv", "image,box\na.png,\n", "must have one of box"),
    ],
)
def test_invalid_prompt_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompt_file(tmp_path / name)
    with pytest.raises(DataError, match="Cannot read"):
        read_prompt_file(tmp_path / "none.csv")


text = st.one_of(
    st.text(max_size=40),
    st.sampled_from([json.dumps(JSON), CSV]).flatmap(
        lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end])
    ),
    st.lists(st.sampled_from([*'{}[]:,"\n', "image", "box", "a.png", "1 2 3 4", "true"])).map(
        "".join
    ),
)


@settings(max_examples=150)
@given(suffix=st.sampled_from([".json", ".csv"]), content=text)
def test_any_prompt_file_is_valid_or_refused(tmp_path_factory, suffix, content):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content.encode("utf-8", "replace"))
    try:
        listed = read_prompt_file(path)
    except DataError as error:
        assert "\n" not in str(error)
        return
    batch = Batch(OutputSettings(), path.parent / "out")
    batch.add_listed(path.parent, listed)
    batch.check()
