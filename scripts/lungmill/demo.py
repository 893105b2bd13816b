"""The built-in demo cohort: eight synthetic patients as real DICOM CT series, each with one property of its own.

Importing this module is cheap: NumPy, numba and pydicom are imported when something is written. The same seed
gives the same bytes: fixed dates, UIDs from a hash, noise from the seed.
"""

import math
import uuid
from pathlib import Path
from typing import NamedTuple

from lungmill.errors import LungmillError
from lungmill.files import replacing, write_text


class Scan(NamedTuple):
    """How one patient was scanned and how the files were written."""

    name: str
    text: str  # SeriesDescription
    accepted: bool = True
    pixel_mm: float = 1.4
    step_mm: float = 2.5
    slices: int = 123
    first_mm: float = -192.0  # z of the first slice, at the middle of the image
    noise_hu: float = 18.0
    syntax: str = "explicit"  # explicit | implicit | jpeg2000 | rle
    prone: bool = False
    tilt_degrees: float = 0.0
    field_of_view: bool = False  # a circle, with padding outside
    localizer: bool = False
    from_the_top: bool = False  # instance 1 is the slice nearest to the head
    missing: int | None = None
    truncated: int | None = None
    file_name: str = "{hash}.dcm"  # {number}: instance number, {hash}: so that file order is not z order


SCANS = (
    Scan("demo-1-plain", "2.5 mm axial, shuffled file names"),
    Scan(
        "demo-2-thin-localizer",
        "1.6 mm axial with a localizer",
        pixel_mm=1.35,
        step_mm=1.6,
        slices=191,
        noise_hu=22.0,
        syntax="implicit",
        localizer=True,
        file_name="IM-0002-{number:04d}.dcm",
    ),
    Scan("demo-3-jpeg2000", "JPEG 2000 lossless", syntax="jpeg2000", noise_hu=16.0, from_the_top=True),
    Scan(
        "demo-4-rle-padding",
        "RLE lossless, round field of view, padding",
        pixel_mm=1.45,
        syntax="rle",
        field_of_view=True,
        file_name="DICOM/PA0/ST0/SE{folder}/IM{number:03d}",
    ),
    Scan(
        "demo-5-tilt",
        "gantry tilt of 12 degrees",
        slices=134,
        first_mm=-206.0,
        tilt_degrees=12.0,
        noise_hu=20.0,
        file_name="{number:04d}",
    ),
    Scan(
        "demo-6-prone-gap",
        "prone, head to feet, one slice missing",
        pixel_mm=1.5,
        prone=True,
        from_the_top=True,
        missing=61,
        file_name="CT{number:04d}.dcm",
    ),
    Scan("demo-7-truncated", "one file cut short", accepted=False, step_mm=5.0, slices=62, truncated=30),
    Scan("demo-8-few-slices", "six slices", accepted=False, step_mm=10.0, slices=6, first_mm=-40.0),
)
PATIENTS = tuple(scan.name for scan in SCANS)

SIZE = 256  # rows and columns of every slice
PADDING = -2000  # the stored value outside the round field of view
NAMESPACE = uuid.UUID("5a1c0f0e-6c1d-5e0a-9a77-2f6d3f1b8c10")


def demo_anatomy(patient, seed):
    """The `lungmill.phantom.Anatomy` of a demo patient: its labels and nodules are the truth for the written series."""
    from lungmill.phantom import Anatomy

    scan = _scan(patient)
    return Anatomy.random((seed, PATIENTS.index(patient)), prone=scan.prone)


def demo_slices(patient, seed):
    """Yield (number, image position [x, y, z] in mm, int16 HU of 256 x 256) for every slice from the feet to the head.

    The missing slice and the damage of a truncated one are not applied here. Padding outside a round field of view is
    -1024 + the padding value, as the rescale of the file makes it.
    """
    import numpy as np

    from lungmill.phantom import pad_outside_circle, scanner_noise

    scan, anatomy = _scan(patient), demo_anatomy(patient, seed)
    row, column = _directions(scan)
    edge = (scan.pixel_mm**2 * scan.step_mm) ** (1 / 3)
    for number in range(scan.slices):
        x, y, z = position = _position(scan, number)
        pixel = (scan.pixel_mm, scan.pixel_mm)
        image = anatomy.render_slice((z, y, x), row[::-1], column[::-1], pixel, (SIZE, SIZE), edge)
        image += scanner_noise(image.shape, scan.noise_hu, (seed, PATIENTS.index(patient), number))
        image = np.rint(image).clip(-1024, 3071)
        if scan.field_of_view:
            pad_outside_circle(image, PADDING - 1024)
        yield number, position, image.astype(np.int16)


def write_demo_patient(folder, patient, seed):
    """Write one demo patient's DICOM files below `folder`, all or nothing; what the folder held before is replaced.

    Raises LungmillError where `patient` is none of `PATIENTS`.
    """
    scan = _scan(patient)
    with replacing(folder) as temporary:
        temporary.mkdir()
        shadow = []
        for number, position, image in demo_slices(patient, seed):
            if scan.localizer:
                shadow.append((image.astype("float32") + 1024).sum(axis=0) * (scan.pixel_mm / 1000))
            if number == scan.missing:
                continue
            instance = scan.slices - number if scan.from_the_top else number + 1
            dataset = _dataset(scan, instance, position, image)
            if scan.syntax == "jpeg2000":
                dataset.compress("1.2.840.10008.1.2.4.90", encoding_plugin="pylibjpeg", generate_instance_uid=False)
            elif scan.syntax == "rle":
                dataset.compress("1.2.840.10008.1.2.5", encoding_plugin="pylibjpeg", generate_instance_uid=False)
            name = {"number": instance, "hash": _uuid(scan.name, instance).hex[:12], "folder": number // 64}
            path = _save(dataset, temporary / scan.file_name.format(**name))
            if number == scan.truncated:
                path.write_bytes(path.read_bytes()[: -SIZE * SIZE])  # half of the pixels are gone
        if scan.localizer:
            _save(_localizer(scan, shadow), temporary / "IM-0001-0001.dcm")


def write_annotations(path, seed):
    """Write the nodules of the accepted demo patients as LUNA16's CSV: patient, centre in LPS mm, diameter in mm.

    Only nodules whose centre lies within the scanned range are listed.
    """
    lines = ["patient,coordX,coordY,coordZ,diameter_mm"]
    for scan in SCANS:
        if scan.accepted:
            for nodule in demo_anatomy(scan.name, seed).nodules:
                if _covers(scan, nodule.center_mm):
                    z, y, x = nodule.center_mm
                    lines.append(f"{scan.name},{x:.3f},{y:.3f},{z:.3f},{nodule.diameter_mm:.3f}")
    write_text(path, "\n".join(lines) + "\n")


def _scan(patient):
    if patient not in PATIENTS:
        raise LungmillError(f"{patient!r} is no demo patient: use one of {', '.join(PATIENTS)}")
    return SCANS[PATIENTS.index(patient)]


def _directions(scan):
    """ImageOrientationPatient as two vectors [x, y, z]."""
    sign, tilt = (-1.0 if scan.prone else 1.0), math.radians(scan.tilt_degrees)
    return (sign, 0.0, 0.0), (0.0, round(sign * math.cos(tilt), 7), round(-sign * math.sin(tilt), 7))


def _position(scan, number):
    """ImagePositionPatient [x, y, z]; the table feeds along z even under a tilted gantry, as GE scanners write it."""
    row, column = _directions(scan)
    half = scan.pixel_mm * (SIZE - 1) / 2
    middle = (0.0, -6.0 if scan.prone else 16.0, scan.first_mm + number * scan.step_mm)
    return tuple(round(m - half * (r + c), 4) for m, r, c in zip(middle, row, column, strict=True))


def _covers(scan, center_mm):
    """Whether a point [z, y, x] lies between the first and the last slice and within the image."""
    z, y, x = center_mm
    row, column = _directions(scan)
    x0, y0, z0 = _position(scan, 0)
    along = (y - y0) / column[1]
    number = (z - z0 - along * column[2]) / scan.step_mm
    inside = all(0 <= mm / scan.pixel_mm <= SIZE - 1 for mm in (along, (x - x0) / row[0]))
    return inside and 0 <= number <= scan.slices - 1


def _uuid(*parts):
    return uuid.uuid5(NAMESPACE, "/".join(str(part) for part in parts))


def _uid(*parts):
    """A UID from a hash of its parts: the UUID-derived form of DICOM PS3.5, B.2."""
    return f"2.25.{_uuid(*parts).int}"


def _dataset(scan, instance, position, hu):
    """A CT Image (PS3.3 A.3) with its type 1 and 2 attributes; `hu` is stored signed or not, by the scan's syntax."""
    row, column = _directions(scan)
    dataset = _common(scan, series=2)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid(scan.name, "image", instance)
    dataset.InstanceNumber = instance
    dataset.SeriesDescription = scan.text
    dataset.ImagePositionPatient = [f"{mm:.4f}" for mm in position]
    dataset.ImageOrientationPatient = [f"{cosine:.7f}" for cosine in (*row, *column)]
    dataset.SliceThickness = f"{scan.step_mm}"
    dataset.SliceLocation = f"{position[2]:.4f}"
    dataset.GantryDetectorTilt = f"{scan.tilt_degrees}"
    dataset.PixelSpacing = [f"{scan.pixel_mm}"] * 2
    signed = scan.syntax in ("implicit", "rle")
    intercept = 0 if scan.syntax == "implicit" else -1024
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = f"{intercept}", "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    _set_pixels(dataset, hu.astype("int32") - intercept, signed)
    if scan.field_of_view:
        dataset.PixelPaddingValue = PADDING
    return dataset


def _localizer(scan, shadow):
    """The frontal scout: line integrals of (HU + 1024) / 1000 in mm, a series of its own in the same study."""
    import numpy as np

    x, _, z = _position(scan, scan.slices - 1)
    dataset = _common(scan, series=1)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid(scan.name, "localizer")
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = "scout"
    dataset.ImagePositionPatient = [f"{x:.4f}", "0.0000", f"{z:.4f}"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    dataset.SliceThickness = f"{scan.pixel_mm * SIZE}"
    dataset.PixelSpacing = [f"{scan.step_mm}", f"{scan.pixel_mm}"]
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.WindowCenter, dataset.WindowWidth = "200", "400"
    _set_pixels(dataset, np.rint(np.stack(shadow[::-1])).clip(0, 4095), signed=False)
    return dataset


def _common(scan, series):
    """What all images of a patient share, with the file's meta header."""
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.TransferSyntaxUID = "1.2.840.10008.1.2" if scan.syntax == "implicit" else "1.2.840.10008.1.2.1"
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "LUNGMILL_DEMO"
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    for event in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{event}Date", "20170101")
        setattr(dataset, f"{event}Time", "120000")
    dataset.AccessionNumber = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = "lungmill"
    dataset.ManufacturerModelName = "synthetic chest"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = f"Demo^{scan.name.split('-', 2)[2]}"
    dataset.PatientID = scan.name
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = "120"
    dataset.AcquisitionNumber = 1
    dataset.ConvolutionKernel = "STANDARD"
    dataset.PatientPosition = "HFP" if scan.prone else "HFS"
    dataset.StudyInstanceUID = _uid(scan.name, "study")
    dataset.SeriesInstanceUID = _uid(scan.name, "series", series)
    dataset.FrameOfReferenceUID = _uid(scan.name, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = "1"
    dataset.SeriesNumber = series
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    return dataset


def _set_pixels(dataset, stored, signed):
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored, dataset.HighBit = (16, 15) if signed else (12, 11)
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def _save(dataset, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
