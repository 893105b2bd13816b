"""Seeded damage to DICOM folders: what `fuzz.py` feeds to the library.

A folder is a dict of file name to bytes; `damaged(bases, seed)` picks one and breaks it, alike for the same seed.
"""

import random
import struct
import zlib
from functools import cache
from io import BytesIO
from typing import NamedTuple

import pydicom
from fuzz_values import CHARACTER_SETS, KEYS, KINDS, LENGTHS, NUMBERS, SYNTAXES, TEXTS
from pydicom.uid import UID

LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"


class Element(NamedTuple):
    """Place of one data element: header from `start`, value from `value` to `end`."""

    tag: int
    vr: str | None
    start: int
    value: int
    end: int


class Parsed(NamedTuple):
    data: bytes
    elements: tuple[Element, ...]
    explicit: bool
    little: bool

    @property
    def header_end(self):
        return next((e.value for e in self.elements if e.tag == 0x7FE00010), len(self.data))


def parse(data: bytes) -> Parsed:
    """The places of the elements at the top level; none where pydicom cannot say."""
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        implicit, little = dataset.original_encoding
        if dataset.file_meta.get("TransferSyntaxUID", UID("")) == "1.2.840.10008.1.2.1.99":
            dataset = pydicom.Dataset()  # places inside the deflated part are not places in the file
        places = []
        for part in (getattr(dataset, "file_meta", pydicom.Dataset()), dataset):
            for tag in part.keys():  # noqa: SIM118  # iterating a data set parses its values
                raw = part.get_item(tag)
                value = raw.value_tell if hasattr(raw, "value_tell") else raw.file_tell
                explicit = tag.group == 2 or not implicit
                places.append((value - (12 if explicit and raw.VR in LONG_VRS else 8), value, int(tag), raw.VR))
        places.sort()
        ends = [*(place[0] for place in places[1:]), len(data)]
        elements = (Element(t, vr, s, v, e) for (s, v, t, vr), e in zip(places, ends, strict=True) if 0 < s <= v <= e)
        return Parsed(data, tuple(elements), not implicit, bool(little))
    except Exception:
        return Parsed(data, (), True, True)


def _encoded(parsed, tag, vr, value, length=None):
    order = "<" if parsed.little or tag >> 16 == 2 else ">"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    length = len(value) if length is None else length
    if not (parsed.explicit or tag >> 16 == 2):
        return head + struct.pack(order + "L", length & 0xFFFFFFFF) + value
    vr = (vr or "UN").encode("latin-1")[:2].ljust(2)
    if vr.decode("latin-1") in LONG_VRS:
        return head + vr + b"\0\0" + struct.pack(order + "L", length & 0xFFFFFFFF) + value
    return head + vr + struct.pack(order + "H", length & 0xFFFF) + value[:65534]


def _some_value(rng, parsed, vr, tag):
    order = "<" if parsed.little or tag >> 16 == 2 else ">"
    if tag == 0x00020010:
        return rng.choice(SYNTAXES).encode()
    if tag == 0x00080005:
        return rng.choice(CHARACTER_SETS).encode()
    if tag == 0x00080016 and rng.random() < 0.7:
        return rng.choice(KINDS).encode()
    if vr in ("US", "SS", "OW") or (vr is None and rng.random() < 0.3):
        return b"".join(struct.pack(order + "H", rng.choice(NUMBERS)) for _ in range(rng.choice((1, 1, 1, 1, 0, 2, 3))))
    if vr in ("FD", "FL"):
        numbers = (0.0, -1.0, 1e308, -1e308, float("nan"), float("inf"), 1e-9, 1e-320)
        return b"".join(struct.pack(order + "d", rng.choice(numbers)) for _ in range(rng.choice((1, 2, 3, 6))))
    text = rng.choice(TEXTS).encode("utf-8", "surrogateescape")
    return text + b" " * (len(text) % 2)


def _nested(rng, parsed):
    """A sequence in a sequence in a sequence, with or without lengths and ends."""
    depth = rng.choice((3, 40, 300, 1200, 5000, 30000))
    tag = rng.choice((0x00081140, 0x52009229, 0x52009230, 0x00283000, 0x00409096, 0x00091010))
    order = "<" if parsed.little else ">"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + (b"SQ\0\0" if parsed.explicit else b"")
    item = struct.pack(order + "HH", 0xFFFE, 0xE000)
    one = head + b"\xff" * 4 + item + b"\xff" * 4
    ends = struct.pack(order + "HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) if rng.random() < 0.6 else b""
    return one * depth + ends * depth


def change_elements(rng, parsed):
    """Delete, double, swap, replace or re-declare a few elements, those that the library reads for choice."""
    if not parsed.elements:
        return change_bytes(rng, parsed)
    data = parsed.data
    known = [e for e in parsed.elements if pydicom.datadict.keyword_for_tag(e.tag) in KEYS]
    pool = known if known and rng.random() < 0.8 else list(parsed.elements)
    for e in sorted(rng.sample(pool, min(len(pool), rng.choice((1, 1, 1, 2, 4)))), reverse=True, key=lambda e: e.start):
        whole, value = data[e.start : e.end], data[e.value : e.end]
        kind = rng.choice(("delete", "double", "swap", "vr", "length", "nest", *["value"] * 8))
        if kind == "delete":
            new = b""
        elif kind == "double":
            new = whole * rng.choice((2, 2, 3, 200 if len(whole) < 200 else 2))
        elif kind == "swap":
            other = rng.choice(parsed.elements)
            new = parsed.data[other.start : other.end] + whole if rng.random() < 0.5 else value + whole
        elif kind == "vr":
            new = _encoded(
                parsed, e.tag, rng.choice(("UN", "SQ", "OB", "US", "DS", "FD", "AT", "PN", "??", "\0\0")), value
            )
        elif kind == "length":
            new = _encoded(parsed, e.tag, e.vr, value, rng.choice(LENGTHS))
        elif kind == "nest":
            new = _nested(rng, parsed) + whole
        else:
            new = _encoded(parsed, e.tag, e.vr, _some_value(rng, parsed, e.vr, e.tag))
        data = data[: e.start] + new + data[e.end :]
    if rng.random() < 0.15:  # an element that was not there, before the pixels
        tag = int(pydicom.tag.Tag(rng.choice(KEYS[:-6])))
        vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
        place = parsed.elements[-1].start
        data = data[:place] + _encoded(parsed, tag, vr, _some_value(rng, parsed, vr, tag)) + data[place:]
    return data


def change_bytes(rng, parsed, low=0, high=None):
    """Flip bits, overwrite, cut out, insert, truncate, between `low` and `high`."""
    data = bytearray(parsed.data)
    high = len(data) if high is None else min(high, len(data))
    if high - low < 2:
        return bytes(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        place = rng.randrange(low, max(low + 1, min(high, len(data) - 4)))
        kind = rng.choice(["flip", "flip", "flip", "random", "length", "token", "cut", "copy", "truncate"])
        if kind == "flip":
            data[place : place + 1] = bytes([data[place] ^ (1 << rng.randrange(8))]) if place < len(data) else b""
        elif kind == "random":
            data[place : place + 4] = rng.randbytes(rng.choice((1, 4, 4, 40)))
        elif kind == "length":
            data[place : place + 4] = struct.pack(rng.choice("<>") + "L", rng.choice(LENGTHS))
        elif kind == "token":
            token = rng.choice(
                (ITEM, ITEM_END, SEQUENCE_END, b"\xe0\x7f\x10\x00", b"SQ\0\0", b"\xff\x4f\xff\x51", b"\xff\xd9")
            )
            data[place : place + rng.choice((0, 4))] = token
        elif kind == "cut":
            del data[place : place + rng.choice((1, 2, 16, 200))]
        elif kind == "copy":
            data[place:place] = data[place : place + rng.choice((1, 8, 64, 4096))]
        elif rng.random() < 0.4:
            del data[place:]
    return bytes(data)


def change_header(rng, parsed):
    return change_bytes(rng, parsed, 0 if rng.random() < 0.2 else 132, parsed.header_end)


def change_stream(rng, parsed):
    """Damage fragments, offset table, delimiters, and the matrix that a codestream declares of itself."""
    start, data = parsed.header_end, bytearray(parsed.data)
    kind = rng.choice(("start", "anywhere", "end", "items", "matrix", "matrix", "swap"))
    if kind == "items":
        places = [p for p in range(start, len(data) - 8) if data[p : p + 4] in (ITEM, SEQUENCE_END)]
        for place in rng.sample(places, min(len(places), 2)):
            if rng.random() < 0.5:
                data[place + 4 : place + 8] = struct.pack("<L", rng.choice(LENGTHS))
            else:
                data[place : place + 4] = rng.choice((ITEM, ITEM_END, SEQUENCE_END, b"\0\0\0\0"))
        return bytes(data)
    if kind == "matrix":
        # SIZ of JPEG 2000 (width at +6), SOF of JPEG and JPEG-LS (height at +5)
        for marker, offset, form in (
            (b"\xff\x51", 6, ">LL"),
            (b"\xff\xc3", 5, ">HH"),
            (b"\xff\xf7", 5, ">HH"),
            (b"\xff\xc1", 5, ">HH"),
        ):
            place = data.find(marker, start)
            if place > 0:
                numbers = (0, 1, 25, 65535, 65535, 65535 if form == ">HH" else rng.choice(LENGTHS))
                new = struct.pack(form, *(rng.choice(numbers) for _ in range(2)))
                data[place + offset : place + offset + len(new)] = new
        return bytes(data)
    if kind == "swap":
        half = (start + len(data)) // 2
        return bytes(data[:start] + data[half:] + data[start:half])
    span = {"start": (start - 12, start + 120), "end": (len(data) - 40, len(data)), "anywhere": (start - 12, len(data))}
    low, high = span[kind]
    return change_bytes(rng, parsed, max(0, low), high)


def change_start(rng, parsed):
    """Break preamble and meta header, or swap the transfer syntax."""
    data, kind = (
        parsed.data,
        rng.choice(("no preamble", "no magic", "no meta", "syntax", "syntax", "syntax", "bytes", "bomb")),
    )
    body = next((e.start for e in parsed.elements if e.tag >> 16 != 2), 132)
    if kind == "no preamble":
        return data[132:]
    if kind == "no magic":
        return data[:128] + rng.choice((b"DICX", b"\0\0\0\0", b"")) + data[132:]
    if kind == "no meta":
        return rng.choice((b"", data[:132])) + data[body:]
    syntax = next((e for e in parsed.elements if e.tag == 0x00020010), None)
    if kind == "bytes" or syntax is None:
        return change_bytes(rng, parsed, 0, body)
    name = rng.choice(SYNTAXES) if kind == "syntax" else "1.2.840.10008.1.2.1.99"
    value = name.encode() + b"\0" * (len(name) % 2)
    meta = data[: syntax.start] + _encoded(parsed, 0x00020010, "UI", value) + data[syntax.end : body]
    if not name.endswith(".99"):
        return meta + data[body:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(change_header(rng, parsed)[body:])
    if kind != "bomb":
        return meta + packed + packer.flush()
    return (
        meta + packed + packer.flush(zlib.Z_FULL_FLUSH) + _bomb(rng.choice((4, 8, 400 if rng.random() < 0.05 else 2)))
    )


@cache
def _bomb(megabytes):
    """A private element of a gigabyte of zeros, of which some are there, deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(struct.pack("<HH", 0x0009, 0x1010) + b"OB\0\0" + struct.pack("<L", 1 << 30))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + packer.flush()


OPERATORS = (
    change_elements,
    change_elements,
    change_elements,
    change_header,
    change_bytes,
    change_stream,
    change_stream,
    change_start,
)


def damaged(bases: dict, seed: int):
    """Pick one of `bases` (name to folder of `Parsed` files) and break it. Returns (what was done, files, rng)."""
    rng = random.Random(seed)
    base = rng.choice(sorted(bases))
    files = dict(bases[base])
    operator = rng.choice(OPERATORS)
    names = sorted(files)
    chosen = names if rng.random() < 0.4 else rng.sample(names, rng.randint(1, len(names)))
    same = rng.random() < 0.6
    shared = rng.randrange(1 << 30)
    for name in chosen:
        own = random.Random(shared if same else rng.randrange(1 << 30))
        files[name] = files[name]._replace(data=operator(own, files[name]))
    if rng.random() < 0.2:
        name = rng.choice(names)
        files[name] = files[name]._replace(data=change_bytes(rng, files[name]))
    return (
        f"{base} {operator.__name__} {'same' if same else 'own'} x{len(chosen)}",
        {n: f.data for n, f in files.items()},
        rng,
    )
