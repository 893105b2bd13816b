"""The fast way through a header must find what pydicom finds, or leave the header to it."""

import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import new_slice, save
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lungmill.dicom.header import TAGS, read_header
from lungmill.dicom.scan import scan_header
from lungmill.errors import DicomError


def rich_slice(undefined_length=True):
    """A slice with nested sequences, private ones too, before the attributes that are wanted."""
    inner = Dataset()
    inner.CodeValue, inner.Rows = "inner", 7  # an attribute of a nested data set is none of the slice's
    inner.private_block(0x0009, "SOMEBODY", create=True).add_new(1, "UN", bytes(10))
    outer = Dataset()
    outer.ProcedureCodeSequence = Sequence([inner, inner])
    dataset = new_slice((1.5, -2.25, 1e2), KVP="120", SliceThickness="2.5 ", ReferencedImageSequence=Sequence([outer]))
    dataset.private_block(0x0011, "SOMEBODY", create=True).add_new(2, "SQ", Sequence([outer, Dataset()]))
    for element in (dataset["ReferencedImageSequence"], outer["ProcedureCodeSequence"], dataset[0x0011, 0x1002]):
        element.is_undefined_length = undefined_length
        for item in element.value:
            item.is_undefined_length_sequence_item = undefined_length
    return dataset


def both_ways(folder, name, monkeypatch):
    """What `read_header` makes of a file with the scan and without it, and whether the scan was of use."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = outcome(folder, name)
        with (folder / name).open("rb") as stream:
            start = stream.read(132)
            used = start[128:] == b"DICM" and scan_header(stream, TAGS) is not None
        patch.setattr("lungmill.dicom.header.scan_header", lambda stream, wanted: None)
        return fast, outcome(folder, name), used


def outcome(folder, name):
    try:
        return read_header(folder, name)
    except (DicomError, OSError) as error:
        return str(error)


@pytest.mark.parametrize("undefined_length", [True, False])
@pytest.mark.parametrize(
    "syntax, fast",
    [
        (ExplicitVRLittleEndian, True),
        (ImplicitVRLittleEndian, True),
        (ExplicitVRBigEndian, False),
        (DeflatedExplicitVRLittleEndian, False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_usual_syntaxes_are_scanned(tmp_path, monkeypatch, syntax, fast, undefined_length):
    dataset = rich_slice(undefined_length)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset["PixelData"].VR = "OW"
    save(dataset, tmp_path / "slice")
    scanned, expected, used = both_ways(tmp_path, "slice", monkeypatch)
    assert used == fast
    assert scanned == expected
    assert (scanned.rows, scanned.position, scanned.kvp) == (4, (1.5, -2.25, 100.0), 120.0)


def test_real_headers(real_data, monkeypatch):
    used = []
    for path in sorted(real_data.rglob("*")):
        if path.is_file() and path.suffix in ("", ".dcm"):
            scanned, expected, fast = both_ways(path.parent, path.name, monkeypatch)
            assert scanned == expected, path.name
            used.append(fast)
    assert np.mean(used) > 0.8


def test_mutated_headers_are_read_as_pydicom_reads_them(tmp_path, monkeypatch):
    save(rich_slice(), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    end = whole.index(b"\xe0\x7f\x10\x00") + 12
    rng = np.random.default_rng(5)
    used = []
    for _ in range(600):
        content, place = bytearray(whole), int(rng.integers(132, end))
        kind = rng.integers(4)
        if kind < 2:
            content[place] = rng.integers(256)
        elif kind == 2:
            del content[place : place + int(rng.integers(1, 5))]
        else:
            content[place : place + 4] = (b"\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0", b"UN\0\0")[rng.integers(3)]
        (tmp_path / "mutated").write_bytes(content)
        scanned, expected, fast = both_ways(tmp_path, "mutated", monkeypatch)
        assert scanned == expected
        used.append(fast)
    assert 0.05 < np.mean(used) < 0.95


def test_a_header_longer_than_one_read_is_scanned(tmp_path, monkeypatch):
    dataset = rich_slice()
    dataset.private_block(0x0013, "SOMEBODY", create=True).add_new(1, "OB", bytes(200_000))
    save(dataset, tmp_path / "slice")
    assert len((tmp_path / "slice").read_bytes()) > 200_000
    scanned, expected, used = both_ways(tmp_path, "slice", monkeypatch)
    assert used and scanned == expected and scanned.pixels.length == pydicom.dcmread(tmp_path / "slice").Rows * 4 * 2
