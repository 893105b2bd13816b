"""Where the slices of a series lie in the patient, from ImagePositionPatient and ImageOrientationPatient alone."""

from dataclasses import dataclass

import numpy as np

from lungmill.errors import DicomError

# Two slices closer than this lie at the same position; scanners write positions to 1 µm or better.
SAME_POSITION_MM = 0.005
# Steps that differ from the median by more than this share are not even; rounding of positions stays far below.
UNEVEN_STEP = 0.02
# Direction cosines are written with 4 to 7 digits.
COSINE_TOLERANCE = 2e-3
# Table feed and slice normal are parallel in an untilted scan.
TILT_DEGREES = 0.1
ORIENTATIONS = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class SliceGeometry:
    """Sample positions of a stack of parallel slices: pixel [k, row, column] lies at
    `origins[k] + column * pixel_spacing[1] * row_direction + row * pixel_spacing[0] * column_direction`.

    origins: (n, 3) ImagePositionPatient of each slice, (x, y, z) in LPS mm, ascending along `normal`.
    row_direction, column_direction: unit vectors (x, y, z) along a row (growing column index) and along a
        column (growing row index), the two halves of ImageOrientationPatient.
    pixel_spacing: (between rows, between columns) in mm, as in DICOM's PixelSpacing (PS3.3 10.7.1.3).
    shape: (slices, rows, columns).
    """

    origins: np.ndarray
    row_direction: np.ndarray
    column_direction: np.ndarray
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int, int]

    @property
    def normal(self):
        """Unit vector across the slices: row direction x column direction."""
        return np.cross(self.row_direction, self.column_direction)

    @property
    def positions_mm(self):
        """Position of each slice along the normal, ascending."""
        return self.origins @ self.normal

    @property
    def steps_mm(self):
        """Distances between neighbouring slices along the normal."""
        return np.diff(self.positions_mm)

    @property
    def orientation(self):
        """The anatomical plane that the slices are nearest to: axial, coronal or sagittal."""
        return ORIENTATIONS[int(np.argmax(np.abs(self.normal)))]

    @property
    def tilt_degrees(self):
        """Angle between the normal and the way from the first to the last slice: gantry tilt, or drift."""
        way = self.origins[-1] - self.origins[0]
        length = np.linalg.norm(way)
        if length < SAME_POSITION_MM:
            return 0.0
        return float(np.degrees(np.arccos(np.clip(abs(way @ self.normal) / length, 0.0, 1.0))))

    def corners(self):
        """The outer sample positions of every slice, (n, 4, 3) in LPS mm, (x, y, z)."""
        _, rows, columns = self.shape
        along_row = (columns - 1) * self.pixel_spacing[1] * self.row_direction
        along_column = (rows - 1) * self.pixel_spacing[0] * self.column_direction
        offsets = np.stack([0 * along_row, along_row, along_column, along_row + along_column])
        return self.origins[:, None, :] + offsets[None]


def unit_directions(orientation):
    """Split ImageOrientationPatient into two exact, perpendicular unit vectors.

    Raises DicomError('inconsistent_geometry') where they are not unit length and perpendicular to within rounding.
    """
    row, column = np.array(orientation[:3], dtype=np.float64), np.array(orientation[3:], dtype=np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > COSINE_TOLERANCE:
        raise DicomError(
            "inconsistent_geometry", "ImageOrientationPatient does not hold two perpendicular unit vectors"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def slice_geometry(positions, orientation, pixel_spacing, rows: int, columns: int) -> tuple[SliceGeometry, np.ndarray]:
    """Sort slices along their normal.

    positions: (n, 3) ImagePositionPatient; the other arguments are shared by all slices.
    Returns the geometry and the order: slice k of the geometry is `positions[order[k]]`.
    """
    row, column = unit_directions(orientation)
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    order = np.argsort(positions @ np.cross(row, column), kind="stable")
    shape = (len(positions), rows, columns)
    return SliceGeometry(positions[order], row, column, tuple(pixel_spacing), shape), order


def check_steps(geometry: SliceGeometry, max_gap: float) -> list[dict]:
    """Judge the distances between slices; return warnings as dicts of `code` and `detail`.

    Raises DicomError('missing_slices') where a gap is wider than `max_gap` times the median step and
    DicomError('inconsistent_geometry') where slices coincide or drift sideways more than they advance.
    """
    steps = geometry.steps_mm
    if len(steps) == 0:
        return []
    if np.any(steps < SAME_POSITION_MM):
        raise DicomError("inconsistent_geometry", "several slices lie at the same position")
    median = float(np.median(steps))
    widest = float(steps.max())
    if widest > max_gap * median:
        raise DicomError(
            "missing_slices",
            f"a gap of {widest:.2f} mm is {widest / median:.1f} times the usual step of {median:.2f} mm"
            f" (series.max_gap is {max_gap:g})",
        )
    if geometry.tilt_degrees > 45:
        raise DicomError("inconsistent_geometry", "slices move sideways more than they advance: this is no volume")
    warnings = []
    multiples = np.rint(steps / median)
    gaps = (multiples >= 2) & (np.abs(steps / median - multiples) < UNEVEN_STEP * multiples)
    even = np.abs(steps - median) <= UNEVEN_STEP * median
    if gaps.any() and (gaps | even).all():
        missing = int((multiples[gaps] - 1).sum())
        places = ", ".join(f"{mm:.1f}" for mm in geometry.positions_mm[:-1][gaps][:5])
        warnings.append(
            _warning("missing_slices", f"{missing} missing after position {places} mm; interpolated from neighbours")
        )
    elif not even.all():
        warnings.append(_warning("irregular_spacing", f"steps from {steps.min():.2f} to {widest:.2f} mm"))
    if geometry.tilt_degrees > TILT_DEGREES:
        warnings.append(_warning("gantry_tilt", f"slices are sheared by {geometry.tilt_degrees:.1f} degrees"))
    return warnings


def _warning(code, detail):
    return {"code": code, "detail": detail}
