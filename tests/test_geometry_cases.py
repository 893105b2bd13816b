"""A phantom known at every point, written as DICOM in every geometry that scanners deliver, must come out in its place.

The phantom is soft tissue between four planes, with spheres in it. Its edges are as soft as those of a scanner (a
Gaussian of 0.8 mm), so that sampling loses nothing of where they are.
"""

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, save, write_series
from references import points_of
from scipy.special import ndtr

from lungmill.resampling import resample
from lungmill.series import read_series

SPHERES = [((-10.3, 7.2, 7.6), 8.0, -850.0), ((11.1, -6.4, -6.7), 8.5, 300.0), ((-9.2, -9.5, -8.4), 7.5, -500.0)]
TISSUE, AIR = 40.0, -1000.0
EDGE_MM = 0.8
# Half-spaces of air: unit normal (x, y, z) and distance from the origin. The fourth is oblique to everything.
PLANES = [((0, 0, 1), 20.3), ((0, 1, 0), 19.6), ((-1, 0, 0), 23.4), ((0.6, -0.64, 0.48), 24.7)]
PIXELS = (1.1, 0.9)
SHAPE = (50, 66)
EVEN = 1.5 * np.arange(-18, 19)
UNEVEN = np.cumsum(np.tile([1.0, 2.1, 1.4], 12)) - 27


def phantom(points):
    """HU at points (..., 3), (x, y, z) in LPS mm."""
    values = np.full(points.shape[:-1], TISSUE)
    for centre, radius, hounsfield in SPHERES:
        inside = ndtr((radius - np.linalg.norm(points - np.array(centre), axis=-1)) / EDGE_MM)
        values += (hounsfield - TISSUE) * inside
    for normal, distance in PLANES:
        outside = ndtr((points @ np.array(normal, float) - distance) / EDGE_MM)
        values += (AIR - values) * outside
    return values


def rotated(*turns):
    """ImageOrientationPatient after turning an axial slice about axes (0 x, 1 y, 2 z) by degrees, in this order."""
    matrix = np.eye(3)
    for axis, degrees in turns:
        angle, turn = np.radians(degrees), np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i] = np.sin(angle)
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return (*matrix[:, 0], *matrix[:, 1])


def tilted(degrees):
    return rotated((0, degrees))


HEADWARD, FEETWARD = (0, 0, 1), (0, 0, -1)
FACING_DOWN, ON_THE_LEFT, ON_THE_RIGHT = (-1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0), (0, -1, 0, 1, 0, 0)
SAGITTAL, CORONAL = (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
DOUBLY_OBLIQUE = rotated((0, 3), (1, -4), (2, 5))
# name: (orientation, travel from slice to slice, offsets in mm along it, further attributes)
CASES = {
    "plain": (AXIAL, HEADWARD, EVEN, {}),
    "tilted forward": (tilted(20), HEADWARD, EVEN, {"GantryDetectorTilt": -20}),
    "tilted back": (tilted(-20), HEADWARD, EVEN, {"GantryDetectorTilt": 20}),
    "tilted, the header denies it": (tilted(12), HEADWARD, EVEN, {"GantryDetectorTilt": 0}),
    "tilted, feet first, uneven": (tilted(-15), FEETWARD, UNEVEN, {"PatientPosition": "FFS"}),
    "feet first": (AXIAL, FEETWARD, EVEN, {"PatientPosition": "FFS"}),
    "feet first, seen from above": ((-1, 0, 0, 0, 1, 0), FEETWARD, EVEN, {"PatientPosition": "FFS"}),
    "feet first, prone": ((1, 0, 0, 0, -1, 0), FEETWARD, EVEN, {"PatientPosition": "FFP"}),
    "prone": (FACING_DOWN, HEADWARD, EVEN, {"PatientPosition": "HFP"}),
    "decubitus left": (ON_THE_LEFT, HEADWARD, EVEN, {"PatientPosition": "HFDL"}),
    "decubitus right": (ON_THE_RIGHT, HEADWARD, EVEN, {"PatientPosition": "HFDR"}),
    "position of the patient lies": (AXIAL, HEADWARD, EVEN, {"PatientPosition": "FFP"}),
    "rows flipped": ((1, 0, 0, 0, -1, 0), HEADWARD, EVEN, {}),
    "columns flipped": ((-1, 0, 0, 0, 1, 0), HEADWARD, EVEN, {}),
    "slightly oblique": (rotated((0, 0.4)), HEADWARD, EVEN, {}),
    "doubly oblique": (DOUBLY_OBLIQUE, np.cross(DOUBLY_OBLIQUE[:3], DOUBLY_OBLIQUE[3:]), EVEN, {}),
    "doubly oblique, sheared": (DOUBLY_OBLIQUE, HEADWARD, EVEN, {}),
    "cosines of four digits": (np.round(rotated((2, 7), (0, 9)), 4), HEADWARD, EVEN, {}),
    "drifting in the plane": (AXIAL, (0.05, -0.04, 1), EVEN, {}),
    "unequal steps": (AXIAL, HEADWARD, UNEVEN, {}),
    "a slice missing": (AXIAL, HEADWARD, np.delete(EVEN, 23), {}),
    "a slice missing in a tilted scan": (tilted(10), HEADWARD, np.delete(EVEN, 23), {}),
    "sagittal": (SAGITTAL, (1, 0, 0), EVEN, {}),
    "sagittal, from the left": (SAGITTAL, (-1, 0, 0), UNEVEN, {}),
    "coronal": (CORONAL, (0, 1, 0), EVEN, {}),
    "coronal, oblique": (rotated((0, -84)), (0, 1, 0), EVEN, {}),
    "all numbers the same": (AXIAL, HEADWARD, EVEN, {"InstanceNumber": 1, "SliceLocation": 0}),
    "thickness and spacing lie": (AXIAL, HEADWARD, EVEN, {"SliceThickness": 5, "SpacingBetweenSlices": -0.625}),
}


def places(orientation, travel, offsets, shape=SHAPE, pixels=PIXELS):
    """ImagePositionPatient of slices whose middles lie at the offsets along the travel from the origin."""
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    corner = -(shape[1] - 1) / 2 * pixels[1] * right - (shape[0] - 1) / 2 * pixels[0] * down
    return [tuple(corner + offset * np.array(travel, float)) for offset in offsets]


def write_case(folder, orientation, travel, offsets, attributes=None):
    positions = places(orientation, travel, offsets)
    write_series(folder, phantom, positions, orientation, PIXELS, SHAPE, **(attributes or {}))


def assert_in_its_place(folder, method):
    volume, grid = resample(read_series(folder, orientations=["axial", "coronal", "sagittal"]), interpolation=method)
    points, covered = points_of(grid), volume > -1024
    truth = phantom(points)
    for centre, radius, hounsfield in SPHERES:
        distance = np.linalg.norm(points - np.array(centre), axis=-1)
        assert covered[distance < radius + 3].all(), "the scan holds the whole sphere"
        assert abs(volume[distance < radius - 4].mean() - hounsfield) < 3
        near = distance < radius + 3
        weight = (volume[near] - TISSUE) / (hounsfield - TISSUE)
        found = (points[near] * weight[:, None]).sum(axis=0) / weight.sum()
        # What belongs to other spheres and planes near by is in the truth as well.
        true_weight = (truth[near] - TISSUE) / (hounsfield - TISSUE)
        expected = (points[near] * true_weight[:, None]).sum(axis=0) / true_weight.sum()
        assert np.linalg.norm(expected - np.array(centre)) < 0.02
        assert np.linalg.norm(found - np.array(centre)) < 0.15
    for normal, distance in PLANES:
        assert abs(distance_of_plane(volume, points, covered, normal, distance) - distance) < 0.15


def distance_of_plane(volume, points, covered, normal, near):
    """Where the values pass midway between tissue and air: a line fitted to soft edges over all of the plane in sight.

    Voxels near spheres and other planes are left out.
    """
    depth = points @ np.array(normal, float)
    apart = [np.linalg.norm(points - np.array(centre), axis=-1) > radius + 4 for centre, radius, _ in SPHERES]
    others = [points @ np.array(other, float) < limit - 4 for other, limit in PLANES if limit != near]
    band = covered & np.logical_and.reduce(apart + others) & (np.abs(depth - near) < 1.5)
    assert band.sum() > 200, "the scan shows the plane"
    share = (volume[band] - AIR) / (TISSUE - AIR)
    edge = (share > 0.1) & (share < 0.9)
    # Depth as a line in the share of tissue, which passes the plane at one half.
    slope, intercept = np.polyfit(share[edge] - 0.5, depth[band][edge], 1)
    assert slope < 0
    return intercept


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("case")
    write_case(place, *CASES[request.param])
    return place


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_everything_is_in_its_place(folder, method):
    assert_in_its_place(folder, method)


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_copies_and_names_change_nothing(tmp_path, method):
    """Some slices twice, under other names, UIDs and numbers; numbers and locations against the order of the slices."""
    write_case(tmp_path, *CASES["unequal steps"])
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SliceLocation = -float(dataset.ImagePositionPatient[2])
        dataset.InstanceNumber = 7 * k % 37
        save(dataset, path)
        if k % 5 == 0:
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.9.{k}"
            dataset.InstanceNumber = 500 - k
            save(dataset, tmp_path / "again" / f"0{k}")
    series = read_series(tmp_path)
    assert "duplicate_slices" in {warning["code"] for warning in series.verdict["warnings"]}
    assert len(series) == len(UNEVEN)
    assert_in_its_place(tmp_path, method)


@pytest.mark.parametrize("other", ["coronal", "tilted forward"])
def test_another_orientation_under_the_same_uid_is_no_part_of_the_volume(tmp_path, other):
    orientation, travel, offsets, _ = CASES[other]
    write_case(tmp_path / "first", *CASES["prone"])
    write_case(tmp_path / "second", orientation, travel, offsets[::2])
    assert len(read_series(tmp_path)) == len(EVEN)
    assert_in_its_place(tmp_path, "linear")


def test_a_second_acquisition_under_the_same_uid_is_no_part_of_the_volume(tmp_path):
    """The same positions with other pixels: a scan repeated after the patient has moved by 5 mm."""
    orientation, travel, offsets, _ = CASES["plain"]
    write_case(tmp_path / "first", orientation, travel, offsets, {"AcquisitionNumber": 1})
    write_series(
        tmp_path / "second",
        lambda points: phantom(points + np.array((0.0, 5.0, 0.0))),
        places(orientation, travel, offsets),
        orientation,
        PIXELS,
        SHAPE,
        AcquisitionNumber=2,
    )
    series = read_series(tmp_path)
    assert len(series) == len(EVEN)
    assert len({record["file"].split("/")[0] for record in series.verdict["slices"]}) == 1
    shift = 0.0 if series.verdict["slices"][0]["file"].startswith("first") else 5.0
    volume, grid = resample(series)
    centre = np.array(SPHERES[0][0]) - np.array((0.0, shift, 0.0))
    inside = np.linalg.norm(points_of(grid) - centre, axis=-1) < SPHERES[0][1] - 4
    assert abs(volume[inside].mean() - SPHERES[0][2]) < 3
