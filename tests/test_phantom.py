"""The synthetic chest against geometry: spheres, sides, connectedness, the same points rendered by another route."""

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from lungmill.errors import LungmillError
from lungmill.grid import Grid
from lungmill.phantom import Anatomy, pad_outside_circle, scanner_noise

AXIAL = ((0, 0, 1), (0, 1, 0))  # row and column direction, [z, y, x]
CHEST = Grid((98, 118, 126), (3.0, 3.0, 3.0), (-188.0, -172.0, -187.5))


@pytest.fixture(scope="module")
def anatomy():
    return Anatomy.random(11)


@pytest.fixture(scope="module")
def volume(anatomy):
    return anatomy.render(CHEST)


@pytest.fixture(scope="module")
def lungs(anatomy):
    return anatomy.labels(CHEST)


def around(center_mm, half_mm, step_mm):
    """A cube of voxels around a point."""
    count = 2 * math.ceil(half_mm / step_mm) + 1
    return Grid((count,) * 3, (step_mm,) * 3, tuple(mm - (count - 1) / 2 * step_mm for mm in center_mm))


def sphere_mm3(nodule):
    return 4 / 3 * math.pi * (nodule.diameter_mm / 2) ** 3


def test_the_seed_decides():
    first, again, other = Anatomy.random(5), Anatomy.random(5), Anatomy.random(6)
    small = Grid((3, 60, 60), (40.0, 6.0, 6.0), (-60.0, -170.0, -180.0))
    assert first.nodules == again.nodules and first.build == again.build
    assert np.array_equal(first.render(small, noise_hu=20, seed=1), again.render(small, noise_hu=20, seed=1))
    assert not np.array_equal(first.render(small, noise_hu=20, seed=1), first.render(small, noise_hu=20, seed=2))
    assert first.nodules != other.nodules and first.build != other.build
    assert not np.array_equal(first.render(small), other.render(small))


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_nodules_are_spheres_of_their_diameter(seed):
    patient = Anatomy.random(seed)
    assert 3 <= len(patient.nodules) <= 5
    for number, nodule in enumerate(patient.nodules, start=1):
        assert 4 <= nodule.diameter_mm <= 20
        step = nodule.diameter_mm / 40
        grid = around(nodule.center_mm, nodule.diameter_mm / 2 + 1, step)
        inside = patient.labels(grid, of="nodules") == number
        assert inside.sum() * step**3 == pytest.approx(sphere_mm3(nodule), rel=0.01)
        centroid = grid.to_mm(np.argwhere(inside).mean(axis=0))
        np.testing.assert_allclose(centroid, nodule.center_mm, atol=0.05)


def test_rendered_nodule_has_the_volume_of_its_sphere(anatomy):
    """The partial-volume shares of the rendered voxels must add up to the sphere, whatever the voxel size."""
    nodule = max(anatomy.nodules[1:], key=lambda n: n.diameter_mm)
    grid = around(nodule.center_mm, nodule.diameter_mm / 2 + 3, 1.3)
    bare = Anatomy(anatomy.build, [], anatomy.tubes, anatomy._texture).render(grid).astype(float)
    share = (anatomy.render(grid) - bare) / (nodule.hu - bare)
    assert share.sum() * 1.3**3 == pytest.approx(sphere_mm3(nodule), rel=0.06)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_one_nodule_touches_the_pleura_and_the_others_lie_in_the_lung(seed):
    patient = Anatomy.random(seed)
    assert [nodule.pleural for nodule in patient.nodules] == [True] + [False] * (len(patient.nodules) - 1)
    for number, nodule in enumerate(patient.nodules, start=1):
        grid = around(nodule.center_mm, nodule.diameter_mm / 2 + 6, 1.0)
        inside = patient.labels(grid, of="nodules") == number
        lung = patient.labels(grid) > 0
        if not nodule.pleural:
            assert lung[inside].all()
            continue
        assert 0.6 < lung[inside].mean() < 0.98
        # Attached: at a usual threshold the nodule and the chest wall are one piece, through the nodule's own voxels.
        dense = patient.render(grid) > -400
        wall = dense & ~lung & ~inside
        pieces, _ = ndimage.label((dense & inside) | wall)
        middle = pieces[tuple(n // 2 for n in grid.shape)]
        assert middle > 0 and (pieces[wall] == middle).sum() > 200


def test_right_and_left(lungs):
    """LPS: the patient's right lung has the smaller x, in every row that shows both; it is the larger one."""
    right, left = lungs == 1, lungs == 2
    both = right.any(axis=2) & left.any(axis=2)
    last_right = CHEST.shape[2] - 1 - right[:, :, ::-1].argmax(axis=2)
    assert both.any() and (last_right[both] < left.argmax(axis=2)[both]).all()
    millilitres = np.prod(CHEST.spacing_mm) / 1000
    assert right.sum() > left.sum()
    assert 3000 < (right.sum() + left.sum()) * millilitres < 7500
    assert ndimage.label(right)[1] == 1 and ndimage.label(left)[1] == 1


def test_heart_notch_apices_and_diaphragm(lungs):
    """The left lung is narrower than the right at the heart; both taper to the top and are hollow from below."""
    z = CHEST.axis_mm(0)
    area = np.stack([(lungs == side).sum(axis=(1, 2)) for side in (1, 2)])
    heart = np.abs(z + 60).argmin()
    assert area[1, heart] < 0.85 * area[0, heart]
    for side in (0, 1):
        present = np.flatnonzero(area[side])
        assert present[0] > 0 and present[-1] < len(z) - 1  # both ends within the scan
        assert area[side, present[-1]] < 0.1 * area[side].max() and area[side, present[0]] < 0.1 * area[side].max()
        lower_third = lungs[: np.abs(z + 120).argmin()] == side + 1
        low_y = np.nonzero(lower_third)[1]
        assert CHEST.axis_mm(1)[low_y].mean() > 30  # the lowest parts of the lungs lie at the back


def test_trachea_divides_and_leads_into_both_lungs(anatomy, volume, lungs):
    grid = Grid((74, 60, 120), (2.0, 1.0, 1.0), (-30.0, -20.0, -60.0))
    trachea = anatomy.labels(grid, of="trachea") > 0
    heights = grid.axis_mm(0)
    counts = [ndimage.label(plane)[1] for plane in trachea]
    assert counts[np.abs(heights - 60).argmin()] == 1 and counts[np.abs(heights + 14).argmin()] == 2
    assert ndimage.label(trachea)[1] == 1
    assert not (trachea & (anatomy.labels(grid) > 0)).any()
    core = ndimage.binary_erosion(trachea, iterations=2)
    assert anatomy.render(grid)[core].max() < -950
    # What any method that starts from air would see: both lungs and the trachea are one body of air.
    pieces, _ = ndimage.label(volume < -400)
    top = anatomy.labels(CHEST, of="trachea")
    airway = np.bincount(pieces[top > 0]).argmax()
    assert airway > 0
    for side in (1, 2):
        assert (pieces[lungs == side] == airway).mean() > 0.9
    assert not (pieces[[0, -1], 0, 0] == airway).any()  # and it is closed off from the air around the patient


def test_densities(volume, lungs):
    assert -880 < volume[lungs > 0].mean() < -780
    assert -900 < np.median(volume[lungs == 1]) < -820
    outside = (lungs == 0) & (volume > -500)
    shares = np.histogram(volume[outside], [-500, -160, -60, 0, 90, 250, 1000])[0] / outside.sum()
    assert shares[1] > 0.1 and shares[3] > 0.3 and shares[5] > 0.01  # fat, soft tissue, bone
    assert volume.min() >= -1024 and 400 < volume.max() < 1000


@pytest.mark.parametrize("prone", [False, True])
def test_table_is_separated_from_the_patient_by_air(prone):
    patient = Anatomy.random(21, prone=prone)
    volume = patient.render(CHEST)
    pieces, _ = ndimage.label(volume > -300)
    body = pieces == np.bincount(pieces[pieces > 0]).argmax()
    y = CHEST.axis_mm(1)
    dense = volume[:, :, CHEST.shape[2] // 2] > -700  # the plane x = 0
    reach = y[np.flatnonzero(body.any(axis=(0, 2)))]
    if prone:
        y, dense, reach, table = -y[::-1], dense[:, ::-1], -reach, -patient.build.table
    else:
        table = patient.build.table
    assert reach.max() < table - 3
    assert dense[:, (y > table - 2) & (y < table + 25)].any(axis=1).all()  # the table is there in every slice
    assert not dense[:, (y > reach.max() + 4) & (y < table - 2)].any()


def test_tilted_and_oblique_slices_match_an_axial_volume(anatomy):
    """The same world points by another route: a dense axial volume sampled with scipy."""
    grid = Grid((100, 150, 150), (0.6, 0.6, 0.6), (-40.0, -5.0, -45.0))
    dense = anatomy.render(grid, edge_mm=2.0).astype(np.float32)
    for angles in ((0.0, 0.0, 12.0), (25.0, -10.0, 15.0)):  # about z, y, x
        _, column, row = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T
        origin = np.array([-5.0, 10.0, -35.0])
        image = anatomy.render_slice(origin, row, column, (1.1, 0.9), (45, 70), edge_mm=2.0)
        i, j = np.mgrid[:45, :70]
        points = origin + i[..., None] * 1.1 * column + j[..., None] * 0.9 * row
        index = np.moveaxis(grid.to_index(points), -1, 0)
        held = ((index >= 0) & (index <= np.array(grid.shape)[:, None, None] - 1)).all(axis=0)
        assert held.mean() > 0.6
        expected = ndimage.map_coordinates(dense, index, order=1)
        error = np.abs(image - expected)[held]
        assert np.std(expected[held]) > 200  # the comparison sees edges
        assert error.mean() < 3 and np.percentile(error, 99) < 40


def test_rows_of_a_tilted_slice_are_rows_of_axial_slices(anatomy):
    """A row of a slice tilted about x has one z and one y, so an axial slice of one row must give the same numbers."""
    tilt = math.radians(12)
    column = np.array([-math.sin(tilt), math.cos(tilt), 0.0])
    origin = np.array([0.0, -150.0, -178.0])
    image = anatomy.render_slice(origin, AXIAL[0], column, (2.0, 1.4), (150, 256), edge_mm=1.7)
    for i in range(0, 150, 7):
        row = anatomy.render_slice(origin + 2.0 * i * column, *AXIAL, (2.0, 1.4), (1, 256), edge_mm=1.7)
        np.testing.assert_allclose(image[i], row[0], atol=0.05)


def test_noise_has_the_requested_spread_and_is_correlated(anatomy):
    noise = scanner_noise((400, 400), 20.0, seed=3)
    assert noise.dtype == np.float32 and noise.shape == (400, 400)
    assert abs(noise.mean()) < 0.5 and noise.std() == pytest.approx(20, rel=0.03)
    for lag, expected in ((1, 4 / 6), (2, 1 / 6), (4, 0.0)):  # the autocorrelation of the weights 1 2 1
        found = (np.mean(noise[:, lag:] * noise[:, :-lag]), np.mean(noise[lag:] * noise[:-lag]))
        np.testing.assert_allclose(np.array(found) / noise.var(), expected, atol=0.03)
    grid = Grid((2, 40, 40), (2.5, 1.4, 1.4), (-130.0, -40.0, -90.0))  # the liver
    difference = anatomy.render(grid, noise_hu=18, seed=4) - anatomy.render(grid)
    assert difference.std() == pytest.approx(18, rel=0.1)
    assert not np.array_equal(difference[0], difference[1])


def test_round_field_of_view():
    image = np.zeros((200, 240), np.float32)
    pad_outside_circle(image, -3024)
    assert image[0, 0] == image[-1, -1] == image[100, 10] == -3024 and image[100, 120] == image[3, 120] == 0
    assert (image == 0).sum() == pytest.approx(math.pi * 100**2, rel=0.01)


def test_bad_arguments_are_named(anatomy):
    with pytest.raises(LungmillError, match="perpendicular"):
        anatomy.render_slice((0, 0, 0), (0, 0, 1), (0, 0.5, 0.5), (1, 1), (4, 4))
    with pytest.raises(LungmillError, match="lung"):
        anatomy.labels(CHEST, of="lung")
