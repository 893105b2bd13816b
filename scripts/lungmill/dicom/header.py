"""One DICOM file's header, reduced to the technical attributes that lungmill needs and is allowed to keep."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from lungmill.dicom.stream import PixelData, locate_pixel_data
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
    "GantryDetectorTilt",
    "PatientPosition",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
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
    "LossyImageCompression",
]

CT_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}

# A file without the 128-byte preamble still starts with group 0002 or 0008, in either byte order.
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself. Vectors are in DICOM's order (x, y, z), LPS mm; absent attributes are None."""

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
    photometric: str | None
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    kvp: float | None
    tilt: float | None
    patient_position: str | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    lossy: bool
    pixels: PixelData | None

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
    """Read the header of `root/file`, or return None where the file is no DICOM file.

    Pixel data are located and measured, not read. Raises DicomError('unreadable') for a DICOM file that
    cannot be parsed and OSError for one that cannot be opened.
    """
    path = Path(root) / file
    with path.open("rb") as stream:
        start = stream.read(132)
        has_preamble = start[128:] == b"DICM"
        if not has_preamble and not start.startswith(FIRST_GROUPS):
            return None
        stream.seek(0)
        try:
            dataset = pydicom.dcmread(
                stream, stop_before_pixels=True, force=not has_preamble, specific_tags=list(KEYWORDS)
            )
            if not has_preamble and not any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows")):
                return None
            return _header(file, dataset, stream)
        except (DicomError, OSError):
            raise
        except InvalidDicomError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error, EOFError,
                NotImplementedError, OverflowError, RecursionError) as error:  # fmt: skip
            # The text of pydicom's own message may hold header values, so only its kind is passed on.
            raise DicomError("unreadable", f"{file} cannot be parsed ({type(error).__name__})") from error


def _header(file, dataset, stream):
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    implicit, little = dataset.original_encoding
    if syntax is None:
        syntax = _guess_syntax(implicit, little)
    return Header(
        file=file,
        size=os.fstat(stream.fileno()).st_size,
        sop_class=_text(dataset, "SOPClassUID"),
        sop_instance=_text(dataset, "SOPInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        modality=_text(dataset, "Modality"),
        manufacturer=_text(dataset, "Manufacturer"),
        image_type=tuple(str(value).upper() for value in _values(dataset, "ImageType")),
        transfer_syntax=str(syntax),
        acquisition=_unless_broken(_integer, dataset, "AcquisitionNumber"),
        instance=_unless_broken(_integer, dataset, "InstanceNumber"),
        frames=_integer(dataset, "NumberOfFrames") or 1,
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        samples=_integer(dataset, "SamplesPerPixel") or 1,
        photometric=_text(dataset, "PhotometricInterpretation"),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
        thickness=_unless_broken(_number, dataset, "SliceThickness"),
        kvp=_unless_broken(_number, dataset, "KVP"),
        tilt=_unless_broken(_number, dataset, "GantryDetectorTilt"),
        patient_position=_text(dataset, "PatientPosition"),
        bits_allocated=_integer(dataset, "BitsAllocated"),
        bits_stored=_integer(dataset, "BitsStored"),
        high_bit=_integer(dataset, "HighBit"),
        signed=_integer(dataset, "PixelRepresentation") == 1,
        slope=_number(dataset, "RescaleSlope", 1.0),
        intercept=_number(dataset, "RescaleIntercept", 0.0),
        padding=_padding(dataset),
        lossy=_text(dataset, "LossyImageCompression") == "01",
        pixels=locate_pixel_data(stream, UID(str(syntax)), implicit, little),
    )


def _guess_syntax(implicit, little):
    """The transfer syntax of a file that does not name one, from how pydicom managed to read it."""
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _values(dataset, keyword):
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else (value,)


def _text(dataset, keyword):
    values = _values(dataset, keyword)
    return str(values[0]).strip() or None if values else None


def _number(dataset, keyword, absent=None):
    values = _values(dataset, keyword)
    number = float(values[0]) if values else None
    return number if number is not None and abs(number) < 1e9 else absent


def _integer(dataset, keyword):
    number = _number(dataset, keyword)
    return None if number is None else int(number)


def _unless_broken(read, dataset, keyword):
    """The value of an attribute that nothing depends on, None where it does not parse."""
    try:
        return read(dataset, keyword)
    except (ValueError, TypeError):
        return None


def _numbers(dataset, keyword, count):
    values = _values(dataset, keyword)
    if len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(abs(number) < 1e9 for number in numbers) else None


def _padding(dataset):
    """PixelPaddingValue and PixelPaddingRangeLimit as a closed range of stored values.

    Both take the sign of PixelRepresentation, but files write 63536 for -2000 (seen in LIDC-IDRI).
    """
    value = _integer(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    bounds = [value, value if limit is None else limit]
    if _integer(dataset, "PixelRepresentation") == 1:
        bits = _integer(dataset, "BitsAllocated") or 16
        bounds = [bound - (1 << bits) if bound >= 1 << (bits - 1) else bound for bound in bounds]
    return min(bounds), max(bounds)
