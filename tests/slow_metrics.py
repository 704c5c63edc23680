"""Slow references for Grad and Conn, computed pixel by pixel from their definitions."""

import math

import numpy as np


def gradient(pred, true, trimap=None):
    error = (_magnitude(pred) - _magnitude(true)) ** 2
    return _total(error, trimap) / 1000


def connectivity(pred, true, trimap=None, protocol="official"):
    pred, true = _unit(pred), _unit(true)
    height, width = pred.shape
    last = {}
    for step in range(1, 11):
        threshold = np.float32(step / 10)
        omega = _largest((pred >= threshold) & (true >= threshold), protocol == "official")
        for y in range(height):
            for x in range(width):
                if (y, x) not in omega:
                    last.setdefault((y, x), np.float32((step - 1) / 10))
    error = np.zeros(pred.shape)
    for y in range(height):
        for x in range(width):
            level = last.get((y, x), np.float32(1))
            error[y, x] = abs(_phi(pred[y, x], level) - _phi(true[y, x], level))
    return _total(error, trimap) / 1000


def _phi(value, level):
    distance = value - level
    return 1 - float(distance) if distance >= np.float32(0.15) else 1.0


def _largest(mask, with_background):
    """Return the largest component as a set of (y, x); ties go to the first in row-major order."""
    background = {(int(y), int(x)) for y, x in np.argwhere(~mask)}
    best = background if with_background else set()
    seen = set()
    for start in np.argwhere(mask):  # row by row
        start = (int(start[0]), int(start[1]))
        if start in seen:
            continue
        component, waiting = {start}, [start]
        while waiting:
            y, x = waiting.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
                if inside and near not in component and mask[near]:
                    component.add(near)
                    waiting.append(near)
        seen |= component
        if len(component) > len(best):
            best = component
    return best


def _magnitude(alpha):
    alpha = np.pad(_unit(alpha).astype(np.float64), 4, mode="edge")
    height, width = alpha.shape[0] - 8, alpha.shape[1] - 8
    sums = np.zeros((2, height, width))
    norm = 0.0
    for i in range(-4, 5):
        for j in range(-4, 5):
            weight = -j * math.exp(-(i * i + j * j) / (2 * 1.4**2))
            norm += weight**2
            sums[0] += weight * alpha[4 + i : 4 + i + height, 4 + j : 4 + j + width]
            sums[1] += weight * alpha[4 + j : 4 + j + height, 4 + i : 4 + i + width]
    return np.sqrt((sums**2).sum(axis=0) / norm)


def _unit(alpha):
    return np.float32(alpha) / np.float32(255) if alpha.dtype == np.uint8 else np.float32(alpha)


def _total(error, trimap):
    return float(error.sum() if trimap is None else error[trimap == 128].sum())
