"""Measure augmentation against compositions of scipy and scikit-image that do the same work, in the same run.

    python benchmarks/augmentation.py [--repeats 9]

Images and masks come from the phantom. Every line draws one transform, checks that both ways give the same image, and
then runs them in turn on one thread. What counts is the ratio of CPU times within one round; printed are its median and
range over the rounds, after one unmeasured round, and how many images a second of CPU makes.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import numpy as np
from scipy import ndimage
from skimage import transform as skimage_transform

from lungmill.grid import Grid
from lungmill.phantom import Anatomy
from lungmill.training.composition import Compose
from lungmill.training.image_transform import ImageTransform
from lungmill.training.volume_transforms import Affine, Blur, Elastic, Flip, Gamma, Intensity, Noise

AFFINE_2D = {"rotation_degrees": 12.0, "zoom": (1.1, 0.95), "shear_degrees": 4.0, "shift": (0.05, -0.08)}
ALL_2D = AFFINE_2D | {"flip": (False, True), "warp_sigma": 0.08, "warp_seed": 3, "intensity_shift": 25.0}
AFFINE_3D = Affine((10, -6, 4), (1.1, 1.1, 1.1), (2, 0, 3), (3, -2, 4))
ELASTIC_3D = Elastic(sigma_mm=3.0, control_mm=24.0, seed=5)
INTENSITIES = [Blur(0.8), Intensity(1.05, 20.0), Gamma(1.2), Noise(15.0, 2)]
TIMES = 8  # images per measurement


def scipy_affine(image, mask, matrix):
    """What Keras' ImageDataGenerator did: one composed matrix, linear for the image, nearest for the mask."""
    linear, offset = matrix[:, :-1], matrix[:, -1]
    return (
        ndimage.affine_transform(image, linear, offset, order=1, mode="nearest"),
        ndimage.affine_transform(mask, linear, offset, order=0, mode="nearest"),
    )


def skimage_affine(image, mask, matrix):
    """scikit-image counts columns first."""
    swapped = np.eye(3)
    swapped[:2, :2], swapped[:2, 2] = matrix[::-1, 1::-1], matrix[::-1, 2]
    mapping = skimage_transform.AffineTransform(matrix=swapped)
    return (
        skimage_transform.warp(image, mapping, order=1, mode="edge", preserve_range=True),
        skimage_transform.warp(mask, mapping, order=0, mode="edge", preserve_range=True),
    )


def scipy_warped(image, mask, control, lattice, matrix, shift=0.0):
    """Displacements from their control points (in pixels), one composed map, two interpolations, a shift."""
    points = np.indices(image.shape, dtype=np.float32)
    for axis, values in enumerate(control):
        points[axis] += ndimage.map_coordinates(values, lattice, order=3, mode="nearest", prefilter=False)
    points = np.tensordot(matrix[:, :-1], points, 1) + matrix[:, -1].reshape(-1, *[1] * image.ndim)
    return (
        ndimage.map_coordinates(image, points, order=1, mode="nearest") + np.float32(shift),
        ndimage.map_coordinates(mask, points, order=0, mode="nearest"),
    )


def warp_of_image(transform, shape):
    """Control points in pixels and every pixel's place among them, as `ImageTransform` defines them."""
    extent = np.reshape(shape, (2, 1, 1)) - 1
    return transform.control_points() * extent, np.indices(shape) * (transform.warp_grid_size - 1) / extent


def warp_of_volume(elastic, shape):
    control = elastic.control_points(shape)
    middle = (np.reshape(control.shape[1:], (3, 1, 1, 1)) - 1) / 2
    return control, (np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2) / elastic.control_mm + middle


def scipy_intensities(image):
    """The four steps of INTENSITIES in NumPy and scipy."""
    image = ndimage.gaussian_filter(image, 0.8, mode="nearest") * np.float32(1.05) + np.float32(20)
    low, high = np.float32(-1024), np.float32(1024)
    inside = (image > low) & (image < high)
    image[inside] = low + (high - low) * ((image[inside] - low) / (high - low)) ** np.float32(1.2)
    return image + np.float32(15) * np.random.default_rng(2).standard_normal(image.shape, dtype=np.float32)


def lines(image, mask, volume, labels):
    """Yield (name, lungmill's way, the other way); both return (image, mask)."""
    for size in (512, 256, 128):
        step = len(image) // size
        x, y = image[::step, ::step].copy(), mask[::step, ::step].copy()
        affine, everything = ImageTransform(**AFFINE_2D), ImageTransform(**ALL_2D)
        matrix = affine.matrix(x.shape)
        yield (
            f"{size}^2 affine: scipy",
            lambda t=affine, x=x, y=y: t(x, y),
            lambda x=x, y=y, m=matrix: scipy_affine(x, y, m),
        )
        yield (
            f"{size}^2 affine: scikit-image",
            lambda t=affine, x=x, y=y: t(x, y),
            lambda x=x, y=y, m=matrix: skimage_affine(x, y, m),
        )

        def composed(t=everything, x=x, y=y):
            control, lattice = warp_of_image(t, x.shape)
            return scipy_warped(x, y, control, lattice, t.matrix(x.shape), t.intensity_shift)

        yield f"{size}^2 affine, flip, warp, shift: scipy", lambda t=everything, x=x, y=y: t(x, y), composed
    (matrix,) = AFFINE_3D._links(volume.shape, (1.0, 1.0, 1.0))
    yield "64^3 affine: scipy", lambda: AFFINE_3D(volume, labels), lambda: scipy_affine(volume, labels, matrix)

    def moved():
        control, lattice = warp_of_volume(ELASTIC_3D, volume.shape)
        return scipy_warped(volume, labels, control, lattice, matrix)

    chain = Compose([AFFINE_3D, ELASTIC_3D])
    yield "64^3 affine, elastic: scipy", lambda: chain(volume, labels), moved
    flipped = Compose([AFFINE_3D, ELASTIC_3D, Flip((2,)), *INTENSITIES])

    def everything():
        image, mask = moved()
        return scipy_intensities(image[:, :, ::-1]), mask[:, :, ::-1]

    yield "64^3 affine, elastic, flip, 4 intensities", lambda: flipped(volume, labels), everything


def check(name, ours, other):
    """Both ways make the same image; labels differ at most where a point lies halfway between two voxels."""
    (image, mask), (other_image, other_mask) = ours(), other()
    if np.abs(image - other_image).max() > 0.25 or np.mean(mask != other_mask) > 1e-4:
        raise SystemExit(f"{name}: not the same work, {np.abs(image - other_image).max():.3f} HU apart")


def cpu(function):
    start = time.process_time()
    for _ in range(TIMES):
        function()
    return (time.process_time() - start) / TIMES


def measure(repeats):
    anatomy = Anatomy.random(2017)
    image, mask = render(anatomy, Grid((1, 512, 512), (1.0, 0.7, 0.7), (-40.0, -178.0, -178.0)))
    volume, labels = render(anatomy, Grid((64, 64, 64), (1.0, 1.0, 1.0), (-60.0, -20.0, -110.0)))
    print(f"{'work: instead of lungmill':<44} {'lungmill':>10} {'instead':>10}   times faster (range)")
    for name, ours, other in lines(image[0], mask[0], volume, labels):
        check(name, ours, other)
        times = [(cpu(ours), cpu(other)) for _ in range(repeats + 1)][1:]
        ratios = [b / a for a, b in times]
        rates = [1 / statistics.median(seconds) for seconds in zip(*times, strict=True)]
        spread = f"{statistics.median(ratios):5.1f}  ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"{name:<44} {rates[0]:8.0f}/s {rates[1]:8.0f}/s   {spread}", flush=True)


def render(anatomy, grid):
    return anatomy.render(grid, noise_hu=15.0).astype(np.float32), anatomy.labels(grid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    measure(parser.parse_args().repeats)
