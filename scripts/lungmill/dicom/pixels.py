"""Pixels of one slice: decoding, and stored values to Hounsfield units with padding as air."""

import threading
import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import pydicom
from numba import njit
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID, UID_dictionary

from lungmill.dicom.codestream import declared_matrix, silence
from lungmill.dicom.jpeg12 import JPEG_EXTENDED, decode_jpeg12
from lungmill.dicom.source import open_source
from lungmill.dicom.stream import read_frame
from lungmill.errors import DicomError

AIR_HU = -1024
# Beyond 16-bit values and any intercept, with room to add them in 32 bits.
LARGEST_SHIFT = 1 << 24
LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
}
# One decoder for each: pydicom would go on to another, and pyjpegls takes 5 s to fail at a shortened stream.
PLUGINS = {
    "1.2.840.10008.1.2.5": "pylibjpeg",
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}


def is_known_syntax(transfer_syntax: str) -> bool:
    """True for the transfer syntaxes of the standard; `UID` warns of what is no UID, and quotes it."""
    return transfer_syntax in UID_dictionary and UID(transfer_syntax).is_transfer_syntax


def can_decode(transfer_syntax: str) -> bool:
    """True where pydicom has a working decoder for the transfer syntax."""
    if not is_known_syntax(transfer_syntax):
        return False
    uid = UID(transfer_syntax)
    if not uid.is_compressed:
        return True
    try:
        decoder = get_decoder(uid)
        return PLUGINS[uid] in decoder.available_plugins if uid in PLUGINS else decoder.is_available
    except NotImplementedError:
        return False


def expected_bytes(rows, columns, bits_allocated, samples=1, frames=1) -> int:
    """Length of native pixel data (PS3.5 8.1.1)."""
    return rows * columns * samples * frames * (bits_allocated // 8)


def read_hounsfield(root, record, out=None) -> np.ndarray:
    """Decode one slice to Hounsfield units.

    root: the patient's folder. record: one of the verdict's `slices`: file, frame, rows, columns, bits, sign, rescale
    (or `lut`), padding, transfer_syntax, offset. out: int16 (rows, columns) to write to, or None.
    Returns int16 HU; padding and everything below -1024 is air, -1024.

    PhotometricInterpretation plays no part: MONOCHROME1 says only that small values are displayed white (PS3.3
    C.7.6.3.1.2), the Modality LUT from stored values to HU (PS3.3 C.11.1) comes before all display.
    Raises DicomError('unreadable') naming the file where it cannot be decoded.
    """
    raw = _decode(root, record, _kept.__dict__)
    stored = _stored_bits(raw, record["bits_stored"], record["high_bit"], record["signed"])
    if out is None:
        out = np.empty(raw.shape, dtype=np.int16)
    low, high = record["padding"] or (1, 0)
    if record["lut"]:
        values = apply_lut(stored, *_read_lut(root, record))
        values[(stored >= low) & (stored <= high)] = AIR_HU
        to_hounsfield(values, 1.0, 0.0, 1, 0, out)
    else:
        to_hounsfield(stored, record["slope"], record["intercept"], low, high, out)
    if stored is not raw and low <= high:
        # Padding like -2000 is written to all allocated bits, also where 12 are stored: cutting bits would hide it.
        out[(raw >= low) & (raw <= high)] = AIR_HU
    return out


def read_stored(root, record) -> np.ndarray:
    """Decode one slice to its stored values, (rows, columns), stray bits above the stored ones cleared."""
    return _stored_bits(_decode(root, record), record["bits_stored"], record["high_bit"], record["signed"])


# Memory that a thread reads stored values to: new memory for each slice costs as much as reading does.
_kept = threading.local()


class _Layout(NamedTuple):
    """How a transfer syntax lays out pixel data; plain: neither compressed nor in a deflated data set."""

    native: bool
    plain: bool
    deflated: bool
    little: bool


@cache
def _layout(transfer_syntax):
    # pydicom checks a UID with a regular expression whenever it makes one.
    uid = UID(transfer_syntax)
    native = not uid.is_compressed
    return _Layout(native, native and not uid.is_deflated, uid.is_deflated, uid.is_little_endian)


def _decode(root, record, kept=None):
    """All allocated bits of one slice, (rows, columns).

    kept: None, or a dict for memory that the next slice is read to again.
    """
    source = open_source(root)
    shape = record["rows"], record["columns"]
    try:
        syntax = _layout(record["transfer_syntax"])
        if syntax.plain:
            raw = _read_native(source, record, syntax, kept)
        else:
            with silence():
                raw = _read_native(source, record, syntax) if syntax.native else _run_decoder(source, record)
    except (OSError, DicomError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise anything, a panic of one in Rust is not even an Exception
        # Decoders quote header values, and the chain of causes is logged: only the kind is passed on.
        raise DicomError("unreadable", f"{record['file']} cannot be decoded ({type(error).__name__})") from None
    if raw.shape != shape or raw.dtype.kind not in "iu":
        raise DicomError("unreadable", f"{record['file']} decodes to {raw.shape}, the header says {shape}")
    return raw


def _read_native(source, record, syntax, kept=None):
    """One uncompressed frame, read where it lies: frames follow each other without gaps (PS3.5 8.1.1)."""
    rows, columns, bits = record["rows"], record["columns"], record["bits_allocated"]
    kind = np.dtype(f"{'<' if syntax.little else '>'}{'i' if record['signed'] else 'u'}{bits // 8}")
    offset = record["frame"] * expected_bytes(rows, columns, bits)
    if syntax.deflated:
        with source.open_bounded(record["file"]) as stream:
            pixels = pydicom.dcmread(stream, specific_tags=["PixelData"]).get_item("PixelData").value
        raw = np.frombuffer(pixels, dtype=kind, count=rows * columns, offset=offset)
    elif bits == 8 and not syntax.little:
        raw = _read_swapped_bytes(source, record, offset, rows * columns).view(kind)
    else:
        raw = _read_values(source, record, kind, record["offset"] + offset, rows * columns, kept)
    return raw.reshape(rows, columns).astype(kind.newbyteorder("="), copy=False)


def _read_values(source, record, kind, offset, count, kept=None):
    raw = None if kept is None else kept.get("raw")
    if raw is None or raw.nbytes != count * kind.itemsize:
        raw = np.empty(count * kind.itemsize, np.uint8)
    with source.open_raw(record["file"]) as stream:
        stream.seek(offset)
        if stream.readinto(raw) != raw.nbytes:
            raise EOFError("the file ends before its pixel data do")
    if kept is not None:
        kept["raw"] = raw
    return raw.view(kind)


def _read_swapped_bytes(source, record, start, count):
    """Bytes of big-endian pixel data: two to a word, and swapped with it, where their VR is OW (PS3.5 A.3, 8.1.1)."""
    offset = record["offset"]
    with source.open(record["file"]) as stream:
        stream.seek(offset - 8)
        if stream.read(2) != b"OW":
            return _read_values(source, record, np.dtype(np.uint8), offset + start, count)
        odd = start % 2
        stream.seek(offset + start - odd)
        words = np.frombuffer(stream.read((odd + count + 1) // 2 * 2), ">u2")
        return words.astype("<u2").view(np.uint8)[odd : odd + count]


def _run_decoder(source, record):
    """One compressed frame through a decoder that is given its bytes: the header is not parsed again."""
    with source.open(record["file"]) as stream:
        frame = read_frame(stream, record["offset"], record["item"], record["frame"], record["frames"])
    if declared_matrix(frame) not in (None, (record["rows"], record["columns"])):
        raise ValueError("the compressed data have another matrix")
    uid = record["transfer_syntax"]
    if uid == JPEG_EXTENDED and record["bits_stored"] > 8:
        return decode_jpeg12(frame, record)
    return get_decoder(UID(uid)).as_array(
        encapsulate([frame]),
        decoding_plugin=PLUGINS.get(uid, ""),
        index=0,
        raw=True,
        rows=record["rows"],
        columns=record["columns"],
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=record["bits_allocated"],
        bits_stored=record["bits_stored"],
        pixel_representation=int(record["signed"]),
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
    )[0]


def _stored_bits(raw, stored, high_bit, signed):
    """Cut the stored bits out of the allocated ones (PS3.5 8.1.1), with their sign; overlays in the others go."""
    allocated = raw.dtype.itemsize * 8
    if stored >= allocated:
        return raw
    left, right = allocated - 1 - high_bit, allocated - stored
    if left < 0 or right < left:
        return raw
    # Shifting left drops what lies above the high bit; shifting right again restores value and sign.
    shifted = np.left_shift(raw, left)
    return np.right_shift(shifted.view(f"{'i' if signed else 'u'}{raw.dtype.itemsize}"), right)


def _read_lut(root, record):
    """First mapped value and entries of the file's Modality LUT (PS3.3 C.11.1.1)."""
    try:
        with warnings.catch_warnings(), open_source(root).open_bounded(record["file"]) as stream:
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            dataset = pydicom.dcmread(
                stream, stop_before_pixels=True, force=True, specific_tags=["ModalityLUTSequence"]
            )
            item = dataset.ModalityLUTSequence[0]
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        data = item.LUTData
        if isinstance(data, bytes):
            data = np.frombuffer(data, "<u2" if dataset.original_encoding[1] else ">u2")
        entries = np.asarray(data).astype(np.int64)[: count or 65536] & ((1 << bits) - 1)
        if bits == 16 and str(item.get("ModalityLUTType", "")).strip() == "HU":
            entries = entries.astype(np.uint16).view(np.int16)  # entries are unsigned, but HU below 0 exist
        if record["signed"] and first > 32767:
            first -= 65536
        if not len(entries):
            raise ValueError("no entries")
    except OSError:
        raise
    except Exception as error:  # nothing of a sequence's content may reach a message
        raise DicomError("unreadable", f"{record['file']} has a broken Modality LUT ({type(error).__name__})") from None
    return first, entries.astype(np.int32)


def apply_lut(stored, first, entries) -> np.ndarray:
    """Look up stored values; those before `first` and behind the last entry take the outer ones (PS3.3 C.11.1.1)."""
    return entries[np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)]


def to_hounsfield(raw, slope, intercept, padding_low, padding_high, out):
    """HU = stored * slope + intercept (PS3.3 C.11.1.1.2), rounded to the nearest, into int16 `out`.

    Stored values in the closed range [padding_low, padding_high] and HU below -1024 become -1024.
    """
    if slope == 1 and float(intercept).is_integer() and abs(intercept) < LARGEST_SHIFT and raw.dtype.itemsize <= 2:
        # No stored value lies beyond these bounds, so a wider padding range is the same range.
        low, high = (min(max(bound, -LARGEST_SHIFT), LARGEST_SHIFT) for bound in (padding_low, padding_high))
        _shift(raw, np.int32(intercept), np.int32(low), np.int32(high), out)
    else:
        _rescale(raw, float(slope), float(intercept), padding_low, padding_high, out)


@njit(cache=True, nogil=True)
def _shift(raw, intercept, padding_low, padding_high, out):
    """`to_hounsfield` for slope 1 and a whole intercept: in 32-bit integers, for stored values of 16 bits at most."""
    for row in range(raw.shape[0]):
        _shift_row(raw[row], intercept, padding_low, padding_high, out[row])


@njit(cache=True, nogil=True)
def _shift_row(raw, intercept, padding_low, padding_high, out):
    for column in range(len(out)):
        value = np.int32(raw[column])
        hounsfield = min(max(value + intercept, np.int32(AIR_HU)), np.int32(32767))
        is_padding = (value >= padding_low) & (value <= padding_high)
        out[column] = np.int32(AIR_HU) if is_padding else hounsfield


@njit(cache=True, nogil=True)
def _rescale(raw, slope, intercept, padding_low, padding_high, out):
    """`to_hounsfield` for any slope, in float64."""
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            value = raw[row, column]
            hounsfield = np.rint(value * slope + intercept)
            if padding_low <= value <= padding_high or hounsfield < AIR_HU:
                hounsfield = AIR_HU
            elif hounsfield > 32767:
                hounsfield = 32767
            out[row, column] = hounsfield
