"""The demo cohort read back as DICOM by other readers, and against the anatomy it was rendered from."""

import csv
import math
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lungmill import demo
from lungmill.errors import LungmillError
from lungmill.grid import Grid

SEED = 2017
REJECTED = {"demo-7-truncated", "demo-8-few-slices"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for patient in demo.PATIENTS:
        demo.write_demo_patient(folder / patient, patient, SEED)
    return folder


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def axial(folder, **options):
    """The CT slices of a patient, from the feet to the head."""
    images = [pydicom.dcmread(path, **options) for path in files(folder)]
    images = [image for image in images if "LOCALIZER" not in image.ImageType]
    return sorted(images, key=lambda image: image.ImagePositionPatient[2])


def headers(folder):
    return axial(folder, stop_before_pixels=True)


def hounsfield(image):
    return image.pixel_array.astype(np.int32) * int(image.RescaleSlope) + int(image.RescaleIntercept)


def steps(images):
    return np.diff([float(image.ImagePositionPatient[2]) for image in images])


def test_names_need_no_heavy_import():
    code = "import sys, lungmill.demo as d; print(len(d.PATIENTS), {'numba', 'pydicom', 'scipy'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(demo.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == "8 set()"


@pytest.mark.parametrize("patient", demo.PATIENTS)
def test_every_file_is_a_complete_ct_image(cohort, patient):
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in files(cohort / patient)]
    needed = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality PatientName "
        "PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID "
        "SeriesNumber InstanceNumber ImageType ImagePositionPatient ImageOrientationPatient PixelSpacing "
        "SliceThickness KVP AcquisitionNumber Manufacturer PatientPosition Rows Columns BitsAllocated BitsStored "
        "HighBit SamplesPerPixel PixelRepresentation PhotometricInterpretation RescaleSlope RescaleIntercept "
        "PositionReferenceIndicator"
    )
    for image in images:
        assert [name for name in needed.split() if name not in image] == []
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.SOPInstanceUID.is_valid and image.SeriesInstanceUID.is_valid and image.PatientID == patient
        assert len(image.SOPInstanceUID) <= 64 and str(image.PatientName).startswith("Demo^")
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert (
        len({image.StudyInstanceUID for image in images}) == len({image.FrameOfReferenceUID for image in images}) == 1
    )
    assert len({image.SeriesInstanceUID for image in images}) == (2 if patient == "demo-2-thin-localizer" else 1)


def test_uids_differ_between_patients(cohort):
    series = [headers(cohort / patient)[0].SeriesInstanceUID for patient in demo.PATIENTS]
    assert len(set(series)) == len(series)


@pytest.mark.parametrize(
    ("patient", "syntax"),
    [
        ("demo-1-plain", "1.2.840.10008.1.2.1"),
        ("demo-3-jpeg2000", "1.2.840.10008.1.2.4.90"),
        ("demo-4-rle-padding", "1.2.840.10008.1.2.5"),
    ],
)
def test_files_decode_to_what_was_rendered(cohort, patient, syntax):
    images = axial(cohort / patient)
    rendered = list(demo.demo_slices(patient, SEED))
    assert len(images) == len(rendered)
    for image, (_, position, hu) in zip(images, rendered, strict=True):
        assert image.file_meta.TransferSyntaxUID == syntax
        assert [float(mm) for mm in image.ImagePositionPatient] == pytest.approx(position)
        assert np.array_equal(hounsfield(image), hu)


@pytest.mark.parametrize("patient", ["demo-1-plain", "demo-3-jpeg2000", "demo-4-rle-padding", "demo-6-prone-gap"])
def test_another_reader_decodes_the_same(cohort, patient):
    sitk = pytest.importorskip("SimpleITK")
    for path in files(cohort / patient)[::40]:
        image = sitk.ReadImage(str(path))
        assert np.array_equal(sitk.GetArrayFromImage(image)[0], hounsfield(pydicom.dcmread(path)))
        assert image.GetOrigin() == pytest.approx(pydicom.dcmread(path).ImagePositionPatient)


@pytest.mark.parametrize("patient", [name for name in demo.PATIENTS if name not in REJECTED])
def test_headers_place_the_pixels_where_the_anatomy_is(cohort, patient):
    """Rendered without noise at the points that the header gives (PS3.3 C.7.6.2.1.1), only the noise remains."""
    anatomy = demo.demo_anatomy(patient, SEED)
    images = axial(cohort / patient)
    for image in images[10::50]:
        row, column = (np.array(v, dtype=float) for v in np.split(np.array(image.ImageOrientationPatient), 2))
        spacing = [float(mm) for mm in image.PixelSpacing]
        edge = (spacing[0] * spacing[1] * float(image.SliceThickness)) ** (1 / 3)
        origin = [float(mm) for mm in image.ImagePositionPatient]
        clean = anatomy.render_slice(origin[::-1], row[::-1], column[::-1], spacing, (256, 256), edge)
        i, j = np.mgrid[:256, :256] - 127.5
        difference = (hounsfield(image) - clean)[(clean > -850) & (i * i + j * j < 120**2)]
        assert len(difference) > 5000 and abs(difference.mean()) < 1.5
        assert 14 < difference.std() < 26


def test_plain_files_are_not_in_order_of_z(cohort):
    z = [
        float(pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2])
        for p in files(cohort / "demo-1-plain")
    ]
    assert z != sorted(z) and z != sorted(z, reverse=True)
    np.testing.assert_allclose(np.diff(sorted(z)), 2.5, atol=1e-3)


def test_localizer_lies_beside_thin_slices(cohort):
    images = [pydicom.dcmread(path) for path in files(cohort / "demo-2-thin-localizer")]
    localizers = [image for image in images if "LOCALIZER" in image.ImageType]
    assert len(localizers) == 1 and len(images) == 192
    normal = np.cross(*np.split(np.array(localizers[0].ImageOrientationPatient, dtype=float), 2))
    np.testing.assert_allclose(np.abs(normal), [0, 1, 0])  # seen from the front
    assert localizers[0].pixel_array.shape == (191, 256) and localizers[0].pixel_array.std() > 20
    np.testing.assert_allclose(steps(headers(cohort / "demo-2-thin-localizer")), 1.6, atol=1e-3)


def test_padding_lies_outside_a_circle(cohort):
    image = axial(cohort / "demo-4-rle-padding")[60]
    stored = image.pixel_array
    assert image.PixelPaddingValue == -2000 and image.PixelRepresentation == 1
    padding = stored == image.PixelPaddingValue
    assert padding[0, 0] and padding[-1, -1] and not padding[128, 128]
    assert padding.mean() == pytest.approx(1 - math.pi / 4, abs=0.01)
    assert stored[~padding].min() >= 0
    names = files(cohort / "demo-4-rle-padding")
    assert all(path.suffix == "" for path in names) and len({path.parent for path in names}) == 2


def test_tilt(cohort):
    images = headers(cohort / "demo-5-tilt")
    row, column = np.split(np.array(images[0].ImageOrientationPatient, dtype=float), 2)
    normal = np.cross(row, column)
    assert math.degrees(math.acos(normal[2])) == pytest.approx(12, abs=0.01) and normal[0] == 0
    positions = np.array([image.ImagePositionPatient for image in images], dtype=float)
    assert np.ptp(positions[:, :2], axis=0).max() == 0  # the table feeds along z
    np.testing.assert_allclose(np.diff(positions[:, 2]), 2.5, atol=1e-3)
    assert float(images[0].GantryDetectorTilt) == 12


def test_prone_with_one_slice_missing(cohort):
    images = headers(cohort / "demo-6-prone-gap")
    gaps = steps(images)
    assert len(images) == 122 and (np.abs(gaps - 2.5) < 1e-3).sum() == len(gaps) - 1
    assert gaps.max() == pytest.approx(5.0) and 40 < gaps.argmax() < 80
    assert images[0].PatientPosition == "HFP"
    np.testing.assert_allclose(np.array(images[0].ImageOrientationPatient, dtype=float), [-1, 0, 0, 0, -1, 0])
    numbers = [int(image.InstanceNumber) for image in images]
    assert all(below > above for below, above in pairwise(numbers))  # instance 1 is next to the head


def test_truncated_file_is_shorter_than_it_declares(cohort):
    short = []
    for path in files(cohort / "demo-7-truncated"):
        content = path.read_bytes()
        start = content.rindex(b"\xe0\x7f\x10\x00OW\x00\x00")
        declared = struct.unpack("<I", content[start + 8 : start + 12])[0]
        assert declared == 256 * 256 * 2
        short.append(len(content) - start - 12 < declared)
    assert sum(short) == 1 and len(short) >= 10


def test_few_slices(cohort):
    assert len(files(cohort / "demo-8-few-slices")) < 10


@pytest.mark.parametrize("patient", [name for name in demo.PATIENTS if name not in REJECTED])
def test_the_scan_covers_both_lungs(patient):
    """Nothing of the lungs may lie beyond the first or the last slice, or outside the image."""
    anatomy = demo.demo_anatomy(patient, SEED)
    grid = Grid((75, 70, 100), (5.0, 4.0, 4.0), (-230.0, -140.0, -198.0))
    for z, y, x in grid.to_mm(np.argwhere(anatomy.labels(grid) > 0)):
        assert demo._covers(demo._scan(patient), (z, y, x))


def test_annotations_are_the_nodules_of_the_accepted(cohort, tmp_path):
    demo.write_annotations(tmp_path / "annotations.csv", SEED)
    text = (tmp_path / "annotations.csv").read_text()
    assert text.splitlines()[0] == "patient,coordX,coordY,coordZ,diameter_mm"
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["patient"] for row in rows} == set(demo.PATIENTS) - REJECTED
    for patient in {row["patient"] for row in rows}:
        anatomy = demo.demo_anatomy(patient, SEED)
        mine = [row for row in rows if row["patient"] == patient]
        assert len(mine) == len(anatomy.nodules)
        z = [float(image.ImagePositionPatient[2]) for image in headers(cohort / patient)]
        for row in mine:
            x, y, at = (float(row[key]) for key in ("coordX", "coordY", "coordZ"))
            radius = float(row["diameter_mm"]) / 2
            assert min(z) < at < max(z)
            # The row's centre and points just inside its sphere are nodule; just outside they are not.
            for reach, expected in ((0.0, True), (0.97 * radius, True), (1.03 * radius, False)):
                point = Grid((1, 1, 1), (1.0, 1.0, 1.0), (at, y, x + reach))
                assert bool(anatomy.labels(point, of="nodules").any()) is expected
            assert anatomy.labels(Grid((1, 1, 1), (1.0, 1.0, 1.0), (at, y, x))).any()


@pytest.mark.parametrize("patient", ["demo-2-thin-localizer", "demo-3-jpeg2000", "demo-8-few-slices"])
def test_writing_twice_gives_the_same_bytes(cohort, tmp_path, patient):
    demo.write_demo_patient(tmp_path / "again", patient, SEED)
    first, second = files(cohort / patient), files(tmp_path / "again")
    assert [p.relative_to(cohort / patient) for p in first] == [p.relative_to(tmp_path / "again") for p in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_writing_replaces_what_was_there(tmp_path):
    folder = tmp_path / "patient"
    folder.mkdir()
    (folder / "stale.dcm").write_text("old")
    demo.write_demo_patient(folder, "demo-8-few-slices", SEED)
    assert len(files(folder)) == 6 and not (folder / "stale.dcm").exists()
    assert list(tmp_path.iterdir()) == [folder]
    before = files(folder)[0].read_bytes()
    demo.write_demo_patient(folder, "demo-8-few-slices", SEED + 1)
    assert files(folder)[0].read_bytes() != before  # the seed decides


def test_an_unknown_patient_is_named(tmp_path):
    with pytest.raises(LungmillError, match="use one of demo-1-plain"):
        demo.write_demo_patient(tmp_path / "x", "demo-9", SEED)
    assert not (tmp_path / "x").exists()
