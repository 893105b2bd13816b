"""Where a file's pixel data lie and whether they are all there, without reading them."""

import os
import struct
from dataclasses import dataclass

PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM = (0xFFFE, 0xE000)
SEQUENCE_DELIMITER = (0xFFFE, 0xE0DD)


@dataclass(frozen=True, slots=True)
class PixelData:
    """Place of the value of Pixel Data (7FE0,0010) in its file.

    offset: of the first byte of the value, None where the data set is deflated.
    length: bytes present in the file; for encapsulated data the bytes of all fragments.
    complete: False where the file ends before the declared length or before the sequence delimiter.
    fragments: number of encapsulated fragments (without the offset table), None for native data.
    """

    offset: int | None
    length: int
    complete: bool
    fragments: int | None


def locate_pixel_data(stream, syntax, implicit: bool, little: bool) -> PixelData | None:
    """Measure Pixel Data from `stream`, which stands where pydicom stopped: at its tag or at the end of the file.

    Returns None where there are none. Deflated data sets are not looked into: offset None.
    """
    if syntax.is_deflated:
        return PixelData(None, 0, True, None)
    order = "<" if little else ">"
    head = stream.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12) or struct.unpack(order + "HH", head[:4]) != PIXEL_DATA:
        return None
    (length,) = struct.unpack(order + "L", head[-4:])
    offset = stream.tell()
    left = os.fstat(stream.fileno()).st_size - offset
    if length == UNDEFINED_LENGTH:
        return _fragments(stream, offset, left)
    return PixelData(offset, min(length, left), length <= left, None)


def _fragments(stream, offset, left):
    """Walk the items of encapsulated Pixel Data (PS3.5 A.4): offset table first, delimiter last."""
    count = payload = consumed = 0
    while consumed + 8 <= left:
        group, element, length = struct.unpack("<HHL", stream.read(8))
        consumed += 8
        if (group, element) == SEQUENCE_DELIMITER:
            return PixelData(offset, payload, True, count - 1)
        if (group, element) != ITEM or length > left - consumed:
            break
        payload += length if count else 0
        count += 1
        consumed += length
        stream.seek(offset + consumed)
    return PixelData(offset, payload, False, max(count - 1, 0))
