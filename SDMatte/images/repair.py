"""Remove damaged metadata that keeps decoders from reading the pixels of an image file.

Decoders reject a whole file because of an overlong text, a wrong checksum of a comment or a damaged
EXIF block. The result has the same pixel data and only intact metadata. Decoders still reject
damaged pixels.
"""

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_LARGEST_PROFILE = 1 << 24  # bytes; printer profiles have two or three million

# Including orientation (274) and profile (34675), but not the pointers to EXIF and GPS.
_TIFF_PIXELS = frozenset(
    (*range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 296, 282, 283)
    + (317, 320, *range(322, 326), *range(332, 335), 336, *range(338, 343), 347)
    + (*range(512, 522), *range(529, 533), 34675)
)


def without_metadata(data: bytes) -> tuple[bytes, bytes | None] | None:
    """Remove metadata that may be damaged from the contents of an image file.

    Returns:
        The new contents, and the color profile if it had to be removed from them. None if the
        format is not supported or the damage is too severe.
    """
    try:
        if data.startswith(_PNG):
            return _strip_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _strip_jpeg(data), None
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _strip_tiff(data), None
        if data[4:8] == b"ftyp":
            # Decoders skip items of an unknown type.
            boxes, mdat, rest = data.partition(b"mdat")
            return boxes.replace(b"Exif", b"none") + mdat + rest, None
    except (struct.error, IndexError):
        pass
    return None


def _strip_png(data: bytes) -> tuple[bytes, bytes | None]:
    kept, profile, position = [_PNG], None, len(_PNG)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        chunk, position = data[position:end], end
        checksum = int.from_bytes(chunk[-4:], "big")
        is_intact = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == checksum
        is_kept = kind == b"eXIf" or (kind == b"pHYs" and length == 9)
        if kind in _PNG_PIXELS or (is_kept and is_intact):
            kept.append(chunk)
        elif kind == b"iCCP" and is_intact:
            profile = _inflate(chunk[8:-4].partition(b"\0")[2][1:])
    return b"".join(kept), profile


def _inflate(data: bytes) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(data, _LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def _strip_jpeg(data: bytes) -> bytes:
    kept, position = [data[:2]], 2
    while data[position + 1] != 0xDA:  # start of scan
        if data[position] != 0xFF:
            raise IndexError
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment, position = data[position : position + 2 + length], position + 2 + length
        body = segment[4:]
        is_application = 0xE0 <= marker <= 0xEF or marker == 0xFE
        is_kept = (
            (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14)
            or (marker == 0xE1 and body.startswith(b"Exif\0\0"))
            or (marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14)
            or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
        )
        if is_kept or not is_application:
            kept.append(segment)
    return b"".join(kept) + data[position:]


def _strip_tiff(data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    entries = [data[i : i + 12] for i in range(start + 2, start + 2 + 12 * count, 12)]
    entries = [e for e in entries if struct.unpack_from(order + "H", e)[0] in _TIFF_PIXELS]
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    padding = bytes(len(data) % 2)
    header = data[:4] + struct.pack(order + "I", len(data) + len(padding))
    return header + data[8:] + padding + directory
