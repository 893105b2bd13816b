"""The usual header, little endian with file meta and pixel data, read several times as fast as by pydicom."""

import struct

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from lungmill.dicom.stream import DEFLATED

META_START = 132
FIRST_READ = 1 << 15
LONGEST_HEADER = 1 << 20
IMPLICIT = "1.2.840.10008.1.2"
# Big endian and deflated data sets, which are laid out in other ways.
OTHER_LAYOUTS = {"1.2.840.10008.1.2.2", *DEFLATED}
# PS3.5 7.1.2: these have a 32-bit length behind two reserved bytes.
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT_VRS = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
DEEPEST = 16
# One element: group, element, VR and 16-bit length, or group, element and 32-bit length.
_explicit = struct.Struct("<HH2sH").unpack_from
_plain = struct.Struct("<HHL").unpack_from
_length = struct.Struct("<L").unpack_from


class _Irregular(Exception):
    """This header is not of the usual kind."""


def scan_header(stream, wanted):
    """Read the elements `wanted` (a dict from number to tag and VR) of the file that `stream` has open.

    Returns (data set of raw elements, transfer syntax, implicit, little endian) with `stream` standing at the pixel
    data, or None where anything is out of the ordinary: tags out of order, unknown VRs, lengths beyond the block that
    is read, wanted sequences, no pixel data, other byte orders. What pydicom makes of such a file is then right.
    """
    stream.seek(0)
    block = stream.read(FIRST_READ)
    if len(block) == FIRST_READ and _pixel_data_is_not_in(block):
        stream.seek(0)
        block = stream.read(LONGEST_HEADER)
    try:
        return _scan(stream, block, wanted)
    except (_Irregular, struct.error):
        return None


def _pixel_data_is_not_in(block):
    return block.find(b"\xe0\x7f\x10\x00") < 0


def _scan(stream, block, wanted):
    meta, position = {}, META_START
    while block[position : position + 2] == b"\x02\x00":
        tag, _, start, position = _element(block, position, False, 0)
        if tag in meta:
            raise _Irregular
        meta[tag] = block[start:position]
    syntax = meta.get(0x00020010, b"").rstrip(b"\0 ").decode("ascii", "replace")
    if not UID(syntax).is_transfer_syntax or syntax in OTHER_LAYOUTS:
        raise _Irregular
    implicit = syntax == IMPLICIT
    found, last, size = {}, 0x0002FFFF, len(block)
    while position < size:
        tag, vr, start, end = _element(block, position, implicit, 0)
        if tag <= last or tag > PIXEL_DATA:
            raise _Irregular
        if tag == PIXEL_DATA:
            break
        if tag in wanted:
            key, usual_vr = wanted[tag]
            if usual_vr == "SQ" or vr == b"SQ":
                raise _Irregular
            # The very object that is looked up later: a dict compares others by pydicom's `==`, in Python.
            found[key] = RawDataElement(
                key,
                usual_vr if implicit or vr == b"UN" else vr.decode(),
                end - start,
                block[start:end],
                start,
                implicit,
                True,
            )
        last, position = tag, end
    else:
        raise _Irregular  # no pixel data, or not within reach
    stream.seek(position)
    return Dataset(found), syntax, implicit, True


def _element(block, position, implicit, depth):
    """Tag, VR, start and end of the value of the element at `position`."""
    if implicit:
        group, element, length = _plain(block, position)
        vr, start = b"", position + 8
    else:
        group, element, vr, length = _explicit(block, position)
        start = position + 8
        if vr in LONG_VRS:
            (length,) = _length(block, start)
            start += 4
        elif vr not in SHORT_VRS:
            raise _Irregular
    tag = group << 16 | element
    if tag == PIXEL_DATA:
        return tag, vr, start, start
    if length == UNDEFINED:
        if not implicit and vr != b"SQ":
            raise _Irregular  # UN of undefined length holds implicit elements
        return tag, b"SQ", start, _skip_items(block, start, implicit, depth + 1)
    end = start + length
    if end > len(block):
        raise _Irregular
    return tag, vr, start, end


def _skip_items(block, position, implicit, depth):
    """Where a sequence of undefined length ends."""
    if depth > DEEPEST:
        raise _Irregular
    while True:
        group, element, length = _plain(block, position)
        tag, position = group << 16 | element, position + 8
        if tag == SEQUENCE_END:
            return position
        if tag != ITEM:
            raise _Irregular
        if length != UNDEFINED:
            position += length
            continue
        while block[position : position + 4] != b"\xfe\xff\x0d\xe0":
            *_, position = _element(block, position, implicit, depth)
        position += 8
