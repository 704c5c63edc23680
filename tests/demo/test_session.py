"""A visitor's session: prompts from gestures, undo, files; without a browser or gradio."""

import numpy as np
import pytest
from models import ROUNDING

from SDMatte.demo.session import PREVIEW, VIEWS, Session
from SDMatte.errors import DataError, PromptError
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.samples.photos import real_photographs

BOX = {"tool": "box", "points": [[72, 63], [9, 7]], "width": 1}
POINTS = [{"tool": "points", "points": [[x, 30]], "width": 1} for x in (20, 40)]
STROKE = {"tool": "paint", "points": [[10, 10], [60, 40]], "width": 12}
ERASED = {"tool": "remove", "points": [[0, 35], [89, 35]], "width": 30}


@pytest.fixture
def path(tmp_path, rgb):
    return write_image(tmp_path / "photo.png", rgb)


@pytest.fixture
def session(tmp_path, path):
    session = Session(tmp_path / "visitor")
    session.open(path, "my photo.png", 1e6)
    return session


def predict(session, predictor, *gestures, transparent=False, tiles=False):
    session.predict(predictor, list(gestures), transparent, tiles)
    return session.steps[-1].result.alpha


def close(one, other):
    return np.allclose(one, other, **ROUNDING)


def test_gestures_are_the_predictors_prompts(session, predictor, rgb):
    image = predictor.encode(rgb)

    def expected(**prompt):
        return predictor.predict(**prompt, image=image).alpha

    assert close(predict(session, predictor), expected())  # no prompt: the salient object
    assert close(predict(session, predictor, BOX), expected(box=(9, 7, 72, 63)))
    assert close(predict(session, predictor, *POINTS), expected(points=[(20, 30), (40, 30)]))
    assert close(
        predict(session, predictor, *POINTS, transparent=True),
        expected(points=[(20, 30), (40, 30)], transparent=True),
    )
    assert close(
        predict(session, predictor, transparent=False),  # the last prompt again
        expected(points=[(20, 30), (40, 30)]),
    )


def test_strokes_paint_a_mask_and_then_change_the_matte(session, predictor, rgb):
    predict(session, predictor, STROKE)
    painted = session.steps[-1].prompt["mask"]
    assert painted[25, 35] == 255 and painted[60, 10] == 0
    before = session.steps[-1].result.alpha >= 0.5
    predict(session, predictor, STROKE, ERASED)
    mask = session.steps[-1].prompt["mask"]
    assert not mask[35].any()
    untouched = np.ones_like(before)
    untouched[15:] = False  # above the erased line
    untouched[:, 5:] = False  # left of the stroke
    np.testing.assert_array_equal(mask[untouched] == 255, before[untouched])
    assert session.shown() == []  # strokes are part of the matte
    expected = predictor.predict(mask=mask, image=predictor.encode(rgb)).alpha
    assert close(session.steps[-1].result.alpha, expected)


def test_undo_removes_gestures_without_a_matte_then_mattes(session, predictor):
    first = predict(session, predictor, POINTS[0])
    predict(session, predictor, BOX)
    assert session.undo([*POINTS]) == POINTS[:1]
    assert session.undo([BOX]) == POINTS[:1] and session.steps[-1].result.alpha is first
    assert session.undo(POINTS[:1]) == [] and not session.steps
    assert session.undo([]) == []
    assert session.stage([])["matte"] is None


def test_a_second_prompt_reuses_the_encoding(session, tiny, predictor):
    encoded = []
    handle = tiny.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    try:
        for point, count in zip(POINTS, (2, 3), strict=True):  # image and map; then the map
            predict(session, predictor, point)
            assert len(encoded) == count
        predict(session, predictor.at_resolution(128), POINTS[0])
        assert len(encoded) == 5
    finally:
        handle.remove()


def test_tiles(session, predictor):
    plain = predict(session, predictor, BOX)
    assert not close(predict(session, predictor, BOX, tiles=True), plain)


def test_files_have_the_full_size_and_depth(session, predictor, rgb):
    alpha = predict(session, predictor, BOX)
    for bits, tolerance in ((8, 0.5 / 255), (16, 1 / 65535)):
        path = session.write("alpha", bits)
        assert path.name == "my_photo_matte.png"
        assert np.abs(read_alpha(path) - alpha).max() <= tolerance + 1e-6
        cutout = session.write("cutout", bits)
        assert cutout.name == "my_photo_cutout.png" and cutout.read_bytes()[24] == bits
        assert read_image(cutout).shape == rgb.shape
    session.close()
    assert not session.folder.exists()


def test_views(session, predictor, path):
    before, after = session.compare(VIEWS[0], "white")
    np.testing.assert_allclose(read_image(before), read_image(after))
    alpha = predict(session, predictor, BOX)
    session.set_background(path, "photo.png", 1e6)
    shown = {view: read_image(session.compare(view, "rgba(0, 177.4, 64, 1)")[1]) for view in VIEWS}
    assert all(image.shape == (70, 90, 3) for image in shown.values())
    assert np.abs(shown["Matte"][..., 0] / 255.0 - alpha).mean() < 0.03  # JPEG
    assert len({image.tobytes() for image in shown.values()}) == len(VIEWS)
    for text in ("no color", str(path), "rgb(300, 0, 0)", "rgb(1.2.3)", ""):  # files are not read
        with pytest.raises(DataError, match="is not a color such as"):
            session.compare("Color", text)


def test_large_images_are_reduced_for_the_browser(tmp_path, predictor):
    path = write_image(tmp_path / "wide.png", np.full((300, 2048, 3), 90, np.uint8))
    session = Session(tmp_path / "visitor")
    session.open(path, "wide.png", 1e6)
    predict(session, predictor, BOX)
    assert read_image(session.compare(VIEWS[0], "white")[1]).shape == (150, PREVIEW, 3)
    assert read_alpha(session.write("alpha", 8)).shape == (300, 2048)


def test_refused_input(session, predictor, path, tmp_path):
    empty = Session(tmp_path / "other")
    with pytest.raises(PromptError, match="No image is open"):
        predict(empty, predictor, BOX)
    with pytest.raises(PromptError, match="No matte yet"):
        session.write("alpha", 8)
    with pytest.raises(
        DataError, match=r"a.png has 0.0 megapixels; the limit of this page is 0.00"
    ):
        session.open(path, "a.png", 6000)
    text = tmp_path / "secret-folder.png"
    text.write_text("not an image")
    with pytest.raises(DataError, match=r"^Cannot read notes.png: it is not an image") as caught:
        session.open(text, "notes.png", 1e6)
    assert "secret" not in str(caught.value)
    predict(session, predictor, BOX)  # the previous image is kept
    damaged = [{}, {"tool": "box"}, {**BOX, "points": []}, {**STROKE, "width": "a"}]
    for gesture in [*damaged, {**STROKE, "points": [["a", 0]]}, {"tool": "points", "points": []}]:
        with pytest.raises(PromptError, match="damaged; reload"):
            predict(session, predictor, gesture)
    with pytest.raises(PromptError, match="not in the image"):
        predict(session, predictor, {**POINTS[0], "points": [[90, 0]]})


def test_a_visitor_who_leaves_during_a_computation_leaves_no_files(session, predictor):
    predict(session, predictor, BOX)
    steps = session.steps.copy()
    session.close()
    session.steps = steps  # as if a computation had begun before
    session._metadata = {}
    session.write("alpha", 8)
    assert not session.folder.exists()


def test_samples_are_installed():
    assert {"coffee", "astronaut", "chelsea"} <= {photo.name for photo in real_photographs()}
