"""Enhanced (multi-frame) CT objects for tests, written with pydicom from the data sets of single slices."""

import numpy as np
from dicom_files import AXIAL, new_slice, plane_points
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

SERIES = "1.2.826.0.1.3680043.8.498.2"


def item(**attributes):
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return [dataset]


def scene_frames(scene, positions, orientation=AXIAL, pixel_spacing=(1.0, 1.0), shape=(48, 48), slope=1.0):
    """Stored values (int16) of each slice through `scene`, for RescaleSlope `slope` and intercept -1024."""
    planes = [scene(plane_points(position, orientation, pixel_spacing, *shape)) for position in positions]
    return [np.rint((plane + 1024) / slope).astype(np.int16) for plane in planes]


def new_multiframe(
    frames, positions, orientations=AXIAL, pixel_spacing=(1.0, 1.0), rescale=(1.0, -1024.0), stacks=None, **attributes
):
    """An enhanced CT object.

    frames: one array per frame. orientations, rescale: one for all frames, then written as shared, or a list.
    stacks: a StackID per frame. attributes: as in `dicom_files.new_slice`.
    """
    frames = np.stack(frames)
    dataset = new_slice(
        positions[0], stored=frames[0], ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
        SliceThickness=None, RescaleSlope=None, RescaleIntercept=None, SOPClassUID=EnhancedCTImageStorage,
    )  # fmt: skip
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = frames.tobytes()
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=list(pixel_spacing), SliceThickness=99)
    own = [Dataset() for _ in frames]
    if np.ndim(orientations) == 1:
        shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(orientations))
    if np.ndim(rescale) == 1:
        shared.PixelValueTransformationSequence = rescale_item(*rescale)
    for k, groups in enumerate(own):
        groups.FrameContentSequence = item(FrameAcquisitionNumber=1, InStackPositionNumber=k + 1)
        groups.FrameContentSequence[0].StackID = str(stacks[k]) if stacks else "1"
        groups.PlanePositionSequence = item(ImagePositionPatient=[float(mm) for mm in positions[k]])
        if np.ndim(orientations) == 2:
            groups.PlaneOrientationSequence = item(ImageOrientationPatient=list(orientations[k]))
        if np.ndim(rescale) == 2:
            groups.PixelValueTransformationSequence = rescale_item(*rescale[k])
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = own
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def rescale_item(slope, intercept):
    return item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
