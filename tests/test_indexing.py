"""Verdicts on folders of every kind, made of real DICOM files."""

import json

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, chest_like, new_slice, plane_points, save, stack, write_series

from lungmill.errors import DicomError
from lungmill.indexing import index
from lungmill.series import read_series
from lungmill.verdict import REASONS, WARNINGS

OTHER_SERIES = "1.2.826.0.1.3680043.8.498.77"


def warnings_of(verdict):
    return {warning["code"] for warning in verdict["warnings"]}


def good_series(folder, count=12, **attributes):
    write_series(folder, chest_like, stack((-24, -24, 0), (0, 0, 2), count), **attributes)


def test_a_good_series(tmp_path):
    good_series(tmp_path)
    verdict = index(tmp_path, "someone")
    assert (verdict["patient"], verdict["status"], verdict["warnings"]) == ("someone", "accepted", [])
    assert [record["position"][2] for record in verdict["slices"]] == list(range(0, 24, 2))
    assert verdict["geometry"]["step_mm"] == 2
    json.dumps(verdict, allow_nan=False)


def test_read_series_places_every_pixel(tmp_path):
    good_series(tmp_path)
    series = read_series(tmp_path)
    assert len(series) == 12
    for k, position in enumerate(series.geometry.origins):
        expected = np.rint(chest_like(plane_points(position, AXIAL, (1, 1), 48, 48)))
        np.testing.assert_array_equal(series[k], expected)
    np.testing.assert_array_equal(series.to_array(), np.stack(list(series)))


@pytest.mark.parametrize(
    "reason, make",
    {
        "no_dicom": lambda folder: (folder / "notes.txt").write_text("nothing here"),
        "no_ct_series": lambda folder: good_series(folder, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
        "too_few_slices": lambda folder: good_series(folder, count=5),
        "no_geometry": lambda folder: good_series(folder, ImagePositionPatient=None),
        "not_axial": lambda folder: write_series(
            folder, chest_like, stack((-24, -24, 24), (0, 4, 0), 12), (1, 0, 0, 0, 0, -1)
        ),
        "implausible_hu": lambda folder: good_series(folder, RescaleIntercept=3000),
        "inconsistent_geometry": lambda folder: write_series(
            folder, chest_like, stack((-24, -24, 0), (0, 0, 2), 12), (1, 0, 0, 0.5, 0.5, 0)
        ),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(tmp_path, reason, make):
    make(tmp_path)
    verdict = index(tmp_path)
    assert (verdict["status"], verdict["reason"]) == ("rejected", reason)
    assert verdict["detail"] and reason in REASONS
    with pytest.raises(DicomError, match=reason):
        read_series(tmp_path)


def test_truncated_pixels(tmp_path):
    good_series(tmp_path)
    path = tmp_path / "IM0003"
    path.write_bytes(path.read_bytes()[:-100])
    verdict = index(tmp_path)
    assert verdict["reason"] == "truncated_pixels" and "IM0003" in verdict["detail"]


def test_unsupported_syntax(tmp_path):
    good_series(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    assert index(tmp_path)["reason"] == "unsupported_transfer_syntax"


def test_a_folder_may_hold_anything_else(tmp_path):
    good_series(tmp_path / "a" / "b")
    save(new_slice((0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout")
    save(
        new_slice((0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", PixelData=None),
        tmp_path / "sr",
    )
    (tmp_path / "notes.xml").write_text("<xml/>")
    (tmp_path / "empty").touch()
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted"
    assert warnings_of(verdict) == {"ignored_files"}
    assert len(verdict["slices"]) == 12
    assert len(verdict["candidates"]) == 3
    assert verdict["files"] == {"dicom": 14, "not_dicom": 2, "unreadable": 1}


def test_the_longer_series_is_taken_unless_another_is_named(tmp_path):
    good_series(tmp_path / "long", count=14)
    good_series(tmp_path / "short", count=11, SeriesInstanceUID=OTHER_SERIES)
    verdict = index(tmp_path)
    assert len(verdict["slices"]) == 14 and "several_series" in warnings_of(verdict)
    named = index(tmp_path, series_uid=OTHER_SERIES)
    assert len(named["slices"]) == 11 and named["status"] == "accepted"
    assert index(tmp_path, series_uid="1.2.3")["reason"] == "no_ct_series"


def test_an_original_series_is_taken_before_a_longer_derived_one(tmp_path):
    good_series(tmp_path / "derived", count=20, SeriesInstanceUID=OTHER_SERIES, ImageType=["DERIVED", "SECONDARY"])
    good_series(tmp_path / "original", count=12)
    assert len(index(tmp_path)["slices"]) == 12


def test_one_slice_is_no_volume_however_few_are_allowed(tmp_path):
    good_series(tmp_path, count=1)
    assert index(tmp_path, settings={"min_slices": 1})["reason"] == "too_few_slices"


@pytest.mark.parametrize("claim", [4097, 65535])
def test_a_matrix_that_no_scanner_has_is_not_allocated(tmp_path, claim):
    good_series(tmp_path)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.Rows = dataset.Columns = claim
        save(dataset, path)
    assert index(tmp_path)["reason"] == "unreadable"


def test_rescale_of_each_slice(tmp_path):
    for number, place in enumerate(stack((-24, -24, 0), (0, 0, 2), 12)):
        slope, intercept = 1 + number, -1024 + 3 * number
        truth = np.rint(chest_like(plane_points(place, AXIAL, (1, 1), 48, 48)))
        stored = np.rint((truth - intercept) / slope).astype(np.int16)
        save(
            new_slice(place, stored=stored, number=number, RescaleSlope=slope, RescaleIntercept=intercept),
            tmp_path / str(number),
        )
    for number, plane in enumerate(read_series(tmp_path)):
        truth = chest_like(plane_points((-24, -24, 2 * number), AXIAL, (1, 1), 48, 48))
        assert np.abs(plane - truth).max() <= (1 + number) / 2 + 1


@pytest.mark.parametrize("kind, slope, accepted", [("US", 1, True), ("HU", 40, False), ("MGML", 40, False)])
def test_values_not_their_declared_unit_decide(tmp_path, kind, slope, accepted):
    good_series(tmp_path, RescaleType=kind, RescaleSlope=slope)
    assert index(tmp_path)["reason"] == (None if accepted else "implausible_hu")


def test_exact_copies_are_dropped(tmp_path):
    good_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for name in ("IM0001", "IM0007"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted" and len(verdict["slices"]) == 12
    assert warnings_of(verdict) == {"duplicate_slices"}


@pytest.mark.parametrize("numbered", [True, False])
def test_two_acquisitions_in_one_series_are_told_apart(tmp_path, numbered):
    places = stack((-24, -24, 0), (0, 0, 2), 12)
    for acquisition, shift in ((1, 0.0), (2, 25.0)):
        for number, place in enumerate(places):
            stored = np.rint(chest_like(plane_points(place, AXIAL, (1, 1), 48, 48)) + shift).astype(np.int16)
            extra = {"AcquisitionNumber": acquisition} if numbered else {}
            save(
                new_slice(place, stored=stored, number=number + 100 * acquisition, **extra),
                tmp_path / f"{acquisition}-{number}",
            )
    verdict = index(tmp_path)
    assert verdict["status"] == "accepted" and len(verdict["slices"]) == 12
    assert len({record["file"][0] for record in verdict["slices"]}) == 1
    assert "several_series" in warnings_of(verdict)


def test_every_real_folder_gets_its_verdict(real_data):
    settings = {"min_slices": 3}
    expected = {
        "lidc-0001": ("accepted", None, {"padding", "ignored_files"}),
        "ct64": ("accepted", None, {"ignored_files"}),
        "tilt-ge": ("accepted", None, {"gantry_tilt", "irregular_spacing", "padding", "ignored_files"}),
        "odd-series/j2k-20-slices-no-sopclass": ("accepted", None, set()),
        # Both have blank pixels: geometry is judged, and told, before that is seen.
        "odd-series/missing-slice": ("rejected", "implausible_hu", {"missing_slices"}),
        "odd-series/tilt-4-slices": ("rejected", "implausible_hu", {"gantry_tilt"}),
        "odd-series/not-a-volume": ("rejected", "inconsistent_geometry", set()),
        "corrupt": ("rejected", "too_few_slices", set()),
    }
    for folder, (status, reason, warnings) in expected.items():
        verdict = index(real_data / folder, settings=settings)
        assert (verdict["status"], verdict["reason"]) == (status, reason), folder
        assert warnings_of(verdict) == warnings, folder


def test_nothing_personal_is_in_a_verdict(tmp_path):
    planted = "PLANTED"
    good_series(
        tmp_path, PatientName=planted, PatientID=planted, Manufacturer=planted, StudyDescription=planted,
        InstitutionName=planted, ConvolutionKernel=planted, PatientComments=planted,
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL", planted], PatientPosition=planted,
    )  # fmt: skip
    verdict = index(tmp_path, "someone")
    assert verdict["status"] == "accepted"
    assert planted not in json.dumps(verdict)
    assert "1.2.826.0.1.3680043.8.498.2" not in json.dumps(verdict)


def test_every_code_has_words():
    import ast
    from pathlib import Path

    import lungmill.indexing

    library = Path(lungmill.indexing.__file__).parent
    said = set()
    for path in [*library.joinpath("dicom").glob("*.py"), library / "indexing.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DicomError":
                said.add(getattr(node.args[0], "value", None))
    assert said - {None} <= set(REASONS)
    assert not set(REASONS) & set(WARNINGS) - {"missing_slices"}
