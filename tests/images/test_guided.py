"""The guided filter against a direct implementation."""

import numpy as np

from SDMatte.images.guided import guided_filter


def test_guided_filter_solves_its_least_squares_problem():
    rng = np.random.default_rng(0)
    guide, source = rng.random((9, 8, 3)), rng.random((9, 8))
    radius, eps = 1, 1e-2
    padded = [np.pad(a, [(2, 2), (2, 2), (0, 0)][: a.ndim], "symmetric") for a in (guide, source)]
    fits = np.empty((11, 10, 4))
    for y, x in np.ndindex(
        11, 10
    ):  # ridge regression of each window, without penalty on the offset
        colors, values = (a[y : y + 3, x : x + 3].reshape(9, -1) for a in padded)
        design = np.hstack([colors, np.ones((9, 1))])
        ridge = 9 * eps * np.diag([1, 1, 1, 0])
        fits[y, x] = np.linalg.solve(design.T @ design + ridge, design.T @ values)[:, 0]
    expected = np.empty_like(source)
    for y, x in np.ndindex(9, 8):
        mean = fits[y : y + 3, x : x + 3].mean(axis=(0, 1))
        expected[y, x] = mean[:3] @ guide[y, x] + mean[3]
    found = guided_filter(guide, source, radius, eps)
    # At the border, fits are mirrored instead of fitted to mirrored windows.
    np.testing.assert_allclose(found[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-9)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(guided_filter(np.zeros_like(guide), np.ones((9, 8)), 2, 1e-6), 1)
