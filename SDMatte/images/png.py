"""PNG files of 16 bits a channel with colours and alpha, which Pillow does not write."""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

_HEADER = 33  # bytes: the signature and IHDR, after which metadata may stand
_PER_METRE = 1 / 0.0254  # dots, for one to an inch


def encode_16_bit_png(array: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """Encode an image losslessly.

    Args:
        array: uint16 ``[H, W, 4]``, RGBA.
        metadata: ``icc_profile``, ``exif`` and ``dpi``, each of which may be missing.

    Returns:
        The file's content.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA))
    chunks = []
    if "icc_profile" in metadata:
        body = b"ICC profile\0\0" + zlib.compress(metadata["icc_profile"])
        chunks.append(_chunk(b"iCCP", body))
    if "dpi" in metadata:
        per_metre = [round(dpi * _PER_METRE) for dpi in metadata["dpi"]]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if "exif" in metadata:
        chunks.append(_chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0")))
    data = encoded.tobytes()
    return data[:_HEADER] + b"".join(chunks) + data[_HEADER:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
