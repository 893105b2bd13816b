import numpy as np
import pydicom
import pytest
from dicom_files import new_slice, save
from pydicom.encaps import encapsulate

from lungmill.dicom.header import KEYWORDS, read_header
from lungmill.errors import DicomError


def test_pixel_data_are_found_where_they_are(real_data):
    for name in ("codecs/CT1_UNC_REF.dcm", "lidc-0001/000001.dcm", "ct64/IMG0001.dcm"):
        header = read_header(real_data, name)
        raw = (real_data / name).read_bytes()
        expected = pydicom.dcmread(real_data / name).PixelData
        assert raw[header.pixels.offset : header.pixels.offset + header.pixels.length] == expected
        assert header.pixels.complete and header.pixels.fragments is None


@pytest.mark.parametrize("missing", [1, 8, 30])
def test_truncation_is_seen(tmp_path, missing):
    save(new_slice((0, 0, 0), stored=np.ones((8, 8), np.int16)), tmp_path / "native")
    dataset = new_slice((0, 0, 0), stored=np.ones((8, 8), np.int16))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = encapsulate([b"\1" * 60])
    dataset["PixelData"].is_undefined_length = True
    save(dataset, tmp_path / "encapsulated")
    for name in ("native", "encapsulated"):
        assert read_header(tmp_path, name).pixels.complete
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-missing])
        assert not read_header(tmp_path, name).pixels.complete


def test_what_is_no_dicom_file_is_none(tmp_path):
    for name, content in {"empty": b"", "text": b"hello " * 50, "zeros": bytes(500), "xml": b"<?xml?>"}.items():
        (tmp_path / name).write_bytes(content)
        assert read_header(tmp_path, name) is None


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_garbage_behind_a_preamble_is_unreadable_or_empty(tmp_path):
    (tmp_path / "a").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\xff\xff" + b"\x17" * 50)
    try:
        header = read_header(tmp_path, "a")
    except DicomError as error:
        assert error.reason == "unreadable"
    else:
        assert header is None or header.pixels is None


def test_only_the_named_attributes_are_kept(tmp_path):
    save(new_slice((0, 0, 0), PatientName="SECRET^NAME", StudyDescription="SECRET"), tmp_path / "a")
    assert "SECRET" not in repr(read_header(tmp_path, "a"))
    personal = {"PatientName", "PatientID", "PatientBirthDate", "StudyDate", "InstitutionName", "StudyDescription"}
    assert not personal & set(KEYWORDS)


def break_number(path, keyword):
    """Overwrite the value of a decimal string with letters of the same length."""
    value = pydicom.dcmread(path)[keyword]
    written = str(value.value).encode()
    written += b" " * (len(written) % 2)
    tag = value.tag.group.to_bytes(2, "little") + value.tag.element.to_bytes(2, "little") + b"DS"
    raw = path.read_bytes()
    at = raw.index(written, raw.index(tag))
    path.write_bytes(raw[:at] + b"x" * len(written) + raw[at + len(written) :])


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_broken_number_is_absent_where_nothing_depends_on_it_and_an_error_where_hounsfield_do(tmp_path):
    path = tmp_path / "a"
    save(new_slice((0, 0, 0), KVP=120), path)
    break_number(path, "KVP")
    assert read_header(tmp_path, "a").kvp is None
    break_number(path, "RescaleSlope")
    with pytest.raises(DicomError, match="unreadable") as error:
        read_header(tmp_path, "a")
    assert "xx" not in str(error.value)
