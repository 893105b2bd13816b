"""Which of a folder's series is the scan, and what is said of the others."""

import numpy as np
import pydicom
import pytest
from dicom_files import chest_like, new_slice, plane_points, save, stack, write_series

from lungmill.indexing import index

OTHER_SERIES = "1.2.826.0.1.3680043.8.498.77"


def warnings_of(verdict):
    return {warning["code"] for warning in verdict["warnings"]}


def good_series(folder, count=12, **attributes):
    write_series(folder, chest_like, stack((-24, -24, 0), (0, 0, 2), count), **attributes)


def test_every_candidate_says_why_it_was_not_taken(tmp_path):
    good_series(tmp_path / "taken", count=14)
    good_series(tmp_path / "short", count=11, SeriesInstanceUID=OTHER_SERIES)
    good_series(tmp_path / "derived", count=20, SeriesInstanceUID=OTHER_SERIES + ".1", ImageType=["DERIVED", "PRIMARY"])
    thick = stack((-24, -24, 0), (0, 0, 4), 14)
    write_series(tmp_path / "thick", chest_like, thick, SeriesInstanceUID=OTHER_SERIES + ".2")
    coronal = stack((-24, -12, 24), (0, 2, 0), 14)
    write_series(tmp_path / "cor", chest_like, coronal, (1, 0, 0, 0, 0, -1), SeriesInstanceUID=OTHER_SERIES + ".3")
    good_series(tmp_path / "as good", count=14, SeriesInstanceUID=OTHER_SERIES + ".4")
    verdict = index(tmp_path, settings={"orientations": ["axial", "coronal"]})
    assert verdict["status"] == "accepted"
    chosen, *others = verdict["candidates"]
    assert (chosen["chosen"], chosen["detail"], chosen["n_slices"]) == (True, None, 14)
    assert sorted(candidate["detail"].removeprefix("not taken: ") for candidate in others) == [
        "it has fewer slices",
        "it is as good, and another came first",
        "it is derived, not original",
        "it is not axial",
        "its slices are further apart",
    ]
    assert chosen["score"] == [1, 1, 1, 1, 1, 14, 2]
    scores = [candidate["score"] for candidate in verdict["candidates"]]
    assert scores == sorted(scores, key=lambda score: (*score[:-1], -score[-1]), reverse=True)


@pytest.mark.parametrize(
    "words, attributes",
    {
        "secondary captures": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "CT"},
        "secondary captures (multi-frame)": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "Modality": "CT"},
        "radiation dose reports": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "PixelData": None},
        "structured reports": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11", "PixelData": None},
        "radiotherapy objects": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "PixelData": None},
        "MR": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"},
        "another kind": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4", "Modality": "PLANTED"},
    }.items(),
)
def test_what_is_no_scan_is_told_by_its_kind(tmp_path, words, attributes):
    good_series(tmp_path / "scan")
    save(new_slice((0, 0, 0), SeriesInstanceUID=OTHER_SERIES, **attributes), tmp_path / "other")
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted" and verdict["warnings"] == []
    assert verdict["candidates"][1]["detail"] == f"not CT images but {words.split(' (')[0]}"


def test_a_media_directory_is_no_scan(tmp_path):
    good_series(tmp_path)
    directory = new_slice((0, 0, 0), PixelData=None, Rows=None, Columns=None, SOPClassUID=None, SOPInstanceUID=None)
    for keyword in ("Modality", "ImageType", "SeriesInstanceUID", "ImagePositionPatient", "PixelSpacing"):
        delattr(directory, keyword)
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.DirectoryRecordSequence = []
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted"
    assert verdict["candidates"][1]["detail"] == "not CT images but a media directory (DICOMDIR)"


def test_another_patient_in_the_folder(tmp_path):
    good_series(tmp_path / "one", count=12, PatientID="A", StudyInstanceUID="1.2.3")
    good_series(tmp_path / "two", count=13, PatientID="B", StudyInstanceUID="1.2.4", SeriesInstanceUID=OTHER_SERIES)
    verdict = index(tmp_path)
    assert {record["file"][:3] for record in verdict["slices"]} == {"two"}
    assert warnings_of(verdict) == {"several_series"}


def test_an_overview_in_the_series_spoils_nothing(tmp_path):
    good_series(tmp_path)
    save(new_slice((-30, -30, 300), stored=np.zeros((60, 60), np.int16), number=90), tmp_path / "another matrix")
    save(new_slice((-24, 0, 30), (1, 0, 0, 0, 0, -1), number=91), tmp_path / "another orientation")
    save(new_slice((-24, -24, 400), pixel_spacing=(3, 3), stored=np.zeros((48, 48), np.int16), number=92),
         tmp_path / "another spacing")  # fmt: skip
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted" and len(verdict["slices"]) == 12
    assert [candidate["reason"] for candidate in verdict["candidates"]] == [None, *["too_few_slices"] * 3]


def test_a_picture_in_color_spoils_nothing(tmp_path):
    good_series(tmp_path)
    picture = new_slice((-24, -24, 90), stored=np.zeros((48, 48), np.uint8), number=90, SamplesPerPixel=3)
    picture.PhotometricInterpretation, picture.PlanarConfiguration = "RGB", 0
    picture.PixelData = bytes(48 * 48 * 3)
    save(picture, tmp_path / "picture")
    assert len(index(tmp_path)["slices"]) == 12


@pytest.mark.parametrize("cosine", [0.0004, 0.0005, 0.4325, 0.70745])
def test_orientations_that_differ_in_their_last_digits_are_one(tmp_path, cosine):
    sine = np.sqrt(1 - cosine**2)
    turned = (sine, cosine, 0, -cosine, sine, 0)
    for number, place in enumerate(stack((-24, -24, 0), (0, 0, 2), 12)):
        orientation = np.array(turned) + (number % 3 - 1) * 2e-5
        stored = np.rint(chest_like(plane_points(place, turned, (1, 1), 48, 48))).astype(np.int16)
        spacing = (0.70305 + (number % 2) * 1e-6,) * 2
        save(new_slice(place, orientation, spacing, stored, number), tmp_path / str(number))
    assert len(index(tmp_path)["slices"]) == 12


def test_frames_of_reference_are_not_mixed(tmp_path):
    good_series(tmp_path / "a", FrameOfReferenceUID="1.2.3.1")
    places = stack((-24, -24, 24), (0, 0, 2), 14)
    write_series(tmp_path / "b", chest_like, places, FrameOfReferenceUID="1.2.3.2")
    verdict = index(tmp_path)
    assert [candidate["n_slices"] for candidate in verdict["candidates"]] == [14, 12]
    assert {record["file"][0] for record in verdict["slices"]} == {"b"}


def test_a_frame_of_reference_per_file_says_nothing(tmp_path):
    good_series(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.FrameOfReferenceUID = f"1.2.3.{number}"
        save(dataset, path)
    assert len(index(tmp_path)["slices"]) == 12


def test_two_ranges_in_one_series_are_told_apart_by_their_acquisitions(tmp_path):
    for number, (start, count) in enumerate([(0, 12), (200, 15)], start=1):
        places = stack((-24, -24, start), (0, 0, 2), count)
        write_series(tmp_path / str(number), chest_like, places, AcquisitionNumber=number)
    verdict = index(tmp_path)
    assert len(verdict["slices"]) == 15 and warnings_of(verdict) == {"several_series"}
    for path in tmp_path.rglob("IM*"):
        dataset = pydicom.dcmread(path)
        del dataset.AcquisitionNumber
        save(dataset, path)
    assert index(tmp_path)["reason"] == "missing_slices"


def test_derived_slices_at_the_same_places_are_told_apart(tmp_path):
    good_series(tmp_path / "original")
    write_series(
        tmp_path / "derived", lambda points: chest_like(points) + 30, stack((-24, -24, 0), (0, 0, 2), 12),
        ImageType=["DERIVED", "PRIMARY", "AXIAL"],
    )  # fmt: skip
    verdict = index(tmp_path)
    assert {record["file"][:8] for record in verdict["slices"]} == {"original"}
    assert [candidate["original"] for candidate in verdict["candidates"]] == [True, False]


def test_the_choice_between_equals_does_not_depend_on_names_of_files(tmp_path):
    chosen = set()
    for name, (first, second) in {"ab": "ab", "ba": "ba"}.items():
        good_series(tmp_path / name / first)
        good_series(tmp_path / name / second, SeriesInstanceUID=OTHER_SERIES)
        verdict = index(tmp_path / name)
        chosen.add(verdict["series"]["uid"])
    assert len(chosen) == 1
