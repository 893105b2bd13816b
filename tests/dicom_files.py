"""DICOM series for tests, written with pydicom from a function of space: the truth is known at every point."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

AXIAL = (1, 0, 0, 0, 1, 0)


def plane_points(position, orientation, pixel_spacing, rows, columns):
    """LPS positions (rows, columns, 3), (x, y, z), of one slice's pixels: DICOM PS3.3 equation C.7.6.2.1-1."""
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    i = np.arange(columns)[None, :, None] * pixel_spacing[1] * right
    j = np.arange(rows)[:, None, None] * pixel_spacing[0] * down
    return np.array(position, float) + i + j


def new_slice(position, orientation=AXIAL, pixel_spacing=(1.0, 1.0), stored=None, number=1, **attributes):
    """A CT slice as a pydicom data set; `attributes` override or add, None removes."""
    stored = np.zeros((4, 4), np.int16) if stored is None else stored
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.1.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.Manufacturer = "SIEMENS"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.3"
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [f"{mm:.6f}"[:16] for mm in position]
    dataset.ImageOrientationPatient = [f"{cosine:.10f}"[:16] for cosine in orientation]
    dataset.PixelSpacing = [f"{mm:.8f}"[:16] for mm in pixel_spacing]
    dataset.SliceThickness = 99  # wrong on purpose: nothing may depend on it
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = stored.tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset: pydicom.Dataset, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, scene, positions, orientation=AXIAL, pixel_spacing=(1.0, 1.0), shape=(48, 48), **attributes):
    """Write one file per position in shuffled order; pixels are `scene(points)`, HU at (..., 3) points (x, y, z)."""
    order = np.random.default_rng(0).permutation(len(positions))
    for number, k in enumerate(order, start=1):
        points = plane_points(positions[k], orientation, pixel_spacing, *shape)
        stored = np.rint(scene(points)).astype(np.int16)
        save(
            new_slice(positions[k], orientation, pixel_spacing, stored, number, **attributes),
            Path(folder) / f"IM{number:04d}",
        )


def stack(origin, step, count):
    """Positions of `count` slices from `origin`, each a vector `step` further."""
    return [tuple(np.array(origin, float) + k * np.array(step, float)) for k in range(count)]


def chest_like(points):
    """Air, and a body with a smooth gradient: enough for the check of Hounsfield units."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    body = ((x / 20) ** 2 + (y / 15) ** 2) < 1
    return np.where(body, 40 + 0.5 * x + 0.3 * y + 0.2 * z, -1000.0)
