"""A synthetic chest described by formulas in the patient's frame: for the demo cohort, tests and benchmarks.

Everything is in mm, points are [z, y, x] in DICOM's LPS axes (z to the head, y to the back, x to the patient's left)
with the carina at z = 0. Organs are signed distances (`phantom_shapes`); vessels and airways are chains of tapered
capsules, nodules are spheres (`phantom_tubes`). A sample's HU is a blend over the surfaces' distances, so the same
anatomy can be rendered exactly on any lattice, tilted ones included, and its labels are known on any grid. The shapes
and sizes are drawn by eye from adult chest CT; they model no measured population.
"""

from typing import NamedTuple

import numpy as np

from lungmill.errors import LungmillError
from lungmill.phantom_shapes import AIR, BLOOD, TEXTURE_CELLS, label_lungs, lung_distances, render_lattice
from lungmill.phantom_tubes import Nodule, add_branches, cover, draw_nodules, mediastinal_tubes, sphere

__all__ = ["Anatomy", "Build", "Nodule", "pad_outside_circle", "scanner_noise"]

# The sets of tubes in the order in which they are rendered: a later one covers an earlier one.
TUBES_HU = (("great", BLOOD), ("bones", 450.0), ("vessels", 42.0), ("walls", 10.0), ("lumens", AIR))


class Build(NamedTuple):
    """What differs between patients in the formulas; scales have no unit, the rest is mm."""

    scale_z: float
    scale_y: float
    scale_x: float
    bend: float  # how far the trunk is bent forward 150 mm above or below its middle
    fat: float  # thickness of the subcutaneous fat
    heart: float  # scale of the heart
    dome_right: float  # height of the diaphragm above the usual one
    dome_left: float
    middle: float  # x of the mediastinum's middle
    junction: float  # half the thickness of the anterior junction line
    table: float  # y of the table's surface at x = 0; below zero for a prone patient
    phase: float  # where in the texture this patient begins


class Anatomy:
    """One patient: `build` (numbers of the formulas), `nodules`, and `tubes` (sets of capsules, float64 (n, 8))."""

    def __init__(self, build, nodules, tubes, texture):
        self.build = build
        self.nodules = nodules
        self.tubes = tubes
        self._texture = texture

    @classmethod
    def random(cls, seed, prone=False):
        """Draw a patient; the same seed (an int or a sequence of ints) gives the same patient.

        `prone` puts the table in front of the patient and lets fluid and gas settle accordingly.
        """
        rng = np.random.default_rng(seed)
        texture = (rng.standard_normal((TEXTURE_CELLS,) * 3) * 0.5).clip(-1, 1).astype(np.float32)
        build = Build(
            bend=rng.uniform(5.0, 10.0),
            fat=rng.uniform(9.0, 17.0),
            heart=rng.uniform(0.94, 1.08),
            dome_right=rng.uniform(-8.0, 8.0),
            dome_left=rng.uniform(-8.0, 6.0),
            middle=rng.uniform(0.0, 4.0),
            junction=rng.uniform(0.7, 1.2),
            table=-130.0 if prone else 131.0,
            phase=rng.uniform(0.0, TEXTURE_CELLS),
            scale_z=rng.uniform(0.94, 1.04),
            scale_y=rng.uniform(0.95, 1.05),
            scale_x=rng.uniform(0.93, 1.02),
        )
        anatomy = cls(build, [], mediastinal_tubes(build), texture)
        add_branches(rng, anatomy)
        anatomy.nodules = draw_nodules(rng, anatomy)
        return anatomy

    def lung_distances(self, points_mm):
        """Distances (n, 3) float64 in mm from points (n, 3) to the right lung, the left lung and the inner chest wall.

        Negative inside, exact on the surface and first order away from it.
        """
        points = np.ascontiguousarray(points_mm, dtype=np.float64)
        out = np.empty((len(points), 3))
        lung_distances(self.build, self._texture, points, out)
        return out

    def render_slice(self, origin_mm, row_direction, column_direction, spacing_mm, shape, edge_mm=None):
        """Render HU without noise on a lattice of points, float32 of `shape` (rows, columns).

        Sample [i, j] is `origin_mm + i * spacing_mm[0] * column_direction + j * spacing_mm[1] * row_direction`; points
        and unit vectors are [z, y, x]. The names are DICOM's: along a row the column index grows, and `spacing_mm` is
        PixelSpacing. `edge_mm` is the width over which surfaces blend (default: the mean of the spacing).
        Raises LungmillError where the directions are not perpendicular unit vectors.
        """
        origin, row, column = (np.asarray(v, dtype=np.float64) for v in (origin_mm, row_direction, column_direction))
        if abs(row @ column) > 1e-4 or abs(row @ row - 1) > 1e-4 or abs(column @ column - 1) > 1e-4:
            raise LungmillError("render_slice: row and column directions must be perpendicular unit vectors")
        step_column, step_row = (float(mm) for mm in spacing_mm)
        edge = float(edge_mm) if edge_mm else (step_column + step_row) / 2
        out = np.empty(shape, dtype=np.float32)
        render_lattice(self.build, self._texture, origin, row * step_row, column * step_column, edge, out)
        lattice = (origin, row, column, step_row, step_column, edge)
        share = np.empty_like(out)
        for name, hu in TUBES_HU:
            cover(share, self.tubes[name], *lattice)
            share *= hu - out
            out += share
        for nodule in self.nodules:
            cover(share, sphere(nodule), *lattice)
            np.maximum(out, out + share * (nodule.hu - out), out=out)
        return out

    def render(self, grid, edge_mm=None, noise_hu=0.0, seed=0):
        """Render a whole `Grid` as int16 HU, with noise of `noise_hu` seeded per slice. Values stop at -1024."""
        edge = edge_mm or float(np.prod(grid.spacing_mm)) ** (1 / 3)
        out = np.empty(grid.shape, dtype=np.int16)
        for k, z in enumerate(grid.axis_mm(0)):
            origin = (z, grid.origin_mm[1], grid.origin_mm[2])
            image = self.render_slice(origin, (0, 0, 1), (0, 1, 0), grid.spacing_mm[1:], grid.shape[1:], edge)
            if noise_hu:
                image += scanner_noise(image.shape, noise_hu, (seed, k))
            out[k] = np.rint(image).clip(-1024, 3071)
        return out

    def labels(self, grid, of="lungs"):
        """The truth at the voxel centres of a `Grid`, uint8.

        `of` is "lungs" (1 right, 2 left: vessels, bronchi and nodules in the lung are lung, trachea and main bronchi
        with their walls are not), "trachea" (1: the lumen of the trachea and the main bronchi) or "nodules" (1, 2, ...
        in the order of `nodules`, also where they reach into the chest wall). Raises LungmillError for another `of`.
        """
        sets = {
            "lungs": [(0, self.tubes["main_walls"])],
            "trachea": [(1, self.tubes["main_lumens"])],
            "nodules": [(number, sphere(nodule)) for number, nodule in enumerate(self.nodules, start=1)],
        }
        if of not in sets:
            raise LungmillError(f'labels: of={of!r} is none of "lungs", "trachea", "nodules"')
        out = np.zeros(grid.shape, dtype=np.uint8)
        ys, xs = grid.axis_mm(1), grid.axis_mm(2)
        share = np.empty(grid.shape[1:], dtype=np.float32)
        row, column = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
        for k, z in enumerate(grid.axis_mm(0)):
            if of == "lungs":
                label_lungs(self.build, self._texture, z, ys, xs, out[k])
            for label, tubes in sets[of]:
                origin = np.array([z, ys[0], xs[0]])
                cover(share, tubes, origin, row, column, float(grid.spacing_mm[2]), float(grid.spacing_mm[1]), 1e-6)
                out[k][share >= 0.5] = label
        return out


def scanner_noise(shape, sigma_hu, seed):
    """Gaussian noise of `sigma_hu`, correlated as by a soft reconstruction kernel (binomial 3 x 3), float32 of `shape`.

    `seed` is an int or a sequence of ints; give every slice its own.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((shape[0] + 2, shape[1] + 2), dtype=np.float32)
    noise = noise[:-2] + 2 * noise[1:-1] + noise[2:]
    noise = noise[:, :-2] + 2 * noise[:, 1:-1] + noise[:, 2:]
    return noise * np.float32(sigma_hu / 6)  # sqrt(1 + 4 + 1) for each of the two directions


def pad_outside_circle(image, value):
    """Set what lies outside the reconstruction circle (diameter: the shorter side) to `value`, in place."""
    rows, columns = image.shape
    i, j = np.arange(rows)[:, None] - (rows - 1) / 2, np.arange(columns) - (columns - 1) / 2
    image[i * i + j * j > (min(rows, columns) / 2) ** 2] = value
