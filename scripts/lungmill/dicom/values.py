"""Values of a pydicom data set as plain numbers and text, None where they are absent."""

from functools import cache

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import Tag

# Beyond every 32-bit number; what is larger is no length, position or count.
LARGEST = 1e10
TEXT_VRS = {"CS", "DS", "IS", "LO", "SH", "UI"}
SHORT_VRS = {"US", "SS"}


@cache
def tag_and_vr(keyword):
    """Tag and value representation of an attribute; the tag is always the same object, see `lungmill.dicom.scan`."""
    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def read_values(dataset, keyword) -> tuple:
    """The values of an attribute, () where it is absent or empty.

    Text and single 16-bit numbers are taken from the bytes as they stand in the file: pydicom's conversion of a value
    costs more than its parsing of the header, and its warnings quote the value. Everything else is left to pydicom.
    """
    tag, vr = tag_and_vr(keyword)
    if tag not in dataset:
        return ()
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.value is not None:
        vr = raw.VR or vr
        if vr in TEXT_VRS:
            text = raw.value.decode("latin-1").rstrip(" \0")
            return tuple(part.strip() for part in text.split("\\")) if text else ()
        if vr in SHORT_VRS and len(raw.value) == 2:
            return (int.from_bytes(raw.value, "little" if raw.is_little_endian else "big", signed=vr == "SS"),)
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, (list, tuple, MultiValue)) else (value,)


def read_text(dataset, keyword):
    values = read_values(dataset, keyword)
    return str(values[0]).strip() or None if values else None


def read_codes(dataset, keyword) -> tuple[str, ...]:
    """All values of a code string, in capitals."""
    return tuple(str(value).strip().upper() for value in read_values(dataset, keyword))


def read_number(dataset, keyword, absent=None):
    values = read_values(dataset, keyword)
    number = float(values[0]) if values else None
    return number if number is not None and abs(number) < LARGEST else absent


def read_integer(dataset, keyword):
    number = read_number(dataset, keyword)
    return None if number is None else int(number)


def read_numbers(dataset, keyword, count):
    values = read_values(dataset, keyword)
    if len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(abs(number) < LARGEST for number in numbers) else None


def unless_broken(read, dataset, keyword):
    """The value of an attribute that nothing depends on, None where it does not parse."""
    try:
        return read(dataset, keyword)
    except (ValueError, TypeError):
        return None
