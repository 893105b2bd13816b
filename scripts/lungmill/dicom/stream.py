"""Where a file's pixel data lie and whether they are all there, without reading them."""

import io
import itertools
import struct
import zlib
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_partial
from pydicom.tag import Tag

from lungmill.dicom.codestream import declared_matrix

PIXEL_DATA = (0x7FE0, 0x0010)
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"}
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM = (0xFFFE, 0xE000)
SEQUENCE_DELIMITER = (0xFFFE, 0xE0DD)
# No attribute that is read is as long as this; a deflated data set may grow to as much as that.
LONGEST_VALUE, LARGEST_INFLATED = 1 << 26, 1 << 28
# Top-level elements of a header, a few hundred in real ones; reads of a file while its header is parsed, of which
# functional groups take some 200 for each frame.
MOST_ELEMENTS, MOST_READS = 20_000, 1_000_000


class BoundedFile(io.BufferedReader):
    """A file of `size` bytes to parse a header from: no length that it claims makes it allocate more than it holds.

    Raises EOFError for a value longer than any header's, for elements without end (a file of zeros is 8 bytes each),
    and for a deflated rest that grows beyond measure.
    """

    name = ""  # pydicom asks for it; a member of an archive has none of its own

    def __init__(self, raw, size: int):
        super().__init__(raw)
        self.size = size
        self.reads = 0

    def read(self, size=-1, /):
        if size is None or size < 0:  # asked for by pydicom for a deflated data set only, which it then inflates
            rest = super().read()
            # Images shrink to a third; only an empty one shrinks to a hundredth, which then is no large one.
            if _inflates_beyond(rest, min(LARGEST_INFLATED, max(LARGEST_INFLATED >> 3, 64 * len(rest)))):
                raise EOFError("a deflated data set of absurd size")
            return rest
        self.reads += 1
        if self.reads > MOST_READS:
            raise EOFError("a header without end")
        if size > 4096:
            size = min(size, max(self.size - self.tell(), 0))
            if size > LONGEST_VALUE:
                raise EOFError("an attribute of absurd length")
        return super().read(size)


def parse_header(stream, force: bool, tags) -> Dataset:
    """`pydicom.dcmread(stream, stop_before_pixels=True)` that gives up with EOFError on elements without end."""
    counted = itertools.count(1)

    def at_end(tag, vr, length):
        if next(counted) > MOST_ELEMENTS:
            raise EOFError("a header without end")
        return tag in PIXEL_TAGS

    return read_partial(stream, at_end, force=force, specific_tags=[Tag(tag) for tag in tags])


def _inflates_beyond(packed, limit):
    unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and total <= limit:
        part = unpacker.decompress(packed, 1 << 20)
        if not part:
            break
        packed, total = unpacker.unconsumed_tail, total + len(part)
    return total > limit


@dataclass(frozen=True, slots=True)
class PixelData:
    """Place of the value of Pixel Data (7FE0,0010) in its file.

    offset: of the first byte of the value, None where the data set is deflated.
    length: bytes present in the file; for encapsulated data the bytes of all fragments.
    complete: False where the file ends before the declared length or before the sequence delimiter.
    fragments: number of encapsulated fragments (without the offset table), None for native data.
    matrix: (rows, columns) that the first fragment declares, None where it does not.
    """

    offset: int | None
    length: int
    complete: bool
    fragments: int | None
    matrix: tuple[int, int] | None = None


def locate_pixel_data(stream, syntax, implicit: bool, little: bool) -> PixelData | None:
    """Measure Pixel Data from `stream`, which stands where pydicom stopped: at its tag or at the end of the file.

    Returns None where there are none. Deflated data sets are not looked into: offset None.
    """
    if syntax in DEFLATED:
        return PixelData(None, 0, True, None)
    order = "<" if little else ">"
    head = stream.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12) or struct.unpack(order + "HH", head[:4]) != PIXEL_DATA:
        return None
    (length,) = struct.unpack(order + "L", head[-4:])
    offset = stream.tell()
    left = stream.size - offset
    if length == UNDEFINED_LENGTH:
        return _fragments(stream, offset, left)
    return PixelData(offset, min(length, left), length <= left, None)


def _fragments(stream, offset, left):
    """Walk the items of encapsulated Pixel Data (PS3.5 A.4): offset table first, delimiter last."""
    count = payload = consumed = 0
    matrix = None
    while consumed + 8 <= left:
        group, element, length = struct.unpack("<HHL", stream.read(8))
        consumed += 8
        if (group, element) == SEQUENCE_DELIMITER:
            return PixelData(offset, payload, True, max(count - 1, 0), matrix)
        if (group, element) != ITEM or length > left - consumed:
            break
        if count == 1:
            matrix = declared_matrix(stream.read(min(length, 1024)))
        payload += length if count else 0
        count += 1
        consumed += length
        stream.seek(offset + consumed)
    return PixelData(offset, payload, False, max(count - 1, 0), matrix)


def locate_items(stream, offset: int) -> list[int]:
    """Offsets of the items of encapsulated pixel data at `offset`, without the offset table, in order."""
    places = []
    while True:
        stream.seek(offset)
        head = stream.read(8)
        if len(head) < 8 or struct.unpack("<HH", head[:4]) != ITEM:
            return places[1:]
        places.append(offset)
        offset += 8 + struct.unpack("<L", head[4:])[0]


def read_frame(stream, offset: int, item: int | None, frame: int, frames: int) -> bytes:
    """The bytes of one frame of the encapsulated pixel data at `offset`.

    item: where the frame is a single item, that one's offset, else None: then its fragments are looked for.
    """
    if item is None:
        stream.seek(offset)
        return get_frame(stream, frame, number_of_frames=frames)
    stream.seek(item)
    group, element, length = struct.unpack("<HHL", stream.read(8))
    if (group, element) != ITEM:
        raise ValueError("no item of pixel data")
    return stream.read(length)
