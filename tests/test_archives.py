"""A patient in a .zip or .tar: the same verdict and the same voxels as from the folder, and no harm from a bad one."""

import io
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from archives import KINDS, entries_of, write_tar, write_zip
from dicom_files import chest_like, new_slice, save, stack, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from multiframe_files import new_multiframe, scene_frames
from workspace import Workspace

from lungmill.dicom import archive
from lungmill.dicom.archive import open_archive
from lungmill.errors import ConfigError, LungmillError
from lungmill.indexing import index
from lungmill.patients import find_patients
from lungmill.provenance import folder_fingerprint
from lungmill.series import read_series


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good series with files at several depths, a text, a file that is cut short and a hidden one."""
    path = tmp_path_factory.mktemp("patient")
    write_series(path / "DICOM" / "PA0", chest_like, stack((-24, -24, 0), (0, 0, 2), 12))
    (path / "DICOM" / "PA0" / "IM0003").rename(path / "out of the way")
    (path / "notes.txt").write_text("nothing")
    (path / "DICOM" / "cut.dcm").write_bytes((path / "out of the way").read_bytes()[:200])
    (path / ".hidden").write_bytes((path / "out of the way").read_bytes())
    return path


def outcome(place):
    """Verdict and voxels, and the voxels a second time slice by slice from the end."""
    verdict = index(place, "someone")
    if verdict["status"] != "accepted":
        return verdict, None
    series = read_series(place, verdict)
    voxels = series.to_array()
    for k in reversed(range(len(series))):
        np.testing.assert_array_equal(series[k], voxels[k])
    return verdict, voxels


def assert_as_folder(place, expected):
    verdict, voxels = outcome(place)
    assert verdict == expected[0]
    np.testing.assert_array_equal(voxels, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_read_as_its_folder(tmp_path, folder, kind):
    expected = outcome(folder)
    assert expected[0]["files"] == {"dicom": 13, "not_dicom": 1, "unreadable": 0}
    KINDS[kind](tmp_path / kind, entries_of(folder))
    assert_as_folder(tmp_path / kind, expected)
    assert index(tmp_path / kind)["patient"] == kind.partition(".")[0]
    # Packed from the outside, names begin with the folder's own.
    stem = kind.partition(".")[0]
    KINDS[kind](tmp_path / kind, [(f"./{stem}/{name}", content) for name, content in entries_of(folder)])
    assert_as_folder(tmp_path / kind, expected)


@pytest.mark.parametrize("kind", ["stored.zip", "deflated.zip", "plain.tar", "packed.tar.gz"])
def test_real_folders_of_every_kind(tmp_path, real_data, kind):
    """Among them big endian, compressed pixels, multi-frame objects and files that are damaged."""
    for place in [path for path in real_data.rglob("*") if path.is_dir() and path.name != "lidc-0001"]:
        if any(path.is_file() for path in place.iterdir()):
            KINDS[kind](tmp_path / kind, entries_of(place))
            assert_as_folder(tmp_path / kind, outcome(place))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"], ids=["big endian", "deflated"])
@pytest.mark.parametrize("kind", ["stored.zip", "deflated.zip", "plain.tar"])
def test_other_byte_orders(tmp_path, kind, syntax):
    for number, position in enumerate(stack((-24, -24, 0), (0, 0, 2), 12), start=1):
        stored = np.rint(chest_like(np.moveaxis(np.mgrid[-24:24, -24:24, 0:1][..., 0], 0, -1)[..., ::-1]))
        dataset = new_slice(position, stored=stored.astype(">i2" if syntax.endswith("2.2") else "<i2"), number=number)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].VR = "OW"
        save(dataset, tmp_path / "folder" / str(number))
    KINDS[kind](tmp_path / kind, entries_of(tmp_path / "folder"))
    expected = outcome(tmp_path / "folder")
    assert expected[0]["status"] == "accepted"
    assert_as_folder(tmp_path / kind, expected)


@pytest.mark.parametrize("in_memory", [1 << 26, 0], ids=["in memory", "in a temporary file"])
def test_a_multi_frame_object_is_inflated_once(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(archive, "IN_MEMORY", in_memory)
    positions = stack((-24, -24, 0), (0, 0, 2), 12)
    save(new_multiframe(scene_frames(chest_like, positions), positions), tmp_path / "folder" / "all.dcm")
    write_zip(tmp_path / "x.zip", entries_of(tmp_path / "folder"))
    inflated = []
    whole = archive.Archive._inflated
    monkeypatch.setattr(archive.Archive, "_inflated", lambda *given: inflated.append(given[1]) or whole(*given))
    expected = outcome(tmp_path / "folder")
    assert expected[0]["geometry"]["shape"][0] == 12
    assert_as_folder(tmp_path / "x.zip", expected)
    assert inflated == ["all.dcm"]


names = st.lists(st.text("ab1 _-é/", min_size=1, max_size=12), min_size=12, max_size=12, unique=True)


@settings(max_examples=30, deadline=None)
@given(names=names, order=st.permutations(range(12)), kind=st.sampled_from(["stored.zip", "deflated.zip", "plain.tar"]))
def test_any_names_in_any_order_and_depth(tmp_path_factory, names, order, kind):
    parts = [tuple(part for part in name.split("/") if part) for name in names]
    paths = [(*part, f"f{k}") for k, part in enumerate(parts)]
    slices = [
        new_slice(position, stored=np.full((8, 8), -1000 if k % 2 else 20 + k, np.int16), number=k + 1)
        for k, position in enumerate(stack((0, 0, 0), (0, 0, 2), 12))
    ]
    place = tmp_path_factory.mktemp("named")
    entries = {}
    for path, dataset in zip(paths, slices, strict=True):
        save(dataset, place.joinpath("folder", *path))
        entries["/".join(path)] = place.joinpath("folder", *path).read_bytes()
    shuffled = [list(entries.items())[k] for k in order]
    KINDS[kind](place / kind, shuffled)
    assert open_archive(str(place / kind), (place / kind).stat().st_size, 0).files() == list(
        archive_of_folder(place / "folder")
    )
    assert_as_folder(place / kind, outcome(place / "folder"))


def archive_of_folder(folder):
    from lungmill.files import list_files

    return list_files(folder)


def damaged(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def pixels_place(path):
    """Where the pixels of a slice in the middle lie in an archive whose members are stored."""
    content = path.read_bytes()
    found, place = [], content.find(b"\xe0\x7f\x10\x00")
    while place >= 0:
        found.append(place)
        place = content.find(b"\xe0\x7f\x10\x00", place + 1)
    return found[len(found) // 2] + 1000


@pytest.mark.parametrize("kind", ["stored.zip", "deflated.zip", "packed.tar.gz"])
def test_one_changed_byte_is_noticed_where_there_is_a_checksum(tmp_path, folder, kind):
    path = tmp_path / kind
    KINDS[kind](path, entries_of(folder))
    content = path.read_bytes()
    path.write_bytes(damaged(content, pixels_place(path) if kind == "stored.zip" else len(content) // 2))
    verdict = index(path)
    assert (verdict["status"], verdict["reason"]) == ("rejected", "unreadable")
    assert "\n" not in verdict["detail"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_was_not_copied_whole_is_no_shorter_scan(tmp_path, folder, kind):
    path = tmp_path / kind
    KINDS[kind](path, entries_of(folder))
    content = path.read_bytes()
    filled = len(content.rstrip(b"\0"))  # a tar ends in zeros
    cuts = [0, 1, filled // 3, filled // 2, filled - 5]
    if kind == "plain.tar":
        # At the border of a member only the end mark is missing.
        with tarfile.open(path) as members:
            cuts += [member.offset for member in members] + [-(-filled // 512) * 512]
    for cut in cuts:
        path.write_bytes(content[:cut])
        verdict = index(path)
        assert (verdict["status"], verdict["reason"]) == ("rejected", "unreadable"), cut


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path, folder):
    path = tmp_path / "x.tar"
    write_tar(path, entries_of(folder))
    content = path.read_bytes()
    with tarfile.open(path) as members:
        place = members.getmembers()[6].offset
    path.write_bytes(damaged(content, place + 150))
    assert index(path)["reason"] == "unreadable"


def test_random_damage_never_raises(tmp_path, folder):
    rng = np.random.default_rng(3)
    for kind in ("stored.zip", "deflated.zip", "plain.tar", "packed.tar.gz"):
        path = tmp_path / kind
        KINDS[kind](path, entries_of(folder)[:8])
        content = path.read_bytes()
        for _ in range(40):
            changed = bytearray(content)
            # Directories lie at a zip's end and headers at a tar's start: damage is to hit them too.
            places = [rng.integers(len(content)), len(content) - 1 - rng.integers(900), rng.integers(1500)]
            for place in places[: rng.integers(1, 4)]:
                changed[place] = rng.integers(256)
            path.write_bytes(changed)
            os.utime(path, ns=(0, int(rng.integers(1 << 40))))
            verdict = index(path, settings={"min_slices": 5})
            assert verdict["status"] in ("accepted", "rejected")


def with_flag(path, flag):
    """Set a flag bit of every member of a zip file, in local and central headers."""
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + place] |= flag
            start = content.find(signature, start + 4)
    path.write_bytes(content)


def test_an_encrypted_archive(tmp_path, folder):
    write_zip(tmp_path / "x.zip", entries_of(folder), zipfile.ZIP_STORED)
    with_flag(tmp_path / "x.zip", 1)
    verdict = index(tmp_path / "x.zip")
    assert verdict["reason"] == "unreadable" and "encrypted" in verdict["detail"]


def test_other_compression(tmp_path, folder):
    write_zip(tmp_path / "x.zip", entries_of(folder), zipfile.ZIP_LZMA)
    verdict = index(tmp_path / "x.zip")
    assert verdict["reason"] == "unreadable" and "deflate" in verdict["detail"]


def test_bombs(tmp_path):
    zeros = bytes(1 << 20)
    write_zip(tmp_path / "x.zip", [(f"{k}.dcm", zeros) for k in range(300)])
    write_tar(tmp_path / "x.tgz", [(f"{k}.dcm", zeros) for k in range(300)], "w:gz")
    # A member that says it is small and is not.
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = content.find(signature)
        while start >= 0:
            content[start + place : start + place + 4] = struct.pack("<L", 1000)
            start = content.find(signature, start + 4)
    (tmp_path / "liar.zip").write_bytes(content)
    for name, words in (("x.zip", "absurd"), ("x.tgz", "absurd"), ("liar.zip", "damaged")):
        verdict = index(tmp_path / name)
        assert verdict["reason"] == "unreadable" and words in verdict["detail"], name


def test_a_directory_of_absurd_length_is_not_read(tmp_path):
    """The end of a zip file claims a central directory of 3 GB, which zipfile would read in one go."""
    with (tmp_path / "x.zip").open("wb") as file:
        file.truncate(3 << 30)  # a file with a hole: no disk is used
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 3 << 30, 0, 0))
    verdict = index(tmp_path / "x.zip")
    assert verdict["reason"] == "unreadable"


@pytest.mark.parametrize("write", [write_zip, write_tar], ids=["zip", "tar"])
def test_names_lead_nowhere(tmp_path, folder, monkeypatch, write):
    """Nothing is written, and what a name points to outside is not read."""
    outside = tmp_path / "outside.dcm"
    outside.write_bytes((folder / "out of the way").read_bytes())
    entries = [(f"/{name}" if k % 2 else name, content) for k, (name, content) in enumerate(entries_of(folder))]
    suffix = "zip" if write is write_zip else "tar"
    write(tmp_path / f"x.{suffix}", [*entries, ("../../climbs.dcm", b"x" * 400), ("a/../../../etc/passwd", b"y")])
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    verdict = index(tmp_path / f"x.{suffix}", "someone")
    assert set(tmp_path.rglob("*")) == before
    assert verdict["slices"] == index(folder)["slices"]
    assert verdict["files"]["unreadable"] == index(folder)["files"]["unreadable"] + 2


def test_links_and_devices_in_a_tar(tmp_path, folder):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive_:
        for name, content in entries_of(folder):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive_.addfile(info, io.BytesIO(content))
        for name, kind, target in (
            ("symbolic", tarfile.SYMTYPE, "/etc/passwd"),
            ("z hard", tarfile.LNKTYPE, "out of the way"),
            ("dangling", tarfile.LNKTYPE, "/etc/passwd"),
            ("fifo", tarfile.FIFOTYPE, ""),
            ("device", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive_.addfile(info)
    verdict = index(path, "someone")
    # The hard link is a copy of a slice; the other links cannot be read; pipe and device are no DICOM files.
    assert verdict["files"] == {"dicom": 14, "not_dicom": 3, "unreadable": 2}
    assert verdict["slices"] == index(folder)["slices"] and "duplicate_slices" in str(verdict["warnings"])


def test_later_members_replace_earlier_ones(tmp_path, folder):
    entries = entries_of(folder)
    wrong = [(name, b"\0" * 600) for name, _ in entries[:5]]
    write_tar(tmp_path / "x.tar", [*wrong, *entries])
    assert_as_folder(tmp_path / "x.tar", outcome(folder))


def test_a_changed_archive_is_read_anew(tmp_path, folder):
    path = tmp_path / "x.zip"
    write_zip(path, entries_of(folder))
    before = folder_fingerprint(path)
    assert index(path)["status"] == "accepted" and folder_fingerprint(path) == before
    os.utime(path, ns=(1, 1))
    assert folder_fingerprint(path) != before
    write_zip(path, entries_of(folder)[:3])
    assert index(path)["status"] == "rejected"


def test_who_is_a_patient(tmp_path, folder):
    (tmp_path / "anna").mkdir()
    for name in ("bert.zip", "carl.tar", "dora.tar.gz", "Emil.TGZ", ".zip", "notes.txt", "x.rar"):
        (tmp_path / name).touch()
    found = find_patients(tmp_path)
    assert set(found) == {"anna", "bert", "carl", "dora", "Emil"}
    assert found["dora"].dicom == str(tmp_path / "dora.tar.gz")
    (tmp_path / "anna.zip").touch()
    with pytest.raises(ConfigError, match=r"holds anna and anna\.zip, both of patient 'anna'") as error:
        find_patients(tmp_path)
    assert "\n" not in str(error.value)
    table = tmp_path / "patients.tsv"
    table.write_text("patient\tdicom\nx\tbert.zip\n")
    assert find_patients(tmp_path, table)["x"].dicom == str(tmp_path / "bert.zip")
    table.write_text("patient\tdicom\nx\tnotes.txt\n")
    with pytest.raises(ConfigError, match="line 2"):
        find_patients(tmp_path, table)


def test_a_notebook_reads_an_archive(tmp_path, folder):
    write_zip(tmp_path / "x.zip", entries_of(folder))
    np.testing.assert_array_equal(read_series(tmp_path / "x.zip").to_array(), read_series(folder).to_array())
    with pytest.raises(LungmillError, match="no folder"):
        read_series(folder / "notes.txt")


def test_memory_stays_that_of_one_member(tmp_path):
    """Twelve members of 8 MB each: what is kept is one of them."""
    import tracemalloc

    rng = np.random.default_rng(0)
    scene = rng.integers(-1000, 100, (2048, 2048)).astype(np.int16)
    for k, position in enumerate(stack((0, 0, 0), (0, 0, 2), 12)):
        save(new_slice(position, stored=scene, number=k), tmp_path / "folder" / str(k))
    write_zip(tmp_path / "x.zip", entries_of(tmp_path / "folder"))
    tracemalloc.start()
    verdict = index(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict["status"] == "accepted", verdict
    index_of_folder = 3 * scene.nbytes * 8  # three slices as float64, which judging Hounsfield units may take
    assert peak < index_of_folder + 4 * scene.nbytes


def test_the_workflow_takes_folders_and_archives_alike(tmp_path):
    for name, height in (("anna", 1), ("bert", 2)):
        write_series(tmp_path / "folders" / name, chest_like, stack((-24, -24, height), (0, 0, 2), 14))
    (tmp_path / "archives").mkdir()
    write_zip(tmp_path / "archives" / "anna.zip", entries_of(tmp_path / "folders" / "anna"))
    write_tar(tmp_path / "archives" / "bert.tar", entries_of(tmp_path / "folders" / "bert"))
    workspace = Workspace(tmp_path / "work")
    workspace.run(dicom=tmp_path / "folders", results="from-folders")
    workspace.run(dicom=tmp_path / "archives")
    archives = workspace.digests()
    workspace.results = workspace.folder / "from-folders"
    # The report names the results folder; everything else is the same.
    assert {name for name, digest in workspace.digests().items() if archives[name] != digest} <= {"report/index.html"}
    assert len(archives) == len(workspace.digests()) > 20
    workspace.results = workspace.folder / "results"
    assert "Nothing to be done" in workspace.run(dicom=tmp_path / "archives").text
    # Another archive of the same name redoes its patient alone.
    write_tar(tmp_path / "archives" / "bert.tar", entries_of(tmp_path / "folders" / "anna"))
    assert workspace.run(dicom=tmp_path / "archives").patients == {"bert"}


def test_the_checksum_is_the_one_of_the_standard(tmp_path):
    """CRC-32 as of zlib is what zipfile writes: else every stored member would be taken for damaged."""
    write_zip(tmp_path / "x.zip", [("a", b"123456789")], zipfile.ZIP_STORED)
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        assert file.infolist()[0].CRC == zlib.crc32(b"123456789") == 0xCBF43926
