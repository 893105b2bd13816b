"""JPEG Extended with 12 bits (1.2.840.10008.1.2.4.51), which pydicom 3.0 hands to none of its decoders."""

import numpy as np

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


def decode_jpeg12(frame: bytes, record) -> np.ndarray:
    """Decode one frame with GDCM.

    frame: its compressed bytes. record: see `lungmill.dicom.pixels`.
    Returns the stored values, 16 bits, (rows, columns). Raises ValueError where they do not decode.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((record["columns"], record["rows"], 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, record["bits_stored"], record["high_bit"], int(record["signed"])))
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns bytes as text
    kind = np.dtype("<i2" if record["signed"] else "<u2")
    return np.frombuffer(decoded, kind).reshape(record["rows"], record["columns"])
