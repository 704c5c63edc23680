"""PNG files of 16 bits a channel with colours and alpha, which Pillow does not write."""

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGBA = 6
_UP = 2


def encode_deep_png(array: np.ndarray, icc_profile: bytes | None = None) -> bytes:
    """Encodes a picture losslessly.

    Args:
        array: uint16 ``[H, W, 4]``, RGBA.
        icc_profile: The colour profile to write into it.

    Returns:
        The file's content.
    """
    height, width = array.shape[:2]
    rows = np.ascontiguousarray(array.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP  # each row as its difference to the one above, modulo 256
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _RGBA, 0, 0, 0))]
    if icc_profile is not None:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
    chunks += [_chunk(b"IDAT", zlib.compress(filtered, 4)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
