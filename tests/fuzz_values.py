"""Values that have no place in a DICOM file, or not in that place."""

# fmt: off
LENGTHS = (
    0, 1, 2, 3, 7, 255, 4096, 65535, 65536, 1048576, 2147483647, 2147483648, 4294967294, 4294967295,
)
NUMBERS = (
    0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 24, 32, 64, 255, 4096, 32767, 32768, 46341, 65535,
)
TEXTS = (
    "0", "-0", "1", "-1", "0.5", "1e-9", "-1e-9", "1e-308", "1e308", "-1e308", "1e999", "NaN", "nan", "inf",
    "-Infinity", "1000000000", "999999999", "9", "9999999999999999", "-2147483649", "0x10", "1,5", "1_0", "٣", "CT",
    "MR", "LOCALIZER", "DERIVED", "1.2.3", "..", "", " ", "\\", "\\\\", "1\\0\\0\\0\\1\\0", "1e308\\1e308\\1e308",
    "nan\\nan\\nan", "0\\0\\0\\0\\0\\0", "1e200\\0\\0\\0\\1e200\\0", "1e-9\\1e-9", "0\\0", "-1\\-1", "nan\\nan",
    "8e8\\8e8", "1e-320\\1e-320", "999999999\\-999999999\\999999999", "\x00\x00\x00\x00", "\x1b$B\x1b(J", "=^=^=",
    "é\udcff", "1\n2",
    "A" * 70000, "1\\" * 30000, "9" * 6000, "1" + "0" * 400,
)
CHARACTER_SETS = (
    "ISO 2022 IR 87", "ISO_IR 192", "GB18030", "nonsense", "\\ISO 2022 IR 149", "ISO_IR 100\\ISO 2022 IR 58",
)
SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.7.1",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.100",
    "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203", "",
    "1.2.840.113619.5.2", "1.2.840.10008.1.1", "nonsense", "1.2.3", "1.2.840.10008.5.1.4.1.1.2",
)
KINDS = (
    "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.3.10",
)
KEYS = (
    "ImageType", "SOPClassUID", "Modality", "SliceThickness", "KVP", "SeriesInstanceUID", "AcquisitionNumber",
    "InstanceNumber", "Rows", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "Manufacturer", "RescaleIntercept",
    "RescaleSlope", "LossyImageCompression", "TransferSyntaxUID", "SpecificCharacterSet", "PlanarConfiguration",
    "ModalityLUTSequence", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "PixelData",
    "FrameOfReferenceUID", "SmallestImagePixelValue", "DimensionIndexSequence",
)
