"""Small sound folders to damage: synthetic series in many encodings and, where they are here, real files."""

import shutil
import tempfile
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from dicom_files import AXIAL, chest_like, new_slice, plane_points, stack
from fuzz_mutations import Parsed, parse
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

SHAPE, SPACING = (32, 32), (1.5, 1.5)
ENCODINGS = {
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "big": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "j2k": "1.2.840.10008.1.2.4.90",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "jpeg": "1.2.840.10008.1.2.4.70",
}


def synthetic_bases() -> dict[str, dict[str, Parsed]]:
    """One folder of three or four slices for each encoding, one with several series, two multi-frame objects."""
    bases = {name: _series(name) for name in ENCODINGS}
    other = {
        f"B{name}": data for name, data in _encode(_slices(SeriesInstanceUID="1.2.3", count=4), "implicit").items()
    }
    scout = {"scout": _bytes(new_slice((0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))}
    bases["several"] = bases["explicit"] | {name: parse(data) for name, data in (other | scout).items()}
    for name in ("explicit", "rle"):
        bases[f"multiframe {name}"] = {"object": parse(_multi_frame(name))}
    return bases


def real_bases(folder: Path) -> dict[str, dict[str, Parsed]]:
    """Real files: the small damaged ones, one of each codec twice at two positions, and parts of real series."""
    bases = {}
    for path in sorted((folder / "corrupt").glob("*.dcm")):
        if path.stat().st_size < 200_000:
            bases[path.name] = {path.name: parse(path.read_bytes())}
    for path in [folder / "corrupt" / "CT_small.dcm", *sorted((folder / "codecs").glob("CT1_[JR]*.dcm"))]:
        dataset = pydicom.dcmread(path)
        files = {"a": path.read_bytes()}
        for name, z in (("b", 5), ("c", 10)) if path.stat().st_size < 50_000 else (("b", 5),):
            x, y, first = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, first + z]
            files[name] = _bytes(dataset)
        bases[f"{path.name} series"] = {name: parse(data) for name, data in files.items()}
    for step, names in ((8, sorted((folder / "ct64").glob("*.dcm"))), (5, sorted(folder.glob("odd-series/j2k*/CT*")))):
        picked = names[step : step + (5 if step == 8 else 2)]
        bases[f"{picked[0].parent.name}"] = {path.name: parse(path.read_bytes()) for path in picked}
    for name in [key for key in bases if "ct64" in key or "small" in key]:
        bases[f"{name} again"] = bases[name]  # small and sound: worth twice the share
    return bases


def _slices(count=3, **attributes):
    for k, position in enumerate(stack((-23, -23, 0), (0, 0, 2), count)):
        stored = np.rint(chest_like(plane_points(position, AXIAL, SPACING, *SHAPE))).astype(np.int16)
        yield new_slice(position, AXIAL, SPACING, stored, k + 1, **attributes)


def _series(name):
    return {file: parse(data) for file, data in _encode(_slices(), name).items()}


def _encode(slices, name):
    return {f"IM{k}": _bytes(_recoded(dataset, name)) for k, dataset in enumerate(slices)}


def _recoded(dataset, name):
    syntax = UID(ENCODINGS[name])
    if name == "jpeg":
        return _with_gdcm(dataset)
    if syntax.is_compressed and not syntax.is_deflated:
        if dataset.PixelRepresentation and name == "jpegls":
            dataset.PixelRepresentation, dataset.RescaleIntercept = 0, -2000
            dataset.PixelData = (dataset.pixel_array.astype(np.int32) + 2000).astype(np.uint16).tobytes()
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset
    if name == "big":
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _with_gdcm(dataset):
    """JPEG Lossless, which pydicom reads but does not write."""
    import gdcm

    folder = Path(tempfile.mkdtemp())
    try:
        source, target = folder / "in", folder / "out"
        dataset.save_as(source, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()
        return pydicom.dcmread(BytesIO(target.read_bytes()))
    finally:
        shutil.rmtree(folder)


def _multi_frame(name):
    slices = list(_slices())
    whole = new_slice((0, 0, 0), AXIAL, SPACING, np.zeros(SHAPE, np.int16))
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(whole, keyword)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    whole.NumberOfFrames = len(slices)
    whole.PixelData = b"".join(one.PixelData for one in slices)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([_item(PixelSpacing=list(SPACING), SliceThickness=2)])
    shared.PlaneOrientationSequence = Sequence([_item(ImageOrientationPatient=list(AXIAL))])
    shared.PixelValueTransformationSequence = Sequence([_item(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")])
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = Sequence(
        [
            _item(PlanePositionSequence=Sequence([_item(ImagePositionPatient=one.ImagePositionPatient)]))
            for one in slices
        ]
    )
    return _bytes(_recoded(whole, name))


def _item(**attributes):
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _bytes(dataset):
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
