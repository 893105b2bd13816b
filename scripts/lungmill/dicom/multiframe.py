"""Multi-frame CT objects: one header per frame, put together from the functional groups (PS3.3 C.7.6.16)."""

import warnings
from dataclasses import replace

import pydicom

from lungmill.dicom.header import Header
from lungmill.dicom.source import open_source
from lungmill.dicom.stream import locate_items
from lungmill.dicom.values import read_codes, read_integer, read_number, read_numbers, read_text, unless_broken
from lungmill.errors import DicomError

# Enhanced CT and Legacy Converted Enhanced CT keep their geometry in functional groups even for a single frame.
ENHANCED_CLASSES = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


def is_multiframe(header: Header) -> bool:
    """True where position and rescale are not the header's own but its frames'."""
    return header.is_ct and (header.frames > 1 or header.sop_class in ENHANCED_CLASSES)


def split_frames(root, header: Header) -> list[Header]:
    """Return one header per frame of `root/header.file`, in the file's order; a frame's own groups precede shared ones.

    Attributes that no functional group holds stay as the file's header has them, but for geometry, which is then
    absent. Raises DicomError, 'unreadable' or 'no_geometry', and OSError.
    """
    if not is_multiframe(header):
        return [header]
    try:
        with warnings.catch_warnings(), open_source(root).open_bounded(header.file) as stream:
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(GROUPS))
            shared = next(iter(dataset.get(GROUPS[0]) or ()), {})
            frames = dataset.get(GROUPS[1]) or ()
            if not 0 < header.frames <= len(frames):
                raise DicomError("no_geometry", f"{header.file} describes {len(frames)} of its {header.frames} frames")
            items = [None] * header.frames
            if header.pixels is not None and header.pixels.fragments == header.frames:
                items = locate_items(stream, header.pixels.offset)
            return [_frame_header(header, shared, frames[k], k, items[k]) for k in range(header.frames)]
    except (DicomError, OSError):
        raise
    except Exception as error:  # pydicom raises anything for broken elements
        # The text of pydicom's own message may hold header values, so only its kind is passed on.
        raise DicomError("unreadable", f"{header.file}: frames cannot be parsed ({type(error).__name__})") from error


def _frame_header(header, shared, own, number, item):
    def group(keyword):
        """The single item of a functional group: the frame's own, else the shared one."""
        for groups in (own, shared):
            items = groups.get(keyword)
            if items:
                return items[0]
        return {}

    measures, content = group("PixelMeasuresSequence"), group("FrameContentSequence")
    transformation, frame_type = group("PixelValueTransformationSequence"), group("CTImageFrameTypeSequence")
    acquisition = unless_broken(read_integer, content, "FrameAcquisitionNumber")
    return replace(
        header,
        frame=number,
        item=item,
        stack=read_text(content, "StackID"),
        instance=number + 1,
        acquisition=header.acquisition if acquisition is None else acquisition,
        image_type=read_codes(frame_type, "FrameType") or header.image_type,
        position=read_numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=read_numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        pixel_spacing=read_numbers(measures, "PixelSpacing", 2),
        thickness=unless_broken(read_number, measures, "SliceThickness"),
        slope=read_number(transformation, "RescaleSlope", header.slope),
        intercept=read_number(transformation, "RescaleIntercept", header.intercept),
    )
