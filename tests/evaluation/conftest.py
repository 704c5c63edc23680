import cv2
import numpy as np
import pytest

from SDMatte.image_io import write_image


@pytest.fixture
def truths(tmp_path):
    """Five soft discs of different sizes with trimaps and pictures, on disk."""
    rng = np.random.default_rng(0)
    for i in range(5):
        height, width = 40 + 3 * i, 60 - 2 * i
        disc = np.zeros((height, width), np.uint8)
        cv2.circle(disc, (width // 2, height // 2), 10 + i, 255, -1)
        alpha = cv2.GaussianBlur(disc, (0, 0), 2)
        trimap = np.select([alpha < 5, alpha > 250], [0, 255], 128).astype(np.uint8)
        write_image(tmp_path / "truth" / f"t{i}.png", alpha)
        write_image(tmp_path / "trimaps" / f"t{i}.png", trimap)
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        write_image(tmp_path / "images" / f"t{i}.jpg", picture)
    return tmp_path
