"""Resampled scans by other means: SimpleITK for even axial scans, pydicom and scipy for tilted and uneven ones."""

import numpy as np
import pydicom
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

AIR_HU = -1024


def points_of(grid):
    """LPS points (x, y, z) of all voxels of a grid."""
    z, y, x = np.meshgrid(*(grid.axis_mm(axis) for axis in range(3)), indexing="ij")
    return np.stack([x, y, z], axis=-1)


def simpleitk_linear(folder, grid):
    """HU of an even axial series on a grid, float32, by SimpleITK's own reader and linear interpolation."""
    files = sorted(folder.glob("*.dcm"), key=lambda path: _header(path).ImagePositionPatient[2])
    image = sitk.Clamp(sitk.ReadImage([str(path) for path in files]), lowerBound=AIR_HU)
    resampled = sitk.Resample(
        image,
        grid.shape[::-1],
        sitk.Transform(),
        sitk.sitkLinear,
        grid.origin_mm[::-1],
        grid.spacing_mm[::-1],
        np.eye(3).ravel().tolist(),
        AIR_HU,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(resampled)


def scipy_linear(folder, grid):
    """HU on a grid from the slices' own positions: any tilt, any steps. The stack is a sheared lattice of samples."""
    datasets = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    orientation = np.array(datasets[0].ImageOrientationPatient, float)
    right, down = orientation[:3], orientation[3:]
    normal = np.cross(right, down)
    datasets.sort(key=lambda dataset: np.dot(dataset.ImagePositionPatient, normal))
    origins = np.array([dataset.ImagePositionPatient for dataset in datasets], float)
    hounsfield = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in datasets])
    points = points_of(grid)
    along = points @ normal
    k = np.interp(along, origins @ normal, np.arange(len(origins)), left=-9, right=-9)
    origin = np.stack([np.interp(along, origins @ normal, origins[:, axis]) for axis in range(3)], axis=-1)
    between_rows, between_columns = (float(mm) for mm in datasets[0].PixelSpacing)
    coordinates = [k, ((points - origin) @ down) / between_rows, ((points - origin) @ right) / between_columns]
    return map_coordinates(hounsfield.clip(AIR_HU).astype(np.float32), coordinates, order=1, cval=AIR_HU)


def _header(path):
    return pydicom.dcmread(path, stop_before_pixels=True)
