"""Volumes: chains in one interpolation against scipy's, exact laws, intensities by formula, replay, what is refused."""

import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from lungmill.errors import LungmillError
from lungmill.training.composition import SLAB_VOXELS, Compose
from lungmill.training.random_transforms import (
    RandomAffine,
    RandomBlur,
    RandomElastic,
    RandomFlip,
    RandomGamma,
    RandomIntensity,
    RandomNoise,
)
from lungmill.training.replay import transform_from_dict
from lungmill.training.volume_transforms import Affine, Blur, Elastic, Flip, Gamma, Intensity, Noise

SCIPY_MODES = {"nearest": "nearest", "constant": "constant", "reflect": "reflect", "wrap": "grid-wrap"}
SPACING = (2.5, 0.8, 1.1)
SHAPE = (15, 33, 28)
RANDOM = Compose(
    [
        RandomAffine(rotation_degrees=20, zoom=0.2, shear_degrees=5, translation_mm=(4, 5, 6)),
        RandomFlip(axes=(0, 1, 2), swap_labels=(1, 2)),
        RandomElastic(sigma_mm=4, control_mm=12),
        RandomIntensity(scale=0.2, shift=30, probability=0.5),
        RandomGamma(gamma=0.5),
        RandomBlur(sigma_mm=2, probability=0.5),
        RandomNoise(sigma=20),
    ]
)


def random_image(shape=SHAPE, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 100, shape).astype(dtype)


def random_labels(shape=SHAPE, seed=1):
    return np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint8)


def scipy_points(transform, points, shape, spacing):
    """Where a transform takes the voxels at `points` (3, ...) of its result from."""
    spacing, centre = np.reshape(spacing, (3, 1)), (np.reshape(shape, (3, 1)) - 1) / 2
    flat = points.reshape(3, -1)
    if isinstance(transform, Flip):
        moved = flat.copy()
        for axis in transform.axes:
            moved[axis] = shape[axis] - 1 - flat[axis]
    elif isinstance(transform, Affine):
        turn = Rotation.from_euler("xyz", transform.rotation_degrees[::-1], degrees=True).as_matrix()[::-1, ::-1]
        yz, xz, xy = np.tan(np.deg2rad(transform.shear_degrees))
        forward = turn @ np.array([[1, 0, 0], [yz, 1, 0], [xz, xy, 1]]) @ np.diag(transform.zoom)
        vectors = (flat - centre) * spacing - np.reshape(transform.translation_mm, (3, 1))
        moved = np.linalg.solve(forward, vectors) / spacing + centre
    else:
        control = transform.control_points(shape, spacing.ravel())
        middle = (np.reshape(control.shape[1:], (3, 1)) - 1) / 2
        lattice = (flat - centre) * spacing / transform.control_mm + middle
        shifts = [ndimage.map_coordinates(c, lattice, order=3, mode="nearest", prefilter=False) for c in control]
        moved = flat + np.stack(shifts) / spacing
    return moved.reshape(points.shape)


def scipy_chain(transforms, image, mask, spacing, mode, cval=0.0, cval_mask=0):
    points = np.indices(image.shape).astype(float)
    for transform in reversed(transforms):
        points = scipy_points(transform, points, image.shape, spacing)
    return (
        ndimage.map_coordinates(image, points, order=1, mode=mode, cval=cval),
        ndimage.map_coordinates(mask, points, order=0, mode=mode, cval=cval_mask),
    )


AFFINE = Affine((25, -10, 40), (1.2, 0.8, 0.9), (5, -8, 3), (3, -4, 5))
ELASTIC = Elastic(sigma_mm=4, control_mm=14, seed=3)
CHAINS = {
    "affine": [AFFINE],
    "elastic": [ELASTIC],
    "elastic last": [Flip((1,)), AFFINE, ELASTIC, Flip((0, 2))],
    "elastic first": [ELASTIC, AFFINE],
    "elastic, then shrunk far": [ELASTIC, Affine(zoom=0.2, translation_mm=(9, 8, 7))],
    "elastic, then turned out": [ELASTIC, Affine((30, 0, 0), zoom=0.3)],
    "two elastics": [Elastic(3, 20, 1), AFFINE, Flip((2,)), ELASTIC, Affine((-30, 0, 5))],
}


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_is_one_of_scipys_interpolations(chain, fill_mode):
    image, mask = random_image(), random_labels()
    compose = Compose(CHAINS[chain], fill_mode=fill_mode, cval=-70.0, cval_mask=9)
    got_image, got_mask = compose(image, mask, SPACING)
    expected = scipy_chain(CHAINS[chain], image, mask, SPACING, SCIPY_MODES[fill_mode], -70.0, 9)
    np.testing.assert_allclose(got_image, expected[0], atol=2e-3)
    # the control points are float32 voxels here and mm there: a point within 1e-6 of a border may fall on either side
    assert np.count_nonzero(got_mask != expected[1]) <= 1
    assert got_image.dtype == np.float32 and got_mask.dtype == np.uint8


def test_the_defaults_change_nothing():
    image, mask = random_image(), random_labels()
    for transform in (Affine(), Flip(), Elastic(), Intensity(), Gamma(), Noise(), Blur(), Compose()):
        got_image, got_mask = transform(image, mask, SPACING)
        np.testing.assert_allclose(got_image, image, rtol=1e-5, atol=1e-3 if isinstance(transform, Gamma) else 0)
        np.testing.assert_array_equal(got_mask, mask)
        assert not np.shares_memory(got_image, image) and not np.shares_memory(got_mask, mask)


@pytest.mark.parametrize(("axis", "plane"), [(0, (2, 1)), (1, (0, 2)), (2, (1, 0))])
@pytest.mark.parametrize("turns", [1, 2, -1])
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_quarter_turns_are_exact_and_right_handed(axis, plane, turns, fill_mode):
    image, mask = random_image((17, 17, 17)), random_labels((17, 17, 17))
    degrees = [0.0, 0.0, 0.0]
    degrees[axis] = 90.0 * turns
    got_image, got_mask = Compose([Affine(degrees)], fill_mode)(image, mask)
    np.testing.assert_array_equal(got_image, np.rot90(image, turns, plane))
    np.testing.assert_array_equal(got_mask, np.rot90(mask, turns, plane))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_flips_are_slicing(axes):
    image, mask = random_image(), random_labels()
    got_image, got_mask = Flip(axes)(image, mask)
    np.testing.assert_array_equal(got_image, np.flip(image, axes))
    np.testing.assert_array_equal(got_mask, np.flip(mask, axes))
    through_the_kernel = Compose([Elastic(sigma_mm=1e-30), Flip(axes)])(image, mask)
    np.testing.assert_array_equal(through_the_kernel[0], got_image)
    np.testing.assert_array_equal(through_the_kernel[1], got_mask)


def test_translations_by_whole_voxels_are_slicing_with_fill():
    image, mask = random_image(), random_labels()
    moved = Compose([Affine(translation_mm=(2 * 2.5, -3 * 0.8, 4 * 1.1))], "constant", -1000.0, 7)
    got_image, got_mask = moved(image, mask, SPACING)
    np.testing.assert_allclose(got_image[2:, :-3, 4:], image[:-2, 3:, :-4], atol=1e-3)
    np.testing.assert_array_equal(got_mask[2:, :-3, 4:], mask[:-2, 3:, :-4])
    for got, fill in ((got_image, -1000.0), (got_mask, 7)):
        assert (got[:2] == fill).all() and (got[:, -3:] == fill).all() and (got[:, :, :4] == fill).all()


def test_a_single_plane_is_a_volume_too():
    image, mask = random_image((1, 20, 30)), random_labels((1, 20, 30))
    away = Compose([Affine(translation_mm=(1, 0, 0))], "constant", -1000.0, 7)(image, mask)
    assert (away[0] == -1000).all() and (away[1] == 7).all()
    turned = Compose([Affine((30, 0, 0)), Elastic(2, 10, 1)])
    expected = scipy_chain(turned.transforms, image, mask, (1.0, 1.0, 1.0), "nearest")
    np.testing.assert_allclose(turned(image, mask)[0], expected[0], atol=2e-3)


def test_a_sphere_stays_a_sphere_whatever_the_spacing():
    points = (np.indices((31, 81, 61)) - np.reshape([15, 40, 30], (3, 1, 1, 1))) * np.reshape(SPACING, (3, 1, 1, 1))
    distance = np.sqrt((points**2).sum(axis=0)).astype(np.float32)
    turned = Affine((35, 50, 70))(distance, spacing_mm=SPACING)
    inside = distance < 25
    assert np.abs(turned - distance)[inside & (distance > 8)].max() < 0.2  # linear interpolation of a cone
    zoomed = Affine(zoom=(1.25, 1.25, 1.25))(distance, spacing_mm=SPACING)
    assert np.abs(zoomed - distance / 1.25)[inside & (distance > 8)].max() < 0.2


def test_affine_maps_act_on_linear_images_exactly():
    points = np.indices((9, 20, 18)) * np.reshape(SPACING, (3, 1, 1, 1))
    gradient = np.array([3.0, -2.0, 5.0])
    image = np.tensordot(gradient, points, 1).astype(np.float32)
    transform = Affine((5, 3, -4), (1.5, 1.6, 1.4), (2, 1, -3), (1, 2, -1))
    centre = (np.array(image.shape) - 1) / 2 * SPACING
    vectors = points.reshape(3, -1) - (centre + transform.translation_mm)[:, None]
    expected = gradient @ (np.linalg.inv(transform.matrix_mm()) @ vectors + centre[:, None])
    got = Compose([transform], "constant", np.nan_to_num(-1e9))(image, spacing_mm=SPACING)
    valid = got > -1e8
    assert valid.mean() > 0.5
    np.testing.assert_allclose(got[valid], expected.reshape(image.shape)[valid], atol=1e-3)


def test_an_elastic_displacement_never_folds():
    shape = (30, 40, 35)
    assert np.abs(Elastic(100.0, 15.0, 1).control_points(shape, SPACING)).max() <= 0.4 * 15.0 * (1 + 1e-6)
    for seed in range(4):
        transform = Elastic(sigma_mm=100.0, control_mm=15.0, seed=seed)
        places = [transform(c.astype(np.float32)) for c in np.indices(shape)]
        jacobian = np.stack([np.stack(np.gradient(place)) for place in places])[:, :, 8:-8, 8:-8, 8:-8]
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_lungs_keep_their_names():
    mask = np.array([[[1, 1, 0, 3, 2]]], dtype=np.uint8)
    image = np.zeros(mask.shape, dtype=np.float32)
    flip = Flip((2,), swap_labels=(1, 2))
    assert flip(image, mask)[1].tolist() == [[[1, 3, 0, 2, 2]]]
    assert Flip((1,), swap_labels=(1, 2))(image, mask)[1].tolist() == mask.tolist()
    assert Compose([flip, flip])(image, mask)[1].tolist() == mask.tolist()
    # the same through the kernel
    assert Compose([Elastic(1e-30), flip])(image, mask)[1].tolist() == [[[1, 3, 0, 2, 2]]]
    assert Compose([Elastic(1e-30), flip, flip])(image, mask)[1].tolist() == mask.tolist()


def test_a_blur_is_scipys():
    image = random_image((12, 40, 30))
    for sigma, spacing in ((1.0, (1, 1, 1)), (2.0, SPACING), (0.3, SPACING), (20.0, (1, 1, 1))):
        expected = ndimage.gaussian_filter(image, [sigma / mm for mm in spacing], mode="nearest", truncate=4.0)
        np.testing.assert_allclose(Blur(sigma)(image, spacing_mm=spacing), expected, atol=2e-4)
    wide = random_image((2, 3, 1000))
    expected = ndimage.gaussian_filter(wide, 1.5, mode="nearest")
    np.testing.assert_allclose(Blur(1.5)(wide), expected, atol=2e-4)


def test_intensities_follow_their_formulas():
    image = random_image(seed=4) * 10
    np.testing.assert_allclose(Intensity(1.1, -20.0)(image), image * 1.1 - 20, rtol=1e-5, atol=1e-3)
    window = (-500.0, 500.0)
    expected = image.astype(np.float64)
    inside = np.abs(expected) < 500
    expected[inside] = -500 + 1000 * ((expected[inside] + 500) / 1000) ** 0.7
    np.testing.assert_allclose(Gamma(0.7, window)(image), expected, atol=1e-2)
    noise = Noise(25.0, seed=3)(image) - image
    assert abs(noise.mean()) < 1 and abs(noise.std() - 25) < 0.5
    assert abs(np.corrcoef(noise.ravel(), image.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise.ravel()[1:], noise.ravel()[:-1])[0, 1]) < 0.03
    assert not np.array_equal(Noise(25.0, seed=4)(image), Noise(25.0, seed=3)(image))


def test_voxels_move_first_and_intensities_follow_in_their_order():
    image, mask = random_image(), random_labels()
    listed = Compose([Noise(20, 1), AFFINE, Blur(2.0), Intensity(2.0, 5.0), ELASTIC, Gamma(1.3)])
    moved, moved_mask = Compose([AFFINE, ELASTIC])(image, mask, SPACING)
    expected = moved
    for step in (Noise(20, 1), Blur(2.0), Intensity(2.0, 5.0), Gamma(1.3)):
        expected = step(expected, spacing_mm=SPACING)
    got, got_mask = listed(image, mask, SPACING)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_mask, moved_mask)
    nested = Compose([Compose([Noise(20, 1), AFFINE]), Compose([Blur(2.0), Compose([Intensity(2.0, 5.0), ELASTIC])])])
    np.testing.assert_array_equal(Compose([nested, Gamma(1.3)])(image, spacing_mm=SPACING), got)


@pytest.mark.parametrize("steps", [[Noise(20, 1), Intensity(1.1, 3.0)], [AFFINE, Noise(20, 1), Blur(1.0), Gamma(1.2)]])
def test_int16_is_rounded_once_at_the_end_and_held(steps):
    image = random_image(seed=2, dtype=np.int16)
    got = Compose(steps)(image, spacing_mm=SPACING)
    exact = Compose(steps)(image.astype(np.float32), spacing_mm=SPACING)
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, np.rint(exact))
    assert Intensity(1000.0)(image).max() == 32767 and Intensity(1000.0)(image).min() == -32768


def test_large_volumes_are_worked_on_in_slabs_with_the_same_noise():
    shape = (9, 200, 201)
    assert shape[1] * shape[2] * 2 > SLAB_VOXELS > shape[1] * shape[2]
    noise = Noise(10.0, 7)(np.zeros(shape, dtype=np.float32))
    expected = np.random.default_rng(7).standard_normal(shape, dtype=np.float32) * np.float32(10)
    np.testing.assert_array_equal(noise, expected)
    image = random_image(shape)
    moved = Compose([AFFINE, ELASTIC])(image)
    np.testing.assert_array_equal(Compose([AFFINE, Noise(10.0, 7), ELASTIC])(image), moved + expected)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    kind=st.sampled_from(["int16", "float32"]),
    fill_mode=st.sampled_from(sorted(SCIPY_MODES)),
    seed=st.integers(0, 2**40),
)
def test_what_is_drawn_replays_exactly(shape, spacing, kind, fill_mode, seed):
    image, mask = random_image(shape, seed, kind), random_labels(shape, seed)
    augment = Compose(RANDOM.transforms, fill_mode)
    assert eval(repr(augment)) == augment == transform_from_dict(json.loads(json.dumps(augment.as_dict())))
    drawn = augment.draw(seed)
    got_image, got_mask = augment(image, mask, spacing, rng=seed)
    assert (got_image.shape, got_image.dtype, got_mask.dtype) == (shape, image.dtype, mask.dtype)
    assert np.isfinite(got_image).all()
    assert set(np.unique(got_mask)) <= {0, 1, 2, 3}
    for replay in (
        drawn,
        eval(repr(drawn)),
        pickle.loads(pickle.dumps(drawn)),
        transform_from_dict(json.loads(json.dumps(drawn.as_dict()))),
    ):
        assert replay == drawn == replay.draw()
        again_image, again_mask = replay(image, mask, spacing)
        np.testing.assert_array_equal(again_image, got_image)
        np.testing.assert_array_equal(again_mask, got_mask)


def test_draws_stay_within_their_ranges():
    drawn = [RANDOM.draw(seed).transforms for seed in range(300)]
    affine, flip, elastic, intensity, gamma, blur, noise = zip(*drawn, strict=True)
    for low, high, values in (
        (-20, 20, [a for t in affine for a in t.rotation_degrees]),
        (0.8, 1.2, [t.zoom[0] for t in affine]),
        (-5, 5, [a for t in affine for a in t.shear_degrees]),
        (-4, 4, [t.translation_mm[0] for t in affine]),
        (-6, 6, [t.translation_mm[2] for t in affine]),
        (0, 4, [t.sigma_mm for t in elastic]),
        (0, 20, [t.sigma for t in noise]),
        (1 / 1.5, 1.5, [t.gamma for t in gamma]),
        (0.8, 1.2, [t.scale for t in intensity]),
        (-30, 30, [t.shift for t in intensity]),
        (0, 2, [t.sigma_mm for t in blur]),
    ):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)
    assert all(t.zoom[0] == t.zoom[1] == t.zoom[2] for t in affine)
    free = RandomAffine(zoom=(0.1, 0.2, 0.0)).draw(1)
    assert free.zoom[0] != free.zoom[1] and free.zoom[2] == 1.0
    for axis in range(3):
        assert 100 < sum(axis in t.axes for t in flip) < 200
    assert 100 < sum(t == Intensity() for t in intensity) < 200
    assert RandomNoise(5, probability=0.0).draw(3) == Noise()


def test_pairs_are_ranges_as_they_are():
    assert 3 <= RandomNoise(sigma=(3, 4)).draw(1).sigma <= 4
    assert RandomIntensity(scale=(2, 2), shift=(5, 5)).draw(1) == Intensity(2.0, 5.0)
    assert RandomElastic(sigma_mm=(1, 1), control_mm=20).draw(1).sigma_mm == 1.0
    assert RandomBlur(sigma_mm=(2, 2)).draw() == Blur(2.0)
    assert RandomGamma(gamma=(1.5, 1.5)).draw().gamma == pytest.approx(1.5)


def test_random_transforms_are_called_like_the_others():
    image, mask = random_image(), random_labels()
    for random in RANDOM.transforms:
        got = random(image, mask, SPACING, rng=4)
        expected = random.draw(4)(image, mask, SPACING)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_threads_do_not_change_results():
    image, mask = random_image((30, 40, 50)), random_labels((30, 40, 50))
    drawn = [RANDOM.draw(seed) for seed in range(12)]
    expected = [transform(image, mask) for transform in drawn]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda transform: transform(image, mask), drawn, timeout=60))
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_views_and_memory_maps_are_read_where_they_are(tmp_path):
    whole, labels = random_image((30, 60, 50), dtype=np.int16), random_labels((30, 60, 50))
    np.save(tmp_path / "image.npy", whole)
    patch = np.s_[5:20, 10:43, 3:31]
    expected = RANDOM(whole[patch].copy(), labels[patch].copy(), SPACING, rng=1)
    got = RANDOM(np.load(tmp_path / "image.npy", mmap_mode="r")[patch], labels[patch], SPACING, rng=1)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_no_copy_of_the_volume_is_made(dtype):
    image, mask = random_image((64, 128, 128), dtype=dtype), random_labels((64, 128, 128))
    augment = Compose([AFFINE, Intensity(1.1, 5.0), ELASTIC, Gamma(1.2), Noise(10.0)])
    augment(image, mask)
    tracemalloc.start()
    got_image, got_mask = augment(image, mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < got_image.nbytes + got_mask.nbytes + 6 * 4 * SLAB_VOXELS


IMAGE = np.zeros((4, 5, 6), dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compose([], fill_mode="mirror"), "fill_mode='mirror' is none of"),
        (lambda: Compose([3]), "Compose: 3 is no transform"),
        (lambda: Compose([Flip]), "is no transform of volumes"),
        (lambda: Compose([Compose([], "wrap")]), "a Compose within another needs the same fill_mode"),
        (lambda: Affine(rotation_degrees=float("nan")), "rotation_degrees=nan"),
        (lambda: Affine(zoom=(1, 1)), r"zoom=\[1, 1\]: give one number or 3"),
        (lambda: Affine(zoom=0.0), "zoom=0.0"),
        (lambda: RandomAffine(zoom=1.0), "zoom=1.0"),
        (lambda: RandomAffine(rotation_degrees=-3), "rotation_degrees=-3"),
        (lambda: RandomAffine(translation_mm="far"), "translation_mm='far' is not a number"),
        (lambda: Flip((3,)), r"axes=\(3,\)"),
        (lambda: Elastic(-1.0), "sigma_mm=-1.0"),
        (lambda: Elastic(1.0, 0.0), "control_mm=0.0"),
        (lambda: Noise(1.0, seed=0.5), "seed=0.5"),
        (lambda: RandomNoise(sigma=(2, 1)), "sigma=(.*) reaches from 2 to 1"),
        (lambda: RandomNoise(sigma=float("nan")), "sigma=nan"),
        (lambda: RandomBlur(1.0, probability=1.5), "probability=1.5"),
        (lambda: Gamma(1.0, (5, 5)), "window="),
        (lambda: RandomGamma(-0.5), "gamma=-0.5"),
        (lambda: Affine()(IMAGE[0]), "image has shape"),
        (lambda: Affine()(IMAGE, np.zeros((4, 5, 5), np.uint8)), "mask .4, 5, 5.: they must be the same"),
        (lambda: Affine()(IMAGE, spacing_mm=(1, 0, 1)), "spacing_mm=0"),
        (lambda: Affine()(IMAGE.astype(complex)), "image has dtype complex128"),
        (lambda: Flip((2,), (1, 300))(IMAGE, np.zeros(IMAGE.shape, np.uint8)), "not all fit into a mask of uint8"),
    ],
)
def test_mistakes_are_named_in_one_line(make, words):
    with pytest.raises(LungmillError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
