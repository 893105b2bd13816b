"""Stored values and Hounsfield units against pydicom and NumPy."""

import numpy as np
import pydicom
import pytest
from dicom_files import new_slice, save
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lungmill.dicom.header import read_header
from lungmill.dicom.pixels import can_decode, read_hounsfield, read_stored, to_hounsfield
from lungmill.errors import DicomError
from lungmill.indexing import _slice_record

LOSSLESS = ["CT1_J2KR.dcm", "CT1_JLSL.dcm", "CT1_JPLL.dcm", "CT1_RLE.dcm"]


def record_of(folder, name):
    return _slice_record(read_header(folder, name))


@settings(deadline=None)
@given(
    arrays(np.int16, (4, 5)),
    st.sampled_from([1.0, 0.5, 2.0, -1.0]),
    st.integers(-2000, 2000),
    st.integers(-3000, 3000),
    st.integers(0, 100),
)
def test_hounsfield_is_slope_and_intercept_with_padding_as_air(raw, slope, intercept, low, width):
    out = np.empty(raw.shape, np.int16)
    to_hounsfield(raw, slope, float(intercept), low, low + width, out)
    expected = np.clip(np.rint(raw.astype(np.float64) * slope + intercept), -1024, 32767)
    expected[(raw >= low) & (raw <= low + width)] = -1024
    np.testing.assert_array_equal(out, expected)


def test_stray_bits_above_the_stored_ones_are_cleared(tmp_path):
    clean = np.array([[5, 4095], [0, 1234]], np.uint16)
    save(new_slice((0, 0, 0), stored=clean | 0xF000, BitsStored=12, HighBit=11), tmp_path / "unsigned")
    np.testing.assert_array_equal(read_stored(tmp_path, record_of(tmp_path, "unsigned")), clean)
    negative = np.array([[-5, 2047], [-2048, 17]], np.int16)
    save(new_slice((0, 0, 0), stored=negative & np.int16(0x0FFF), BitsStored=12, HighBit=11), tmp_path / "signed")
    np.testing.assert_array_equal(read_stored(tmp_path, record_of(tmp_path, "signed")), negative)


@pytest.mark.parametrize("declared", [-2000, 63536])
def test_padding_declared_with_or_without_its_sign(tmp_path, declared):
    stored = np.array([[-2000, 0], [40, -1000]], np.int16)
    dataset = new_slice((0, 0, 0), stored=stored)
    dataset.add_new("PixelPaddingValue", "US" if declared > 0 else "SS", declared)
    save(dataset, tmp_path / "a")
    record = record_of(tmp_path, "a")
    assert record["padding"] == [-2000, -2000]
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record), [[-1024, 0], [40, -1000]])


def test_padding_inside_the_range_of_tissue(tmp_path):
    stored = np.array([[0, 1024], [1064, 24]], np.uint16)
    dataset = new_slice((0, 0, 0), stored=stored, RescaleIntercept=-1024)
    dataset.add_new("PixelPaddingValue", "US", 1024)
    save(dataset, tmp_path / "a")
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), [[-1024, -1024], [40, -1000]])


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntaxes_decode_to_the_reference(real_data, name):
    folder = real_data / "codecs"
    reference = pydicom.dcmread(folder / "CT1_UNC_REF.dcm").pixel_array
    np.testing.assert_array_equal(read_stored(folder, record_of(folder, name)), reference)


def test_big_endian(tmp_path):
    stored = np.arange(-8, 8, dtype=np.int16).reshape(4, 4)
    dataset = new_slice((0, 0, 0), stored=stored)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    dataset.PixelData = stored.astype(">i2").tobytes()
    dataset.save_as(tmp_path / "a", implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(read_stored(tmp_path, record_of(tmp_path, "a")), stored)


def test_what_cannot_be_decoded_is_named(tmp_path):
    save(new_slice((0, 0, 0)), tmp_path / "broken")
    record = record_of(tmp_path, "broken")
    with pytest.raises(DicomError, match=r"broken cannot be decoded"):
        read_stored(tmp_path, {**record, "rows": 9})
    with pytest.raises(DicomError, match=r"broken decodes to \(4, 4\)"):
        read_stored(tmp_path, {**record, "rows": 9, "transfer_syntax": "1.2.840.10008.1.2.5"})
    (tmp_path / "broken").unlink()
    with pytest.raises(FileNotFoundError):
        read_stored(tmp_path, record)


def test_decoders_that_the_requirements_bring():
    # Implicit, explicit, big-endian, deflated, RLE, JPEG baseline/extended/lossless (both), JPEG-LS, J2K, HTJ2K.
    for end in ("", ".1", ".2", ".1.99", ".5", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91",
                ".4.201", ".4.202", ".4.203"):  # fmt: skip
        assert can_decode("1.2.840.10008.1.2" + end), end
    assert not can_decode("1.2.840.10008.1.2.4.103")  # MPEG-4: no CT is stored so
    assert not can_decode("1.2.3")
