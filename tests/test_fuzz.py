"""A short fuzz run of synthetic folders (`python tests/fuzz.py` is the long one), and what the long one has found."""

import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib

import fuzz
import numpy as np
import pydicom
import pytest
from dicom_files import chest_like, new_slice, save, stack, write_series
from fuzz_bases import synthetic_bases
from pydicom.uid import DeflatedExplicitVRLittleEndian

from lungmill.dicom.codestream import declared_matrix
from lungmill.dicom.header import read_header
from lungmill.dicom.stream import LARGEST_INFLATED
from lungmill.errors import DicomError
from lungmill.files import list_files, read_json, write_json
from lungmill.indexing import index
from lungmill.series import read_series

FEW = {"min_slices": 3}


def test_damaged_folders_end_with_a_verdict():
    tally = fuzz.fuzz(list(range(3_000_000_000, 3_000_000_600)), real=False)
    assert tally.failures == []
    assert tally.count == 600
    assert {"accepted", "no_ct_series", "truncated_pixels", "unreadable", "no_geometry"} <= set(tally.outcomes)


def put(folder, base):
    for name, parsed in synthetic_bases()[base].items():
        (folder / name).write_bytes(parsed.data)


def peak_bytes(call, *arguments):
    tracemalloc.start()
    try:
        call(*arguments)
    except DicomError as error:
        assert error.reason == "unreadable"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.filterwarnings("ignore")
def test_a_claimed_length_is_not_allocated(tmp_path):
    save(new_slice((0, 0, 0)), tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    element = struct.pack("<HH2sHL", 0x0028, 0x0030, b"UN", 0, 0xFFFFFFF0)  # Pixel Spacing of 4 GB
    place = data.index(struct.pack("<HH2s", 0x0028, 0x0030, b"DS"))
    (tmp_path / "a").write_bytes(data[:place] + element + data[place:])
    assert peak_bytes(read_header, tmp_path, "a") < 1e6


def test_a_deflated_bomb_is_not_inflated(tmp_path):
    save(new_slice((0, 0, 0)), tmp_path / "a")
    whole = pydicom.dcmread(tmp_path / "a")
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole.PixelData = b""
    save(whole, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    meta = data[: 144 + struct.unpack("<L", data[140:144])[0]]  # as long as the group length says
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 22)) for _ in range((LARGEST_INFLATED >> 22) + 2)) + packer.flush()
    (tmp_path / "a").write_bytes(meta + bomb)
    assert peak_bytes(read_header, tmp_path, "a") < 50e6


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 3))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
        server.bind("socket")
    code = "import sys; from lungmill.indexing import index; print(index(sys.argv[1])['files'])"
    run = subprocess.run(
        [sys.executable, "-c", code, os.fspath(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout.strip() == "{'dicom': 3, 'not_dicom': 3, 'unreadable': 0}", run.stderr


def test_links_in_a_circle_are_listed(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert list(list_files(tmp_path)) == ["a", "b"]
    assert index(tmp_path)["reason"] == "unreadable"


@pytest.mark.parametrize("name", ["a\nb", "\udcff\udcfe", "\u202egnp"])
def test_odd_names_of_files(tmp_path, name):
    folder = tmp_path / "patient"
    write_series(folder, chest_like, stack((-24, -24, 0), (0, 0, 2), 3))
    (folder / "IM0002").rename(folder / name)
    write_json(tmp_path / "verdict.json", index(folder, settings=FEW))
    verdict = read_json(tmp_path / "verdict.json")
    assert name in [record["file"] for record in verdict["slices"]]
    assert len(list(read_series(folder, verdict))) == 3
    os.truncate(folder / name, 1000)
    assert index(folder, settings=FEW)["detail"].isprintable()


def test_a_broken_element_of_the_meta_header(tmp_path):
    save(new_slice((0, 0, 0)), tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:132] + b"\2\0\0\0UL\3\0\1\2\3" + data[144:])  # group length of three bytes
    assert index(tmp_path, settings=FEW)["reason"] in ("unreadable", "too_few_slices")


@pytest.mark.parametrize("base", ["j2k", "jpegls", "jpeg"])
def test_a_stream_with_another_matrix_is_not_decoded(tmp_path, base):
    """GDCM ends the whole process where a JPEG-LS stream claims 65535 x 65535."""
    put(tmp_path, base)
    marker, offset, form = {
        "j2k": (b"\xff\x51", 6, ">LL"),
        "jpegls": (b"\xff\xf7", 5, ">HH"),
        "jpeg": (b"\xff\xc3", 5, ">HH"),
    }[base]
    for path in tmp_path.iterdir():
        data = bytearray(path.read_bytes())
        start = data.index(marker, data.index(b"\xe0\x7f\x10\x00")) - 2
        assert declared_matrix(bytes(data[start:])) == (32, 32)
        struct.pack_into(form, data, start + 2 + offset, 65535, 65535)
        assert declared_matrix(bytes(data[start:])) == (65535, 65535)
        path.write_bytes(data)
    verdict = index(tmp_path, settings=FEW)
    assert (verdict["status"], verdict["reason"]) == ("rejected", "unreadable")


def test_broken_streams_print_nothing(tmp_path, capfd):
    put(tmp_path, "jpeg")
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:-200] + bytes(np.random.default_rng(0).integers(0, 255, 190, np.uint8)) + data[-10:])
    index(tmp_path, settings=FEW)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("start", [b"", b"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00"])
def test_a_header_of_zeros_ends(tmp_path, start):
    """Zeros read as elements without a value, 8 bytes each: a million of them take a second, and files are larger."""
    with (tmp_path / "a").open("wb") as file:
        file.write(bytes(128) + b"DICM" + start)
        file.truncate(1 << 32)
    with pytest.raises(DicomError, match="unreadable"):
        read_header(tmp_path, "a")


@pytest.mark.parametrize(
    "attributes", [{"PixelSpacing": [9e8, 9e8]}, {"PixelSpacing": [1e-9, 1e-9]}, {"Rows": 0}, {"Columns": 0}]
)
def test_sizes_of_no_person(tmp_path, attributes):
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 3), **attributes)
    assert index(tmp_path, settings=FEW)["reason"] in ("inconsistent_geometry", "no_ct_series")


def test_attributes_written_as_unknown(tmp_path):
    """Archives that do not know an attribute write it with the VR UN."""
    write_series(tmp_path, chest_like, stack((-24, -24, 0), (0, 0, 2), 3))
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        place = data.index(struct.pack("<HH2s", 0x0020, 0x0032, b"DS"))
        length = data[place + 6 : place + 8] + b"\0\0"
        path.write_bytes(data[:place] + b"\x20\x00\x32\x00UN\0\0" + length + data[place + 8 :])
    assert index(tmp_path, settings=FEW)["geometry"]["step_mm"] == 2
