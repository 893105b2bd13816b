"""One DICOM file's header, reduced to the technical attributes that lungmill needs and is allowed to keep."""

from dataclasses import dataclass

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, MediaStorageDirectoryStorage

from lungmill.dicom.scan import scan_header
from lungmill.dicom.source import open_source
from lungmill.dicom.stream import PixelData, locate_pixel_data, parse_header
from lungmill.dicom.values import (
    read_codes,
    read_integer,
    read_number,
    read_numbers,
    read_text,
    tag_and_vr,
    unless_broken,
)
from lungmill.errors import DicomError

# Everything that is read from a header. What is not named here cannot leave the input.
KEYWORDS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "Manufacturer",
    "SliceThickness",
    "KVP",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "LossyImageCompression",
]

TAGS = {int(tag): (tag, vr) for tag, vr in map(tag_and_vr, KEYWORDS)}

CT_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}

# A file without the 128-byte preamble still starts with group 0002 or 0008, in either byte order.
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


@dataclass(frozen=True, slots=True)
class Header:
    """What one file, or one frame of it, says of itself; absent attributes are None.

    Vectors are in DICOM's order (x, y, z), LPS mm. `frames` is how many the file holds, `frame` (from 0) and `stack`
    which one this is (see `lungmill.dicom.multiframe`); `item`: where the compressed bytes of one frame of several lie,
    if they are one item. `lut`: a Modality LUT takes the place of the rescale.
    """

    file: str
    size: int
    sop_class: str | None
    sop_instance: str | None
    series_uid: str | None
    modality: str | None
    manufacturer: str | None
    image_type: tuple[str, ...]
    transfer_syntax: str | None
    acquisition: int | None
    instance: int | None
    frames: int
    rows: int | None
    columns: int | None
    samples: int
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    kvp: float | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    lossy: bool
    pixels: PixelData | None
    frame_of_reference: str | None = None
    lut: bool = False
    frame: int = 0
    item: int | None = None
    stack: str | None = None

    @property
    def is_ct(self):
        """True for CT image objects; a file without SOPClassUID is believed if its Modality is CT."""
        return self.sop_class in CT_IMAGE_CLASSES or (self.sop_class is None and self.modality == "CT")

    @property
    def is_localizer(self):
        """True for scouts and topograms (ImageType value 3, PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.image_type

    @property
    def is_original(self):
        """False for reformatted or otherwise derived pixels (ImageType value 1)."""
        return not self.image_type or self.image_type[0] != "DERIVED"


def read_header(root, file: str) -> Header | None:
    """Read the header of `root/file`, or return None where it is no DICOM file, or no file.

    Pixel data are located and measured, not read. Raises DicomError('unreadable') for a DICOM file that
    cannot be parsed and OSError for one that cannot be opened.
    """
    stream = open_source(root).open_bounded(file)
    if stream is None:
        return None
    with stream:
        start = stream.read(132)
        has_preamble = start[128:] == b"DICM"
        if not has_preamble and not start.startswith(FIRST_GROUPS):
            return None
        try:
            scanned = scan_header(stream, TAGS) if has_preamble else None
            if scanned is not None:
                return _header(file, *scanned, stream=stream)
            stream.seek(0)
            dataset = parse_header(stream, not has_preamble, TAGS)
            if not has_preamble and not any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows")):
                return None
            syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
            implicit, little = dataset.original_encoding
            return _header(file, dataset, syntax or _guess_syntax(implicit, little), implicit, little, stream)
        except (DicomError, OSError):
            raise
        except InvalidDicomError:
            return None
        except Exception as error:  # pydicom raises anything for broken elements
            # The text of pydicom's own message may hold header values, so only its kind is passed on.
            raise DicomError("unreadable", f"{file} cannot be parsed ({type(error).__name__})") from error


def _header(file, dataset, syntax, implicit, little, stream):
    return Header(
        file=file,
        size=stream.size,
        sop_class=read_text(dataset, "SOPClassUID") or _directory_class(dataset),
        sop_instance=read_text(dataset, "SOPInstanceUID"),
        series_uid=read_text(dataset, "SeriesInstanceUID"),
        modality=read_text(dataset, "Modality"),
        manufacturer=read_text(dataset, "Manufacturer"),
        image_type=read_codes(dataset, "ImageType"),
        transfer_syntax=str(syntax),
        acquisition=unless_broken(read_integer, dataset, "AcquisitionNumber"),
        instance=unless_broken(read_integer, dataset, "InstanceNumber"),
        frames=max(read_integer(dataset, "NumberOfFrames") or 1, 1),
        rows=read_integer(dataset, "Rows"),
        columns=read_integer(dataset, "Columns"),
        samples=read_integer(dataset, "SamplesPerPixel") or 1,
        position=read_numbers(dataset, "ImagePositionPatient", 3),
        orientation=read_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=read_numbers(dataset, "PixelSpacing", 2),
        thickness=unless_broken(read_number, dataset, "SliceThickness"),
        kvp=unless_broken(read_number, dataset, "KVP"),
        bits_allocated=read_integer(dataset, "BitsAllocated"),
        bits_stored=read_integer(dataset, "BitsStored"),
        high_bit=read_integer(dataset, "HighBit"),
        signed=read_integer(dataset, "PixelRepresentation") == 1,
        slope=read_number(dataset, "RescaleSlope", 1.0),
        intercept=read_number(dataset, "RescaleIntercept", 0.0),
        padding=_padding(dataset),
        lossy=read_text(dataset, "LossyImageCompression") == "01",
        pixels=locate_pixel_data(stream, UID(str(syntax)), implicit, little),
        frame_of_reference=read_text(dataset, "FrameOfReferenceUID"),
        lut=bool(dataset.get("ModalityLUTSequence")),
    )


def _directory_class(dataset):
    """A DICOMDIR has no SOPClassUID but in its meta header (PS3.10 7.1); other files are not judged by theirs."""
    found = read_text(dataset.file_meta, "MediaStorageSOPClassUID") if hasattr(dataset, "file_meta") else None
    return found if found == MediaStorageDirectoryStorage else None


def _guess_syntax(implicit, little):
    """The transfer syntax of a file that does not name one, from how pydicom managed to read it."""
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _padding(dataset):
    """PixelPaddingValue and PixelPaddingRangeLimit as a closed range of stored values.

    Both take the sign of PixelRepresentation, but files write 63536 for -2000 (seen in LIDC-IDRI), or the reverse.
    """
    value = read_integer(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = read_integer(dataset, "PixelPaddingRangeLimit")
    bounds = [value, value if limit is None else limit]
    bits = read_integer(dataset, "BitsAllocated") or 16
    if bits not in (8, 16, 32):
        return min(bounds), max(bounds)
    if read_integer(dataset, "PixelRepresentation") == 1:
        bounds = [bound - (1 << bits) if bound >= 1 << (bits - 1) else bound for bound in bounds]
    else:
        bounds = [bound + (1 << bits) if bound < 0 else bound for bound in bounds]
    return min(bounds), max(bounds)
