"""Every transfer syntax of real archives: what was written is what is read, in all word lengths and signs.

GDCM, pydicom and OpenJPEG write the files; the truth is the array that was given to them.
"""

import base64
import struct
import zlib
from dataclasses import replace

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_files import chest_like, new_slice, save, stack, write_series
from pydicom.encaps import encapsulate, generate_frames

from lungmill.dicom.header import read_header
from lungmill.dicom.pixels import read_stored
from lungmill.errors import DicomError
from lungmill.indexing import _slice_record, index

LOSSLESS = {
    "1.2.840.10008.1.2": "ImplicitVRLittleEndian",
    "1.2.840.10008.1.2.1": "ExplicitVRLittleEndian",
    "1.2.840.10008.1.2.2": "ExplicitVRBigEndian",
    "1.2.840.10008.1.2.1.99": "DeflatedExplicitVRLittleEndian",
    "1.2.840.10008.1.2.5": "RLELossless",
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
}
# A ramp of 24 x 28 numbers (see below) as lossless High-Throughput JPEG 2000, encoded by OpenJPH (imagecodecs).
HTJ2K = {
    "unsigned": (
        "/0//UQApQAAAAAAcAAAAGAAAAAAAAAAAAAAAHAAAABgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
        "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALYAAf+TwAAmg/cFB3QAwAATQAATAFz8Aod0APz8Awd0"
        "AMAAFTAABMAAADhw8AECtADt9gAiNADAABPAABVgMeKM/st1AHTTTTfdwEIBvrYAwAAVsAAFoooKhaJC8ecv1+ELdwCyZWVlZWVl+gYw"
        "I/Yxgey6AMAALTgABbycc84555xz/vf8Cnp6enpwAnsAwEAgEAgEAoFAIBAI/P9sAQ9iEB79iEB79iEB7LEB/9k="
    ),
    "signed": (
        "/0//UQApQAAAAAAcAAAAGAAAAAAAAAAAAAAAHAAAABgAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQ"
        "kJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALUAAf+TwAAlgwKHdADAABNAABMAXPwCh3QA/PwDB3QA"
        "wAAVMAAEwAAAOHDwAQK0AO32ACI0AMAAE8AAFWAx4oz+y3UAdNNNN93AQgG+tgDAABWwAAWiigqFokLx5y/X4Qt3ALJlZWVlZWX6BjAj"
        "9jGB7LoAwAAtOAAFvJxzzjnnnHP+9/wKenp6enACewDAQCAQCAQCgUAgEAj8/2wBD2IQHv2IQHv2IQHssQH/2Q=="
    ),
}
WORDS = {"8": (8, 8), "12 of 16": (16, 12), "16": (16, 16)}


def transcode(source, target, syntax):
    """Write `source` in another transfer syntax with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def noisy_ramp(allocated, stored, signed):
    """Values (40, 48) over the whole range of `stored` bits, its ends included."""
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    row, column = np.mgrid[:40, :48]
    noise = np.random.default_rng(0).normal(0, (high - low) / 500, row.shape)
    values = np.clip(low + (high - low) * (row + column) / 86 + noise, low, high)
    values[0, :2] = low, high
    return values.astype(f"{'i' if signed else 'u'}{allocated // 8}")


def read(folder, name):
    header = replace(read_header(folder, name), position=(0.0, 0.0, 0.0))  # not every file here is a CT image
    return read_stored(folder, _slice_record(header))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("uid", LOSSLESS)
def test_lossless(tmp_path, uid, word, signed):
    allocated, stored = WORDS[word]
    values = noisy_ramp(allocated, stored, signed)
    save(new_slice((0, 0, 0), stored=values, BitsStored=stored, HighBit=stored - 1), tmp_path / "source")
    transcode(tmp_path / "source", tmp_path / "target", LOSSLESS[uid])
    assert read_header(tmp_path, "target").transfer_syntax == uid
    np.testing.assert_array_equal(read(tmp_path, "target"), values)


@pytest.mark.parametrize("name", HTJ2K)
@pytest.mark.parametrize("end", ["201", "202", "203"])
def test_high_throughput_jpeg_2000(tmp_path, name, end):
    row, column = np.mgrid[:24, :28]
    values = (row * 97 + column * 31) % 4096
    values = (values - 2048).astype(np.int16) if name == "signed" else values.astype(np.uint16)
    dataset = new_slice((0, 0, 0), stored=values)
    dataset.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{end}"
    dataset.PixelData = encapsulate([base64.b64decode(HTJ2K[name])])
    dataset["PixelData"].is_undefined_length = True
    save(dataset, tmp_path / "a")
    np.testing.assert_array_equal(read(tmp_path, "a"), values)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"])
def test_jpeg_of_8_bits(tmp_path, uid):
    values = noisy_ramp(8, 8, False)
    save(new_slice((0, 0, 0), stored=values), tmp_path / "source")
    name = "JPEGBaselineProcess1" if uid.endswith("50") else "JPEGExtendedProcess2_4"
    transcode(tmp_path / "source", tmp_path / "target", name)
    assert read_header(tmp_path, "target").transfer_syntax == uid
    assert np.abs(read(tmp_path, "target").astype(int) - values).max() <= 2


def test_jpeg_extended_of_12_bits(tmp_path):
    row, column = np.mgrid[:40, :48]
    values = (500 + 20 * (row + column)).astype(np.uint16)
    save(new_slice((0, 0, 0), stored=values, BitsStored=12, HighBit=11), tmp_path / "source")
    transcode(tmp_path / "source", tmp_path / "target", "JPEGExtendedProcess2_4")
    assert np.abs(read(tmp_path, "target").astype(int) - values).max() <= 2
    whole = (tmp_path / "target").read_bytes()
    (tmp_path / "target").write_bytes(whole.replace(b"\xff\xd8", b"\0\0"))
    with pytest.raises(DicomError, match="target cannot be decoded"):
        read(tmp_path, "target")


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"])
def test_lossy_within_their_error(tmp_path, uid):
    values = noisy_ramp(16, 12, True)
    dataset = new_slice((0, 0, 0), stored=values, BitsStored=12, HighBit=11)
    dataset.compress(uid, **({"jls_error": 3} if uid.endswith("81") else {"j2k_psnr": [70]}))
    save(dataset, tmp_path / "a")
    error = np.abs(read(tmp_path, "a").astype(int) - values)
    assert 0 < error.max() <= (3 if uid.endswith("81") else 8)


@pytest.mark.parametrize("name", ["CT1_J2KI.dcm", "CT1_JLSN.dcm"])
def test_real_lossy_files_are_near_their_reference(real_data, name):
    folder = real_data / "codecs"
    reference = pydicom.dcmread(folder / "CT1_UNC_REF.dcm").pixel_array.astype(int)
    assert np.abs(read(folder, name) - reference).mean() < 30  # J2KI is compressed hard
    np.testing.assert_array_equal(read(folder, name), pydicom.dcmread(folder / name).pixel_array)


@pytest.mark.parametrize("name", ["D_CLUNIE_CT1_RLE_FRAGS.dcm", "bad_sequence.dcm"])
def test_real_odd_files_decode_as_pydicom_decodes_them(real_data, name):
    folder = real_data / "corrupt"
    header = read_header(folder, name)
    np.testing.assert_array_equal(read(folder, name), pydicom.dcmread(folder / name).pixel_array)
    assert name != "D_CLUNIE_CT1_RLE_FRAGS.dcm" or header.pixels.fragments > 1


@pytest.mark.parametrize("size", [100, 64, 1000])
def test_a_frame_in_many_fragments_without_an_offset_table(tmp_path, size):
    values = noisy_ramp(16, 16, True)
    dataset = new_slice((0, 0, 0), stored=values)
    dataset.compress("1.2.840.10008.1.2.4.90")
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    pieces = [frame[start : start + size] for start in range(0, len(frame), size)]
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", *pieces))
    dataset.PixelData = items + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    save(dataset, tmp_path / "a")
    assert read_header(tmp_path, "a").pixels.fragments == len(pieces)
    np.testing.assert_array_equal(read(tmp_path, "a"), values)


@pytest.mark.parametrize("order", ["little", "big"])
def test_8_bit_values_in_words(tmp_path, order):
    values = noisy_ramp(8, 8, False)
    little = order == "little"
    dataset = new_slice((0, 0, 0), stored=values)
    dataset.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.{1 if little else 2}"
    dataset.PixelData = values.tobytes() if little else values.view("<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(tmp_path / "a", implicit_vr=False, little_endian=little, force_encoding=True)
    np.testing.assert_array_equal(read(tmp_path, "a"), values)


def test_a_real_deflated_file(real_data):
    folder = real_data / "corrupt"
    np.testing.assert_array_equal(read(folder, "image_dfl.dcm"), pydicom.dcmread(folder / "image_dfl.dcm").pixel_array)


def test_deflated_series_and_one_that_ends_early(tmp_path):
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 12))
    for path in sorted(tmp_path.iterdir()):
        transcode(path, path, "DeflatedExplicitVRLittleEndian")
    assert index(tmp_path)["status"] == "accepted"
    path.write_bytes(path.read_bytes()[:-200])
    verdict = index(tmp_path)
    assert verdict["files"]["unreadable"] == 1
    with pytest.raises(DicomError, match="unreadable"):
        read_header(tmp_path, path.name)


def test_lossy_files_are_warned_of(tmp_path):
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 12))
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress("1.2.840.10008.1.2.4.81", jls_error=2)
        save(dataset, path)
    verdict = index(tmp_path)
    assert [warning["code"] for warning in verdict["warnings"]] == ["lossy_compression"]


def test_a_stream_that_is_garbage_is_found_when_indexed(tmp_path):
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 12))
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
        dataset.PixelData = encapsulate([zlib.compress(bytes(path.name * 100, "ascii"))])
        dataset["PixelData"].is_undefined_length = True
        save(dataset, path)
    assert index(tmp_path)["reason"] == "unreadable"
