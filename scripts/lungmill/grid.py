"""Regular grids of voxel centres in the patient frame: what ties an array's indices to millimetres."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Voxel centres at `origin_mm + index * spacing_mm`, axes [z, y, x] along DICOM's LPS axes.

    z grows to the head, y to the back, x to the patient's left (DICOM PS3.3 C.7.6.2.1.1).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @classmethod
    def from_dict(cls, sidecar):
        """Take the grid out of the JSON beside a volume or a mask."""
        return cls(
            tuple(int(n) for n in sidecar["shape"]),
            tuple(float(mm) for mm in sidecar["spacing_mm"]),
            tuple(float(mm) for mm in sidecar["origin_mm"]),
        )

    def as_dict(self):
        """The three keys as they stand in the JSON beside a volume."""
        return {"shape": list(self.shape), "spacing_mm": list(self.spacing_mm), "origin_mm": list(self.origin_mm)}

    def to_index(self, points_mm):
        """Map points (..., 3), [z, y, x] in LPS mm, to fractional indices (float64)."""
        return (np.asarray(points_mm, dtype=np.float64) - self.origin_mm) / self.spacing_mm

    def to_mm(self, indices):
        """Map indices (..., 3), [z, y, x], to points in LPS mm (float64)."""
        return np.asarray(indices, dtype=np.float64) * self.spacing_mm + self.origin_mm

    def axis_mm(self, axis):
        """Positions of the voxel centres along one axis, in mm (float64)."""
        return self.origin_mm[axis] + np.arange(self.shape[axis]) * self.spacing_mm[axis]
