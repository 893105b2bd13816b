"""DICOM series that say something unique in every attribute that holds words, and series spoilt in every way we know.

Every mark holds one of a few rare strings, so one search finds them all; what follows the string says which it was.
"""

import numpy as np
from dicom_files import chest_like, new_slice, plane_points, save, stack
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedCTImageStorage, RLELossless

WORD, DIGITS, DAY, TIME = "plq7xz", "80765431", "18070423", "040917.8076"
MARKS = (WORD, DIGITS, DAY, TIME)
# Text of the VRs of PS3.5 table 6.2-1, each as unique as its form and length allow, by number.
TEXT = {
    "AE": "PLQ7XZ{:05}", "AS": "PLQ7XZ{:05}", "CS": "PLQ7XZ{:05}", "DA": DAY, "DS": DIGITS + ".{:05}",
    "DT": DAY + "040917.8076", "IS": DIGITS, "LO": WORD + "-{:05}", "LT": WORD + "-{:05}", "PN": WORD + "^{:05}",
    "SH": WORD + "-{:05}", "ST": WORD + "-{:05}", "TM": TIME, "UC": WORD + "-{:05}",
    "UI": "1.9." + DIGITS + ".{}", "UR": "http://" + WORD + ".invalid/{:05}", "UT": WORD + "-{:05}",
}  # fmt: skip
# Numbers that lungmill reads, and may write; they hold no words.
NUMBERS = {
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber", "AcquisitionNumber",
    "NumberOfFrames", "SliceThickness", "KVP", "GantryDetectorTilt", "RescaleSlope", "RescaleIntercept",
}  # fmt: skip
# What a good CT must say in so many words to be taken for one.
NEEDED = {"SOPClassUID", "Modality", "PhotometricInterpretation", "SpecificCharacterSet", "TransferSyntaxUID"}
FEW = ("PatientName", "PatientID", "StudyDescription", "Manufacturer", "InstitutionName", "PatientPosition",
       "SeriesInstanceUID", "StudyDate", "StudyTime", "RescaleType", "ImageComments", "LossyImageCompression",
       )  # fmt: skip


def mark(vr, number):
    return TEXT[vr].format(number)


def text_attributes():
    """Tags of every attribute in the dictionary that holds text and may stand in an image."""
    for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items()):
        if vr in TEXT and tag >> 16 > 0x0006 and keyword and keyword not in NUMBERS | NEEDED:
            yield tag, vr


def plant(dataset, tags):
    """Put a mark into each attribute, into sequences within sequences, and into private elements."""
    for number, (tag, vr) in enumerate(tags):
        dataset.add_new(tag, vr, mark(vr, number))
    inner = Dataset()
    for number, (vr, text) in enumerate(TEXT.items()):
        inner.private_block(0x0011, WORD + "-nested", create=True).add_new(number, vr, text.format(90000 + number))
    inner.PatientName, inner.TypeOfPatientID = mark("PN", 90100), mark("CS", 90101)
    outer = Dataset()
    outer.OtherPatientIDsSequence = Sequence([inner, inner])
    outer.ReferencedSOPInstanceUID = mark("UI", 90200)
    dataset.OtherPatientIDsSequence = Sequence([outer])
    dataset.RequestAttributesSequence = Sequence([inner])
    block = dataset.private_block(0x0009, WORD + "-block", create=True)
    for number, (vr, text) in enumerate(TEXT.items()):
        block.add_new(number, vr, text.format(91000 + number))
    block.add_new(0x80, "UN", (WORD + "-unknown ").encode())
    block.add_new(0x81, "SQ", Sequence([inner]))
    block.add_new(0x82, "OB", (WORD + "-bytes  ").encode())
    dataset.add_new(0x60000022, "LO", WORD + "-overlay")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", mark("CS", 92000)]
    dataset.preamble = (WORD + "-preamble").ljust(128).encode()
    dataset.file_meta.SourceApplicationEntityTitle = mark("AE", 93000)
    dataset.file_meta.SendingApplicationEntityTitle = mark("AE", 93001)
    dataset.file_meta.ImplementationVersionName = mark("SH", 93002)
    dataset.file_meta.PrivateInformationCreatorUID = mark("UI", 93003)
    dataset.file_meta.PrivateInformation = (WORD + "-meta").encode()
    dataset.DataSetTrailingPadding = (WORD + "-behind").ljust(20).encode()


def few():
    return [(Tag(keyword), dictionary_VR(keyword)) for keyword in FEW]


def write_marked(folder, tags, change=lambda dataset, k: None, count=12, seed=0, uid=None):
    """Write a series in which every slice is marked; `change` may spoil a slice before it is written."""
    noise = np.random.default_rng(seed)
    for k, position in enumerate(stack((-24, -24, seed), (0, 0, 2), count)):
        points = plane_points(position, (1, 0, 0, 0, 1, 0), (1, 1), 48, 48)
        stored = np.rint(chest_like(points) + noise.normal(0, 10, points.shape[:-1])).astype(np.int16)
        dataset = new_slice(position, stored=stored, number=k + 1)
        plant(dataset, tags)
        dataset.SeriesInstanceUID = uid or dataset.SeriesInstanceUID
        change(dataset, k)
        save(dataset, folder / f"IM{k:04d}")
    (folder / "notes.xml").write_text(f"<patient>{WORD}-notes</patient>")


def compress(dataset, k):
    """RLE by pydicom, so that pydicom's own decoding, which reads more of the header than lungmill does, is used."""
    frame = np.frombuffer(dataset.PixelData, np.int16).reshape(dataset.Rows, dataset.Columns)
    encoded = RLELosslessEncoder.encode(
        frame, rows=dataset.Rows, columns=dataset.Columns, samples_per_pixel=1, bits_allocated=16, bits_stored=16,
        pixel_representation=1, photometric_interpretation="MONOCHROME2", number_of_frames=1,
    )  # fmt: skip
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([encoded])
    dataset["PixelData"].is_undefined_length = True


def compressed_with(keyword, value):
    return lambda dataset, k: (compress(dataset, k), attribute(keyword, value)(dataset, k))


def undecodable(dataset, k):
    """One slice whose frame is garbage though its length and markers are right: it fails after acceptance."""
    compress(dataset, k)
    if k == 1:
        dataset.PixelData = encapsulate([b"\x02" + bytes(99)])
        dataset["PixelData"].is_undefined_length = True
        dataset.PatientSex = mark("CS", 94000)


def attribute(keyword, value):
    """A change that sets an attribute to these bytes, fit or unfit for it."""

    def change(dataset, k):
        tag, content = Tag(keyword), value.encode() + b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(content), content, 0, False, True, True)

    return change


def enhanced(dataset, k):
    """A multi-frame object with marks in its functional groups."""
    frame = Dataset()
    frame.PlanePositionSequence = Sequence([Dataset()])
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, k]
    frame.FrameContentSequence = Sequence([Dataset()])
    frame.FrameContentSequence[0].StackID = mark("SH", 96000)
    frame.FrameContentSequence[0].FrameComments = mark("LT", 96001)
    frame.CTImageFrameTypeSequence = Sequence([Dataset()])
    frame.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", mark("CS", 96002)]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = 1
    dataset.PerFrameFunctionalGroupsSequence = Sequence([frame])


def with_table(dataset, k):
    """A Modality LUT, which is read from the file once more when its slice is decoded."""
    table = Dataset()
    first, count = -1100, 1400
    table.LUTDescriptor, table.LUTData = [count, first, 16], np.arange(count, dtype=np.uint16).tobytes()
    table.LUTExplanation, table.ModalityLUTType = mark("LO", 97000), mark("LO", 97001)
    dataset.ModalityLUTSequence = Sequence([table])
    SPOILT["character-set"](dataset, k)


def deflated(dataset, k):
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    SPOILT["character-set"](dataset, k)


# Series that are spoilt, each in another way; they lie together in one patient's folder. Values that break the rules
# of their VR make pydicom raise or warn, quoting them.
SPOILT = {
    "character-set": attribute("SpecificCharacterSet", mark("CS", 1)),
    "enhanced": enhanced,
    "frames": attribute("NumberOfFrames", WORD),
    "orientation": attribute("ImageOrientationPatient", "\\".join([WORD] * 6)),
    "rescale": attribute("RescaleSlope", WORD),
    "spacing": attribute("PixelSpacing", WORD + "\\" + WORD),
    "kind": attribute("Modality", mark("CS", 2)),
    "kind-alone": lambda dataset, k: (delattr(dataset, "SOPClassUID"), SPOILT["kind"](dataset, k)),
    "other-class": attribute("SOPClassUID", mark("UI", 4)),
    "photometric": attribute("PhotometricInterpretation", mark("CS", 5)),
    "rle-frames": compressed_with("NumberOfFrames", WORD),
    "rle-photometric": compressed_with("PhotometricInterpretation", mark("CS", 7)),
    "rle-long-code": compressed_with("PhotometricInterpretation", "MONOCHROME2 " + WORD * 4),
    "rle-planes": compressed_with("PlanarConfiguration", WORD),
    "thickness": attribute("SliceThickness", WORD),
    "numbers": attribute("InstanceNumber", WORD),
    "with-table": with_table,
}
