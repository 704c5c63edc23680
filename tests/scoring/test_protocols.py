import cv2
import numpy as np
import pytest

from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.images.resize import resize_alpha
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import PROTOCOLS, get_protocol, read_truth, score_pair

OFFICIAL, CORRECTED = PROTOCOLS.values()


def finish_alpha(pred, hw, protocol):
    return resize_alpha(pred, hw, protocol.eight_bit)


@pytest.mark.numerics
def test_official_truncates_after_resizing():
    assert finish_alpha(np.full((4, 4), 0.5, np.float32), (4, 4), OFFICIAL).tolist()[0][0] == 127
    assert finish_alpha(np.full((2, 2), 0.9999, np.float32), (5, 3), OFFICIAL).max() == 254
    pred = np.random.default_rng(0).random((16, 16), np.float32)
    resized = cv2.resize(pred * np.float32(255), (31, 23), interpolation=cv2.INTER_LINEAR)
    found = finish_alpha(pred, (23, 31), OFFICIAL)
    assert found.dtype == np.uint8
    # Near integers the result depends on rounding; rounding throughout moves half of the pixels.
    assert (found != np.floor(resized)).mean() < 0.01


@pytest.mark.numerics
def test_corrected_keeps_floating_point():
    pred = np.random.default_rng(0).random((16, 16))
    found = finish_alpha(pred, (23, 31), CORRECTED)
    assert found.dtype == np.float32
    expected = cv2.resize(np.float32(pred), (31, 23), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(finish_alpha(pred, (16, 16), CORRECTED), np.float32(pred))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_resizing_clips_and_refuses_other_arrays(protocol):
    pred = np.array([[-0.01, 1.01]], np.float32)
    copy = pred.copy()
    found = finish_alpha(pred, (1, 2), protocol)
    assert found.tolist() == [[0, 255 if protocol.eight_bit else 1]]
    assert np.array_equal(pred, copy)
    for bad in (np.full((2, 2), np.nan), np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2))):
        with pytest.raises(ValueError, match="prediction"):
            finish_alpha(bad, (2, 2), protocol)


def test_eight_bit_files_are_scored_exactly(tmp_path):
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = read_alpha(write_image(tmp_path / "a.png", alpha))
    assert np.array_equal(OFFICIAL.as_scored(read), alpha)
    assert CORRECTED.as_scored(read) is read


def test_deeper_files_are_rounded_in_official(tmp_path):
    path = write_image(tmp_path / "a.png", np.uint16([[257 * 7 + 128, 257 * 7 + 129]]))
    assert OFFICIAL.as_scored(read_alpha(path)).tolist() == [[7, 8]]


def test_scores_are_those_of_the_metrics():
    rng = np.random.default_rng(1)
    pred, true = rng.integers(0, 256, (2, 30, 20), dtype=np.uint8)
    trimap = rng.choice([0, 128, 255], true.shape).astype(np.uint8)
    for protocol in ("official", "corrected"):
        found = score_pair(pred, true, trimap, protocol)
        expected = {k: m(pred, true, trimap, protocol=protocol) for k, m in METRICS.items()}
        assert found == expected
    assert score_pair(pred, true, None, "official") != score_pair(pred, true, None, "corrected")


def test_truths_must_have_the_size_of_the_prediction(tmp_path):
    path = write_image(tmp_path / "a.png", np.zeros((4, 6), np.uint8))
    pred = np.zeros((4, 6), np.uint8)
    true, trimap = read_truth(pred, path, None, OFFICIAL)
    assert (true.dtype, true.shape, trimap) == (np.uint8, (4, 6), None)
    with pytest.raises(DataError, match=r"6x5.*true alpha .*a\.png is 6x4"):
        read_truth(np.zeros((5, 6), np.uint8), path, None, OFFICIAL)
    small = write_image(tmp_path / "t.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"trimap .*t\.png is 2x2"):
        read_truth(pred, path, small, OFFICIAL)


def test_trimaps_hold_three_values(tmp_path):
    path = write_image(tmp_path / "a.png", np.zeros((1, 3), np.uint8))
    pred = np.zeros((1, 3), np.uint8)
    for allowed in ([[0, 128, 255]], [[0, 255, 255]], np.uint16([[0, 128 * 257, 65535]])):
        file = write_image(tmp_path / "t.png", np.array(allowed, getattr(allowed, "dtype", "u1")))
        assert set(read_truth(pred, path, file, OFFICIAL)[1].ravel()) <= {0, 128, 255}
    for given in ([[0, 127, 255]], [[0, 1, 2]]):
        file = write_image(tmp_path / "t.png", np.array(given, np.uint8))
        assert read_truth(pred, path, file, OFFICIAL)[1].tolist() == [[0, 128, 255]]
    file = write_image(tmp_path / "t.png", np.array([[0, 64, 255]], np.uint8))
    with pytest.raises(DataError, match=r"t\.png has the value 64\. Allowed are 0 \(background\)"):
        read_truth(pred, path, file, OFFICIAL)


def test_unknown_protocol():
    with pytest.raises(ConfigError, match="official, corrected"):
        get_protocol("standard")
