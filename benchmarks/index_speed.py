"""Measure how fast headers are read: files per second of lungmill against pydicom, on a tree written for it.

    python benchmarks/index_speed.py [--files 10000] [--series 50] [--rounds 5] [--headers plain|realistic|both]

The tree has one folder per patient. `plain` files hold what a reader of CT needs, `realistic` ones also about a hundred
and twenty other attributes with nested and private sequences, as scanners write them. Every round measures every
reader once, on one thread, in a rotated order; what counts is the ratio of the seconds within one round. Printed are
medians and ranges over the rounds. `cold` means that the kernel was asked to forget the files' pages before
(posix_fadvise, Linux only), `warm` that they were read just before.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from lungmill.dicom.folder import read_folder
from lungmill.dicom.header import KEYWORDS
from lungmill.indexing import index

UID = "1.2.826.0.1.3680043.8.498"
# Replaced in the bytes of one written file to make the others: each has the length of what takes its place.
Z, NUMBER, NAME = "00077777.0000", "77777", "9999977777"
SIDE = 32


def realistic(dataset):
    """Add what a scanner writes besides: text, dates, nested sequences, a private block with sequences of its own."""
    texts = [
        entry
        for entry in sorted(pydicom.datadict.DicomDictionary)
        if 0x00080012 < entry < 0x00400300
        and entry >> 16 in (0x0008, 0x0010, 0x0018, 0x0032, 0x0040)
        and pydicom.datadict.dictionary_VR(entry) in ("LO", "SH", "PN", "DA", "TM", "CS", "DS", "IS")
        and not pydicom.datadict.dictionary_is_retired(entry)
    ]
    values = {"DA": "20170102", "TM": "101112.123456", "CS": "STANDARD", "DS": "123.456", "IS": "123"}
    for tag in texts[:: max(len(texts) // 90, 1)]:
        if tag not in dataset:
            vr = pydicom.datadict.dictionary_VR(tag)
            dataset.add_new(tag, vr, values.get(vr, "Some words of text"))
    for keyword in ("ReferencedImageSequence", "RequestAttributesSequence", "ProcedureCodeSequence"):
        items = [Dataset() for _ in range(3)]
        for item in items:
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, UID + ".5.6"
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "CTCHEST", "99LOCAL", "CT of the chest"
        setattr(dataset, keyword, Sequence(items))
    block = dataset.private_block(0x0019, "MAKER HEADER 01", create=True)
    for element in range(20):
        block.add_new(0x10 + element, "DS" if element % 2 else "LO", "1.25")
    item = Dataset()
    item.private_block(0x0029, "MAKER NESTED", create=True).add_new(0x10, "OB", bytes(600))
    dataset.private_block(0x0029, "MAKER SEQUENCE", create=True).add_new(0x20, "SQ", Sequence([item, item]))


def template(headers):
    """The bytes of one CT slice with placeholders for its position, number and name."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"{UID}.1.{NAME}"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.Manufacturer, dataset.PatientPosition = "CT", "SIEMENS", "HFS"
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Somebody", "1234", "20170102"
    dataset.SliceThickness, dataset.KVP, dataset.GantryDetectorTilt = 2, 120, 0
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
        UID + ".3",
        UID + ".2",
        UID + ".4",
    )
    dataset.AcquisitionNumber, dataset.InstanceNumber = 1, NUMBER
    dataset.ImagePositionPatient = ["-175.123456", "-180.654321", Z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = ["0.703125", "0.703125"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIDE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    if headers == "realistic":
        realistic(dataset)
    stored = np.full((SIDE, SIDE), 1024, np.uint16)
    stored[:, : SIDE // 4] = 24
    dataset.PixelData = stored.tobytes()
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue(), len(dataset)


def write_tree(folder, files, series, headers):
    """Write `files` slices as `series` folders; return the folders and the attributes and bytes of one file."""
    whole, elements = template(headers)
    per_series = files // series
    folders = [Path(folder) / f"patient-{number:03d}" for number in range(series)]
    for place in folders:
        place.mkdir(parents=True)
        for number in range(per_series):
            content = whole.replace(Z.encode(), f"{2 * number:0{len(Z)}.4f}".encode())
            content = content.replace(f".1.{NAME}".encode(), f".1.{1000000000 + number:010d}".encode())
            content = content.replace(NUMBER.encode(), f"{number:05d}".encode())
            (place / f"IM{number:05d}.dcm").write_bytes(content)
    os.sync()
    return folders, elements, len(whole)


def with_pydicom(folders, touch=False, **options):
    """Read the header of every file as a user would; `touch` converts the values, which pydicom leaves until asked."""
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                dataset = pydicom.dcmread(f"{where}/{name}", stop_before_pixels=True, **options)
                if touch:
                    for keyword in KEYWORDS:
                        dataset.get(keyword)


def lungmill_headers(folders):
    for folder in folders:
        content = read_folder(folder)
        assert content.headers and not content.unreadable and not content.not_dicom


def lungmill_index(folders):
    for folder in folders:
        verdict = index(folder)
        assert verdict["status"] == "accepted", verdict["detail"]


READERS = {
    "lungmill, headers": lungmill_headers,
    "lungmill, index (verdict, 3 slices decoded)": lungmill_index,
    "pydicom, same tags": lambda folders: with_pydicom(folders, specific_tags=KEYWORDS),
    "pydicom, same tags, values used": lambda folders: with_pydicom(folders, True, specific_tags=KEYWORDS),
    "pydicom, all tags": with_pydicom,
}


def forget(folders):
    """Ask the kernel to drop the files' pages; True where that can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for folder in folders:
        for path in folder.iterdir():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
    return True


def measure(folders, rounds, cold):
    """Return {reader: [seconds per round]}; the first round is not counted."""
    times = {name: [] for name in READERS}
    names = list(READERS)
    for round_ in range(rounds + 1):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            if cold:
                forget(folders)
            begin = time.perf_counter()
            READERS[name](folders)
            if round_:
                times[name].append(time.perf_counter() - begin)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return times


def report(times, files):
    print(f"{'reader':<46} {'files/s':>8} {'range':>15}   seconds / lungmill's (range)")
    ours = times["lungmill, headers"]
    for name, seconds in times.items():
        rates = [files / second for second in seconds]
        ratios = [second / our for second, our in zip(seconds, ours, strict=True)]
        span = f"{min(rates):.0f} to {max(rates):.0f}"
        print(
            f"{name:<46} {statistics.median(rates):8.0f} {span:>15}   "
            f"{statistics.median(ratios):5.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--series", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--headers", choices=["plain", "realistic", "both"], default="both")
    options = parser.parse_args()
    if options.files < 10 * options.series:
        parser.error("give at least ten files per series")
    warnings.simplefilter("ignore")
    for headers in ("plain", "realistic") if options.headers == "both" else (options.headers,):
        with tempfile.TemporaryDirectory() as scratch:
            folders, elements, size = write_tree(scratch, options.files, options.series, headers)
            files = options.files // options.series * options.series
            for state in ("cold", "warm") if hasattr(os, "posix_fadvise") else ("warm",):
                print(f"\n{headers} headers, {elements} attributes, {size} bytes a file; {files} files; {state}")
                report(measure(folders, options.rounds, state == "cold"), files)


if __name__ == "__main__":
    main()
