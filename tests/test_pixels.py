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
    st.sampled_from([np.int16, np.uint16, np.int8, np.int32]).flatmap(lambda kind: arrays(kind, (4, 5))),
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


def test_padding_in_all_bits_where_fewer_are_stored(tmp_path):
    stored = np.array([[63536, 0], [1064, 2096]], np.uint16)
    dataset = new_slice((0, 0, 0), stored=stored, BitsStored=12, HighBit=11, RescaleIntercept=-1024)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    save(dataset, tmp_path / "a")
    # 63536 & 0xFFF is 2096, which is bone where it was stored as such.
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), [[-1024, -1024], [40, 1072]])


@pytest.mark.parametrize("limit, is_padding", [(-3000, [1, 1, 0, 0]), (-2000, [0, 1, 0, 0]), (-1990, [0, 1, 1, 0])])
def test_a_range_of_padding(tmp_path, limit, is_padding):
    stored = np.array([[-2500, -2000], [-1995, 30]], np.int16)
    dataset = new_slice((0, 0, 0), stored=stored, RescaleIntercept=3000)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
    save(dataset, tmp_path / "a")
    expected = np.where(np.reshape(is_padding, (2, 2)), -1024, stored + 3000)
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), expected)


@pytest.mark.parametrize("intercept", [0, -1024])
@pytest.mark.parametrize("value", [-2000, -2048, -3024])
def test_padding_that_nobody_declared_is_air(tmp_path, value, intercept):
    stored = np.array([[value, -1000 - intercept], [value, 60 - intercept]], np.int16)
    save(new_slice((0, 0, 0), stored=stored, RescaleIntercept=intercept), tmp_path / "a")
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), [[-1024, -1000], [-1024, 60]])


def test_an_overlay_in_the_unused_bits_is_cut_off(tmp_path):
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 250
    overlay = np.eye(4, dtype=np.uint16) << 12
    dataset = new_slice((0, 0, 0), stored=values | overlay, BitsStored=12, HighBit=11)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 12)
    save(dataset, tmp_path / "a")
    np.testing.assert_array_equal(read_stored(tmp_path, record_of(tmp_path, "a")), values)


@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_that_do_not_start_at_the_lowest(tmp_path, signed):
    values = np.arange(-2048 if signed else 0, 2048 if signed else 4096, 256).reshape(4, 4)
    stored = ((values << 3) | 0b101).astype(np.int16 if signed else np.uint16)
    save(new_slice((0, 0, 0), stored=stored, BitsStored=12, HighBit=14), tmp_path / "a")
    np.testing.assert_array_equal(read_stored(tmp_path, record_of(tmp_path, "a")), values)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_word_lengths_and_signs(tmp_path, kind):
    limits = np.iinfo(kind)
    stored = np.array([[limits.min, limits.max], [100, 3]], kind)
    save(new_slice((0, 0, 0), stored=stored, RescaleIntercept=-20), tmp_path / "a")
    record = record_of(tmp_path, "a")
    np.testing.assert_array_equal(read_stored(tmp_path, record), stored)
    expected = np.clip(stored.astype(np.int64) - 20, -1024, 32767)
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record), expected)


def test_float_slopes_do_not_wrap_around(tmp_path):
    stored = np.array([[65535, 40000], [1, 20000]], np.uint16)
    save(new_slice((0, 0, 0), stored=stored, RescaleSlope="0.0625", RescaleIntercept="-1024.5"), tmp_path / "a")
    expected = np.maximum(np.rint(stored.astype(float) / 16 - 1024.5), -1024)
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), expected)


def test_monochrome1_is_a_matter_of_display(tmp_path):
    stored = np.array([[-1000, 0], [40, 700]], np.int16)
    save(new_slice((0, 0, 0), stored=stored, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a")
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), stored)


def modality_lut(first, entries, bits=16, kind="US"):
    """A Modality LUT Sequence of one item in place of the rescale."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.ModalityLUTType = kind
    item.add_new("LUTData", "US", np.asarray(entries, np.uint16).tolist())
    return {"ModalityLUTSequence": [item], "RescaleSlope": None, "RescaleIntercept": None}


@pytest.mark.parametrize("dtype, first", [(np.uint16, 0), (np.uint16, 5), (np.int16, -4)])
def test_a_modality_lut_as_pydicom_applies_it(tmp_path, dtype, first):
    entries = np.arange(12) ** 2 * 3
    stored = np.arange(-8 if first < 0 else 0, 24, 2)[:16].reshape(-1, 4).astype(dtype)
    dataset = new_slice((0, 0, 0), stored=stored, **modality_lut(first, entries))
    save(dataset, tmp_path / "a")
    expected = pydicom.pixels.apply_modality_lut(stored, dataset)
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), expected)


def test_a_modality_lut_of_hounsfield_units_holds_negative_ones(tmp_path):
    hounsfield = np.array([-1000, -500, 40, 900], np.int16)
    stored = np.array([[0, 1], [2, 9]], np.uint16)
    dataset = new_slice((0, 0, 0), stored=stored, **modality_lut(0, hounsfield.view(np.uint16), kind="HU"))
    save(dataset, tmp_path / "a")
    np.testing.assert_array_equal(read_hounsfield(tmp_path, record_of(tmp_path, "a")), [[-1000, -500], [40, 900]])
    del dataset.ModalityLUTSequence[0].LUTData
    save(dataset, tmp_path / "a")
    with pytest.raises(DicomError, match="a has a broken Modality LUT"):
        read_hounsfield(tmp_path, record_of(tmp_path, "a"))


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
    with pytest.raises(DicomError, match=r"broken cannot be decoded"):
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
