"""Nothing that a header says in words leaves the input: marks planted everywhere, then looked for in every byte."""

import base64
import re
import shutil
import zipfile

import h5py
import numpy as np
import pydicom
import pytest
from marked_files import (
    DIGITS,
    MARKS,
    SPOILT,
    TEXT,
    WORD,
    attribute,
    compressed_with,
    deflated,
    few,
    mark,
    text_attributes,
    undecodable,
    write_marked,
)
from pydicom.uid import CTImageStorage
from stores import EVERY_FORMAT
from workspace import Workspace

from lungmill.files import read_json, read_tsv

# The marks break the rules of their attributes on purpose, and pydicom says so while they are written.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def cut(source, folder, ending):
    shutil.copytree(source, folder)
    for path in folder.glob("IM*"):
        path.write_bytes(path.read_bytes()[:ending])


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    """Patients marked in every attribute, on every way through the decoders, and spoilt in every way we know."""
    folder = tmp_path_factory.mktemp("dicom")
    previous = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        write_marked(folder / "good", list(text_attributes()), seed=1)
        write_marked(folder / "compressed", few(), compressed_with("SOPInstanceUID", WORD), seed=2)
        write_marked(folder / "deflated", few(), deflated, seed=3)
        write_marked(folder / "garbage", few(), attribute("ImagePositionPatient", "\\".join([WORD] * 3)))
        write_marked(folder / "undecodable", few(), undecodable)
        for number, (name, change) in enumerate(SPOILT.items()):
            write_marked(folder / "many" / name, few(), change, uid=mark("UI", 98000 + number))
    finally:
        pydicom.config.settings.writing_validation_mode = previous
    cut(folder / "compressed", folder / "cut-in-pixels", -1000)
    cut(folder / "compressed", folder / "cut-in-header", 900)
    shutil.copytree(folder / "good", folder / "syntax")
    known, foreign = b"1.2.840.10008.1.2.1\0", f"1.9.{DIGITS}.95000.1".encode()
    for path in (folder / "syntax").glob("IM*"):
        path.write_bytes(path.read_bytes().replace(known, foreign))
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, dicom):
    """The workflow after a run over all of them in every format, and what the terminal showed."""
    made = Workspace(tmp_path_factory.mktemp("lungmill"))
    made.outcome = made.run(ok=False, dicom=dicom, pack=EVERY_FORMAT)
    # The report waits for everybody, so it is made without the patient whose job fails.
    made.second = made.run(dicom=dicom, pack=EVERY_FORMAT, exclude="[undecodable]")
    return made


def needles():
    """The marks as bytes, in text and in the three alignments of base64."""
    found = {}
    for text in {form for word in MARKS for form in (word, word.upper())}:
        found[text.encode()] = text
        for shift in range(3):
            encoded = base64.b64encode(bytes(shift) + text.encode())
            # The first and last characters share bits with what stands beside.
            found[encoded[(0, 2, 3)[shift] : (len(text) + shift) // 3 * 4]] = f"base64 of {text}"
    return found


NEEDLES = re.compile(b"|".join(re.escape(needle) for needle in needles()))


def marks_in(content):
    """Every mark in the bytes, with what stands around it."""
    return [content[max(hit.start() - 60, 0) : hit.end() + 30] for hit in NEEDLES.finditer(content)]


def layers(path):
    """The bytes of a file, and those that lie compressed or encoded within it."""
    content = path.read_bytes()
    yield "", content
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield "names", repr([(entry.filename, entry.comment) for entry in archive.infolist()]).encode()
            for name in archive.namelist():
                yield name, archive.read(name)
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            yield from hdf5_layers(file)
    for number, encoded in enumerate(re.findall(rb"base64,([A-Za-z0-9+/=]{40,})", content)):
        yield f"picture {number}", base64.b64decode(encoded)


def hdf5_layers(group):
    yield group.name, repr(dict(group.attrs)).encode()
    for name, member in group.items():
        yield name, name.encode()
        if isinstance(member, h5py.Group):
            yield from hdf5_layers(member)
        else:
            yield f"{name} attributes", repr(dict(member.attrs)).encode()
            yield f"{name} values", member[()].tobytes()


def test_the_marks_are_in_the_input_and_would_be_found(dicom, tmp_path):
    slice_file = (dicom / "good" / "IM0003").read_bytes()
    found = b" ".join(marks_in(slice_file))
    assert len(marks_in(slice_file)) > 2000
    for where in (b"preamble", b"meta", b"block", b"nested", b"unknown", b"overlay", b"behind"):
        assert where in found, where
    for vr, text in TEXT.items():
        assert any(word in text.lower() for word in MARKS), vr
    np.savez_compressed(tmp_path / "a.npz", text=np.frombuffer((WORD * 9).encode(), np.uint8))
    assert any(marks_in(content) for _, content in layers(tmp_path / "a.npz"))
    for shift in range(3):
        assert marks_in(base64.b64encode(b"x" * shift + WORD.encode() + b"yz"))


def test_the_patients_met_what_they_were_made_for(workspace):
    rows = {row["patient"]: row for row in read_tsv(workspace.results / "cohort.tsv")}
    accepted = {name for name, row in rows.items() if row["status"] == "accepted"}
    assert {"good", "compressed", "deflated"} <= accepted
    assert rows["syntax"]["reason"] in {"unsupported_transfer_syntax", "unreadable"}
    assert rows["cut-in-pixels"]["reason"] == "truncated_pixels"
    assert rows["garbage"]["status"] == rows["cut-in-header"]["status"] == "rejected"
    assert len(read_json(workspace.results / "index" / "many.json")["candidates"]) > len(SPOILT) / 2
    assert "undecodable" in workspace.outcome.text and "Traceback" in log_of(workspace, "resample", "undecodable")
    assert {("pack_zarr", "good"), ("patches", "compressed")} <= workspace.outcome.jobs


def log_of(workspace, rule, patient):
    return (workspace.folder / "logs" / rule / f"{patient}.log").read_text()


def test_no_mark_leaves_the_input(workspace):
    leaks = [
        ("terminal", "", hit) for run in (workspace.outcome, workspace.second) for hit in marks_in(run.text.encode())
    ]
    searched = 0
    for folder in ("results", "logs", ".snakemake"):
        for path in sorted((workspace.folder / folder).rglob("*")):
            leaks += [(str(path.relative_to(workspace.folder)), "name", hit) for hit in marks_in(path.name.encode())]
            if path.is_file():
                searched += 1
                for layer, content in layers(path):
                    leaks += [(str(path.relative_to(workspace.folder)), layer, hit) for hit in marks_in(content)]
    assert searched > 100
    assert not leaks, "\n".join(f"{path} {layer}: {hit!r}" for path, layer, hit in sorted(set(leaks)))


def test_identifiers_of_a_good_series_are_written_as_hashes_only(workspace):
    for path in workspace.results.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert CTImageStorage not in text
        assert not re.search(r"1\.2\.826\.0\.1\.3680043\.8\.498", text), path
