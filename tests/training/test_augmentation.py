"""Images: one interpolation against scipy's with the same coordinates, exact laws, replay, and what is refused."""

import dataclasses
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lungmill.errors import LungmillError
from lungmill.training.augmentation import (
    draw_image_transform,
    image_random_transform,
    image_stack_random_transform,
)
from lungmill.training.image_transform import ImageTransform
from lungmill.training.mapping import round_into
from lungmill.training.replay import transform_from_dict

SCIPY_MODES = {"nearest": "nearest", "constant": "constant", "reflect": "reflect", "wrap": "grid-wrap"}
PAD_MODES = {"nearest": "edge", "constant": "constant", "reflect": "symmetric", "wrap": "wrap"}
EVERYTHING = {
    "rotation_range": 60.0,
    "width_shift_range": 0.3,
    "height_shift_range": 0.3,
    "shear_range": 20.0,
    "zoom_range": (0.6, 1.5),
    "horizontal_flip": True,
    "vertical_flip": True,
    "spline_warp": True,
    "crop_size": (31, 40),
}


def random_image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 100, shape).astype(dtype)


def random_labels(shape, seed=1, dtype=np.uint8):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 7], dtype=dtype), shape)


def scipy_coordinates(transform, shape):
    """Source coordinates (2, rows, columns) of the uncropped result: the docstring's steps inverted, one by one."""
    size = np.array(shape)
    points = np.indices(shape).astype(float)
    if transform.warp_sigma:
        control = transform.control_points() * (size - 1)[:, None, None]
        n = transform.warp_grid_size
        lattice = points * (n - 1) / (size - 1)[:, None, None]
        points = points + np.stack(
            [ndimage.map_coordinates(c, lattice, order=3, mode="nearest", prefilter=False) for c in control]
        )
    for axis in range(2):
        if transform.flip[axis]:
            points[axis] = size[axis] - 1 - points[axis]
    angle, lean = np.deg2rad(transform.rotation_degrees), np.tan(np.deg2rad(transform.shear_degrees))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = rotation @ np.array([[1.0, 0.0], [lean, 1.0]]) @ np.diag(transform.zoom)
    centre = ((size - 1) / 2)[:, None]
    vectors = points.reshape(2, -1) - centre - (np.array(transform.shift) * size)[:, None]
    return (np.linalg.solve(forward, vectors) + centre).reshape(points.shape)


def cropped(array, transform):
    """The part of an uncropped result that `transform` makes."""
    (height, width), (rows, columns) = transform.crop_size, array.shape[-2:]
    top = max(int(np.ceil(transform.crop_position[0] * (rows - height + 1))) - 1, 0)
    left = max(int(np.ceil(transform.crop_position[1] * (columns - width + 1))) - 1, 0)
    return array[..., top : top + height, left : left + width]


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize("seed", range(4))
def test_one_pass_is_scipys_interpolation_at_the_composed_coordinates(fill_mode, seed):
    x, y = random_image((2, 57, 64), seed), random_labels((57, 64), seed)
    transform = draw_image_transform(**EVERYTHING, fill_mode=fill_mode, cval_x=-50.0, cval_y=9, rng=seed)
    got_x, got_y = transform(x, y)
    coordinates = cropped(scipy_coordinates(transform, y.shape), transform)
    mode = SCIPY_MODES[fill_mode]
    for channel in range(2):
        expected = ndimage.map_coordinates(x[channel], coordinates, order=1, mode=mode, cval=-50.0)
        np.testing.assert_allclose(got_x[channel], expected, atol=1e-3)
    labels = ndimage.map_coordinates(y, coordinates, order=0, mode=mode, cval=9)
    np.testing.assert_array_equal(got_y, labels)
    assert got_x.dtype == np.float32 and got_y.dtype == np.uint8


@pytest.mark.parametrize("grid_size", [2, 3, 5, 9])
def test_the_warp_alone_is_scipys_cubic_spline_of_the_control_points(grid_size):
    transform = ImageTransform(warp_sigma=0.1, warp_grid_size=grid_size, warp_seed=5)
    x = random_image((50, 41))
    expected = ndimage.map_coordinates(x, scipy_coordinates(transform, x.shape), order=1, mode="nearest")
    np.testing.assert_allclose(transform(x), expected, atol=1e-3)
    assert np.abs(transform(x) - x).max() > 1


def test_a_warp_never_folds_the_image():
    rows, columns = np.indices((2, 120, 150)[1:], dtype=np.float32)
    for seed in range(10):
        transform = ImageTransform(warp_sigma=10.0, warp_grid_size=4, warp_seed=seed)
        # the coordinates as images: the transform then shows where every pixel comes from; "nearest" holds the border
        at_row, at_column = transform(np.stack([rows, columns]))[:, 30:-30, 30:-30]
        down, right = np.gradient(at_row), np.gradient(at_column)
        assert (down[0] * right[1] - down[1] * right[0]).min() >= 0


def test_the_defaults_change_nothing():
    x, y = random_image((3, 20, 30)), random_labels((20, 30))
    got_x, got_y = image_random_transform(x, y)
    np.testing.assert_array_equal(got_x, x)
    np.testing.assert_array_equal(got_y, y)
    assert not np.shares_memory(got_x, x) and not np.shares_memory(got_y, y)


@pytest.mark.parametrize("quarter_turns", [-1, 0, 1, 2, 3, 7])
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_quarter_turns_are_exact(quarter_turns, fill_mode):
    x, y = random_image((33, 33)), random_labels((33, 33))
    got_x, got_y = ImageTransform(rotation_degrees=90.0 * quarter_turns, fill_mode=fill_mode)(x, y)
    np.testing.assert_array_equal(got_x, np.rot90(x, quarter_turns))
    np.testing.assert_array_equal(got_y, np.rot90(y, quarter_turns))


@pytest.mark.parametrize("flip", [(False, True), (True, False), (True, True)])
def test_flips_are_slicing(flip):
    x = random_image((21, 34))
    steps = [-1 if flipped else 1 for flipped in flip]
    np.testing.assert_array_equal(ImageTransform(flip=flip)(x), x[:: steps[0], :: steps[1]])


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize(("down", "right"), [(0, 7), (3, 0), (-4, 7), (11, -9)])
def test_shifts_by_whole_pixels_are_slicing_with_fill(fill_mode, down, right):
    x, y = random_image((50, 100)), random_labels((50, 100))
    transform = ImageTransform(shift=(down / 50, right / 100), fill_mode=fill_mode, cval_x=5.0, cval_y=3)
    for got, source, fill in zip(transform(x, y), (x, y), (5.0, 3), strict=True):
        options = {"constant_values": fill} if fill_mode == "constant" else {}
        padded = np.pad(source, 20, PAD_MODES[fill_mode], **options)
        expected = padded[20 - down : 70 - down, 20 - right : 120 - right]
        np.testing.assert_allclose(got, expected, atol=1e-4)  # 0.07 * 100 is no whole number in binary


def test_directions_are_as_documented():
    x = np.zeros((101, 101), dtype=np.float32)
    x[50, 90] = 1.0  # right of the centre

    def brightest(**parameters):
        found = ImageTransform(**parameters)(x)
        return tuple(int(i) for i in np.unravel_index(found.argmax(), found.shape))

    assert brightest(rotation_degrees=90) == (10, 50)  # counter-clockwise: up
    assert brightest(shift=(10 / 101, 0)) == (60, 50 + 40)
    assert brightest(zoom=(1, 0.5)) == (50, 70)
    x[:] = 0
    x[90, 50] = 1.0  # below the centre
    assert brightest(shear_degrees=45) == (90, 90)


def test_turning_back_and_forth_gives_the_image_back():
    rows, columns = np.indices((128, 128))
    x = (100 * np.sin(rows / 17) * np.cos(columns / 13)).astype(np.float32)
    there = ImageTransform(rotation_degrees=23, zoom=(1.2, 1.2))(x)
    back = ImageTransform(zoom=(1 / 1.2, 1 / 1.2), rotation_degrees=-23)(there)
    assert np.abs(back - x)[45:83, 45:83].max() < 0.5


def test_a_crop_is_a_part_of_the_whole():
    x, y = random_image((2, 60, 70)), random_labels((60, 70))
    seen = set()
    for seed in range(40):
        transform = draw_image_transform(rotation_range=30, spline_warp=True, crop_size=(58, 69), rng=seed)
        whole_x, whole_y = dataclasses.replace(transform, crop_size=None)(x, y)
        part_x, part_y = transform(x, y)
        np.testing.assert_array_equal(part_y, cropped(whole_y, transform))
        np.testing.assert_array_equal(part_x, cropped(whole_x, transform))
        places = [(r, c) for r in range(3) for c in range(2) if np.array_equal(part_y, whole_y[r : r + 58, c : c + 69])]
        seen.update(places)
    assert seen == {(r, c) for r in range(3) for c in range(2)}


def test_integers_are_rounded_and_held_to_their_range():
    x = random_image((40, 40))
    transform = ImageTransform(rotation_degrees=20, intensity_shift=0.25)
    whole = np.rint(x).astype(np.int16)
    np.testing.assert_array_equal(transform(whole), np.rint(transform(whole.astype(np.float32))).astype(np.int16))
    ends = np.array([[-32768, 100, 32760]], dtype=np.int16)
    np.testing.assert_array_equal(ImageTransform(intensity_shift=10.4)(ends), [[-32758, 110, 32767]])
    np.testing.assert_array_equal(ImageTransform(intensity_shift=-10.4)(ends), [[-32768, 90, 32750]])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_rounding_never_leaves_an_integer_type(dtype):
    out = np.empty(2, dtype=dtype)
    round_into(out, np.array([-1e30, 1e30], dtype=np.float32))
    limits = np.iinfo(dtype)
    np.testing.assert_allclose(out.astype(float), [limits.min, limits.max], rtol=1e-6)


def test_the_intensity_shift_is_added_everywhere_once():
    x = random_image((2, 30, 30))
    transform = ImageTransform(shift=(0.5, 0), fill_mode="constant", cval_x=-1000.0)
    shifted = dataclasses.replace(transform, intensity_shift=40.0)(x)
    np.testing.assert_allclose(shifted, transform(x) + 40, rtol=1e-6)


def test_labels_of_the_lungs_follow_a_horizontal_flip():
    y = np.array([[1, 0, 3, 2, 2]], dtype=np.uint8)
    x = np.zeros(y.shape, dtype=np.float32)

    def labels(**parameters):
        return ImageTransform(**parameters)(x, y)[1].tolist()

    assert labels(flip=(False, True), swap_labels=(1, 2)) == [[1, 1, 3, 0, 2]]
    assert labels(flip=(True, False), swap_labels=(1, 2)) == y.tolist()
    assert labels(flip=(False, True)) == [[2, 2, 3, 0, 1]]
    assert labels(flip=(False, True), swap_labels=((1, 2), (0, 3))) == [[1, 1, 0, 3, 2]]
    drawn = {image_random_transform(x, y, horizontal_flip=True, swap_labels=(1, 2), rng=s)[1][0, 0] for s in range(20)}
    assert drawn == {1}


def layouts(x):
    """The same image (channels, rows, columns) in memory of many shapes, with its channel axis."""
    yield np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1
    yield np.ascontiguousarray(np.moveaxis(x, 0, 1)), 1
    wide = np.zeros((x.shape[0], x.shape[1] * 2, x.shape[2] * 3), dtype=x.dtype)
    wide[:, ::2, ::3] = x
    yield wide[:, ::2, ::3], 0
    yield np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1], 0
    yield np.asfortranarray(x), 0
    yield x.astype(x.dtype.newbyteorder(">")), 0
    read_only = x.copy()
    read_only.flags.writeable = False
    yield read_only, 0


def test_results_do_not_depend_on_the_layout_in_memory(tmp_path):
    x, y = random_image((3, 37, 29)), random_labels((3, 37, 29))
    transform = draw_image_transform(**{**EVERYTHING, "crop_size": (20, 15)}, rng=3)
    expected_x, expected_y = transform(x, y)
    for (view, axis), (labels, _) in zip(layouts(x), layouts(y), strict=True):
        got_x, got_y = transform(view, labels, channel_axis=axis)
        np.testing.assert_array_equal(np.moveaxis(got_x, axis, 0), expected_x)
        np.testing.assert_array_equal(np.moveaxis(got_y, axis, 0), expected_y)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(transform(np.load(tmp_path / "x.npy", mmap_mode="r")), expected_x)
    for channel in range(3):
        np.testing.assert_array_equal(transform(x[channel], channel_axis=None), expected_x[channel])
        np.testing.assert_array_equal(transform(x, y[channel])[1], expected_y[channel])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["int16", "float32"]),
    fill_mode=st.sampled_from(sorted(SCIPY_MODES)),
    ranges=st.fixed_dictionaries(
        {},
        optional={
            "rotation_range": st.floats(0, 180),
            "width_shift_range": st.floats(0, 3),
            "height_shift_range": st.floats(0, 3),
            "shear_range": st.floats(0, 60),
            "zoom_range": st.floats(0, 0.9),
            "horizontal_flip": st.booleans(),
            "vertical_flip": st.booleans(),
            "spline_warp": st.booleans(),
            "warp_sigma": st.floats(0, 1),
            "warp_grid_size": st.integers(2, 6),
        },
    ),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_invented(shape, kind, fill_mode, ranges, seed):
    x, y = random_image(shape, seed, kind), random_labels(shape, seed)
    got_x, got_y = image_random_transform(x, y, fill_mode=fill_mode, cval_x=float(x[0, 0]), rng=seed, **ranges)
    assert (got_x.shape, got_x.dtype, got_y.shape, got_y.dtype) == (x.shape, x.dtype, y.shape, y.dtype)
    assert x.min() - 1e-3 <= got_x.min() and got_x.max() <= x.max() + 1e-3
    assert set(np.unique(got_y)) <= set(np.unique(y)) | ({0} if fill_mode == "constant" else set())
    again_x, again_y = image_random_transform(x, y, fill_mode=fill_mode, cval_x=float(x[0, 0]), rng=seed, **ranges)
    np.testing.assert_array_equal(got_x, again_x)
    np.testing.assert_array_equal(got_y, again_y)
    transform = draw_image_transform(fill_mode=fill_mode, cval_x=float(x[0, 0]), rng=seed, **ranges)
    for replay in (eval(repr(transform)), transform_from_dict(json.loads(json.dumps(transform.as_dict())))):
        assert replay == transform
        np.testing.assert_array_equal(replay(x, y)[0], got_x)
        np.testing.assert_array_equal(replay(x, y)[1], got_y)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float64"])
def test_masks_of_any_dtype_are_copied_bit_by_bit(dtype):
    y = random_labels((30, 30), dtype=np.uint8).astype(dtype)
    x = np.zeros((30, 30), dtype=np.float32)
    transform = ImageTransform(rotation_degrees=30, fill_mode="constant", cval_y=1)
    got = transform(x, y)[1]
    assert got.dtype == y.dtype
    np.testing.assert_array_equal(got.astype(float), transform(x, y.astype(np.float64))[1])


def test_draws_stay_within_their_ranges_and_reach_them():
    drawn = [
        draw_image_transform(10, 0.2, 0.1, 5, (0.8, 1.5), 30, horizontal_flip=True, spline_warp=True, rng=seed)
        for seed in range(400)
    ]
    for low, high, values in (
        (-10, 10, [t.rotation_degrees for t in drawn]),
        (-0.1, 0.1, [t.shift[0] for t in drawn]),
        (-0.2, 0.2, [t.shift[1] for t in drawn]),
        (-5, 5, [t.shear_degrees for t in drawn]),
        (0.8, 1.5, [z for t in drawn for z in t.zoom]),
        (-30, 30, [t.intensity_shift for t in drawn]),
    ):
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high >= max(values) > high - 0.05 * (high - low)
        assert abs(np.mean(values) - (low + high) / 2) < 0.1 * (high - low)
    flips = [t.flip[1] for t in drawn]
    assert 150 < sum(flips) < 250 and not any(t.flip[0] for t in drawn)
    assert len({t.warp_seed for t in drawn}) == 400


def test_switching_one_range_on_leaves_the_other_draws():
    plain = draw_image_transform(rotation_range=10, rng=5)
    more = draw_image_transform(rotation_range=10, zoom_range=0.1, spline_warp=True, horizontal_flip=True, rng=5)
    assert plain.rotation_degrees == more.rotation_degrees != 0


def test_one_generator_goes_on_and_no_seed_is_new_every_time():
    rng = np.random.default_rng(8)
    first, second = (draw_image_transform(rotation_range=10, rng=rng) for _ in range(2))
    assert first != second
    assert draw_image_transform(rotation_range=10) != draw_image_transform(rotation_range=10)


@pytest.mark.parametrize("with_y", [None, "channels", "plain"])
def test_a_stack_is_its_images_one_by_one(with_y):
    x = random_image((5, 2, 30, 40))
    y = {None: None, "channels": random_labels((5, 3, 30, 40)), "plain": random_labels((5, 30, 40))}[with_y]
    options = {"rotation_range": 30, "crop_size": (20, 25)}
    got = image_stack_random_transform(x, y=y, rng=11, **options)
    rng = np.random.default_rng(11)
    for k in range(5):
        one = image_random_transform(x[k], None if y is None else y[k], rng=rng, **options)
        for part, expected in zip(got if with_y else [got], one if with_y else [one], strict=True):
            np.testing.assert_array_equal(part[k], expected)


def test_stacks_of_other_shapes():
    x = random_image((2, 3, 16, 4, 18))
    options = {"rotation_range": 30, "rng": 2}
    last = image_stack_random_transform(x, channel_axis=3, **options)
    assert last.shape == x.shape
    usual = image_stack_random_transform(np.moveaxis(x, 3, 2).reshape(6, 4, 16, 18), 30, rng=2)
    np.testing.assert_array_equal(np.moveaxis(last, 3, 2).reshape(6, 4, 16, 18), usual)
    plain = image_stack_random_transform(x[0, :, :, 0], y=x[0, :, :, 0] > 0, channel_axis=None, **options)
    assert plain[0].shape == plain[1].shape == (3, 16, 18) and plain[1].dtype == bool
    one = image_stack_random_transform(x[0, 0, :, 0], channel_axis=None, **options)
    np.testing.assert_array_equal(one, image_random_transform(x[0, 0, :, 0], **options))


def test_threads_do_not_change_results():
    x, y = random_image((200, 200)), random_labels((200, 200))
    transforms = [draw_image_transform(**EVERYTHING, rng=seed) for seed in range(24)]
    expected = [transform(x, y) for transform in transforms]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda transform: transform(x, y), transforms, timeout=60))
    for (x1, y1), (x2, y2) in zip(expected, got, strict=True):
        np.testing.assert_array_equal(x1, x2)
        np.testing.assert_array_equal(y1, y2)


@pytest.mark.parametrize("channel_axis", [0, -1])
def test_no_copy_of_the_image_is_made(channel_axis):
    shape = (2, 1024, 1024) if channel_axis == 0 else (1024, 1024, 2)
    x, y = random_image(shape), random_labels((1024, 1024))
    transform = draw_image_transform(**{**EVERYTHING, "crop_size": None}, rng=1)
    transform(x, y, channel_axis)
    tracemalloc.start()
    got_x, got_y = transform(x, y, channel_axis)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < got_x.nbytes + got_y.nbytes + 500_000


IMAGE = np.zeros((1, 8, 9), dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fill_mode": "mirror"}, "fill_mode='mirror' is none of nearest, constant, reflect, wrap"),
        ({"crop_size": (9, 9)}, r"crop_size=\(9, 9\) is larger than the image, \(8, 9\)"),
        ({"crop_size": 5}, "crop_size=5: give"),
        ({"crop_size": (0, 5)}, "crop_size=0"),
        ({"rotation_range": float("nan")}, "rotation_range=nan"),
        ({"rotation_range": -5}, "rotation_range=-5"),
        ({"rotation_range": "much"}, "rotation_range='much' is not a number"),
        ({"width_shift_range": float("inf")}, "width_shift_range=inf"),
        ({"shear_range": 90}, "shear_range=90"),
        ({"zoom_range": 1.0}, "zoom_range=1.0 reaches from 0 to 2"),
        ({"zoom_range": (1.2, 0.8)}, "zoom_range=(.*) reaches from 1.2 to 0.8"),
        ({"zoom_range": (1, 2, 3)}, "zoom_range"),
        ({"zoom_range": float("nan")}, "zoom_range=nan"),
        ({"warp_grid_size": 1}, "warp_grid_size=1"),
        ({"warp_sigma": -0.1, "spline_warp": True}, "warp_sigma=-0.1"),
        ({"cval_x": float("nan")}, "cval_x=nan"),
        ({"swap_labels": (1, 2, 3)}, "swap_labels"),
        ({"channel_axis": 3}, "channel_axis=3"),
        ({"channel_axis": None}, r"x has shape \(1, 8, 9\)"),
        ({"y": np.zeros((8, 8), np.uint8)}, r"x has height and width \(8, 9\), y has \(8, 8\)"),
        ({"y": np.zeros((8, 9), np.uint8), "cval_y": 300}, "not all fit into a mask of uint8"),
        ({"y": np.zeros((8, 9), np.uint8), "cval_y": 0.5}, "not all fit into a mask of uint8"),
        ({"y": np.zeros((8, 9), complex)}, "y has dtype complex128"),
    ],
)
def test_mistakes_are_named_in_one_line(options, words):
    with pytest.raises(LungmillError, match=words) as caught:
        image_random_transform(IMAGE, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", [IMAGE.astype(complex), IMAGE.astype(np.float16), IMAGE[:, :0], IMAGE[0, 0], "scan"])
def test_what_is_no_image_is_refused(x):
    with pytest.raises(LungmillError, match="x has"):
        image_random_transform(x)


def test_stacks_that_do_not_fit_are_refused():
    with pytest.raises(LungmillError, match="y one of"):
        image_stack_random_transform(random_image((3, 1, 8, 8)), y=random_labels((2, 8, 8)))
    with pytest.raises(LungmillError, match="too few axes"):
        image_stack_random_transform(random_image((8, 8)))
    with pytest.raises(LungmillError, match="transform 'Turn' is none of"):
        transform_from_dict({"transform": "Turn"})
    with pytest.raises(LungmillError, match="ImageTransform has no parameter angle"):
        transform_from_dict({"transform": "ImageTransform", "angle": 3})
