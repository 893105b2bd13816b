"""Pixels of one slice: decoding, and stored values to Hounsfield units with padding as air."""

from pathlib import Path

import numpy as np
from numba import njit
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lungmill.errors import DicomError

AIR_HU = -1024
RAW_LITTLE_ENDIAN = {str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)}
LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
}


def can_decode(transfer_syntax: str) -> bool:
    """True where pydicom has a working decoder for the transfer syntax."""
    uid = UID(transfer_syntax)
    if not uid.is_transfer_syntax:
        return False
    if not uid.is_compressed:
        return True
    try:
        return get_decoder(uid).is_available
    except NotImplementedError:
        return False


def expected_bytes(rows, columns, bits_allocated, samples=1, frames=1) -> int:
    """Length of native pixel data (PS3.5 8.1.1)."""
    return rows * columns * samples * frames * (bits_allocated // 8)


def read_hounsfield(root, record, out=None) -> np.ndarray:
    """Decode one slice to Hounsfield units.

    root: the patient's folder. record: a dict of the verdict's `slices` merged with its `pixels` (see
    `lungmill.verdict`): file, frame, rows, columns, bits, sign, rescale, padding, transfer_syntax, offset.
    out: int16 (rows, columns) to write to, or None.
    Returns int16 HU; padding and everything below -1024 is air, -1024.
    Raises DicomError('unreadable') naming the file where it cannot be decoded.
    """
    raw = read_stored(root, record)
    if out is None:
        out = np.empty(raw.shape, dtype=np.int16)
    low, high = record["padding"] or (1, 0)
    to_hounsfield(raw, record["slope"], record["intercept"], low, high, out)
    return out


def read_stored(root, record) -> np.ndarray:
    """Decode one slice to its stored values, (rows, columns), stray bits above the stored ones cleared."""
    path = Path(root) / record["file"]
    shape = record["rows"], record["columns"]
    try:
        if record["transfer_syntax"] in RAW_LITTLE_ENDIAN and record["bits_allocated"] == 16:
            kind = "<i2" if record["signed"] else "<u2"
            offset = record["offset"] + record["frame"] * expected_bytes(*shape, 16)
            raw = np.fromfile(path, dtype=kind, count=shape[0] * shape[1], offset=offset).reshape(shape)
        else:
            raw = pixel_array(path, index=record["frame"], raw=True)
    except OSError:
        raise
    except Exception as error:  # decoders raise anything; the verdict needs the file's name
        raise DicomError("unreadable", f"{record['file']} cannot be decoded ({type(error).__name__})") from error
    if raw.shape != shape or raw.dtype.kind not in "iu":
        raise DicomError("unreadable", f"{record['file']} decodes to {raw.shape}, the header says {shape}")
    return _stored_bits(raw, record["bits_stored"], record["high_bit"], record["signed"])


def _stored_bits(raw, stored, high_bit, signed):
    """Cut the stored bits out of the allocated ones (PS3.5 8.1.1), with their sign."""
    allocated = raw.dtype.itemsize * 8
    if stored >= allocated:
        return raw
    left, right = allocated - 1 - high_bit, allocated - stored
    if left < 0 or right < left:
        return raw
    # Shifting left drops what lies above the high bit; shifting right again restores value and sign.
    shifted = np.left_shift(raw, left)
    return np.right_shift(shifted.view(f"{'i' if signed else 'u'}{raw.dtype.itemsize}"), right)


@njit(cache=True, nogil=True)
def to_hounsfield(raw, slope, intercept, padding_low, padding_high, out):
    """HU = stored * slope + intercept (PS3.3 C.11.1.1.2), rounded to the nearest, into int16 `out`.

    Stored values in the closed range [padding_low, padding_high] and HU below -1024 become -1024.
    """
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            value = raw[row, column]
            hounsfield = np.rint(value * slope + intercept)
            if padding_low <= value <= padding_high or hounsfield < AIR_HU:
                hounsfield = AIR_HU
            elif hounsfield > 32767:
                hounsfield = 32767
            out[row, column] = hounsfield
