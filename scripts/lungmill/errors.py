"""The exceptions that are meant for people: the message is one line that names the thing and the remedy."""


class LungmillError(Exception):
    """Something a user can mend; shown without a traceback."""


class ConfigError(LungmillError):
    """config.yaml, the patients table or a path named there is wrong."""


class DicomError(LungmillError):
    """A DICOM file or series cannot be used; `reason` is one of the codes in `lungmill.verdict`."""

    def __init__(self, reason: str, detail: str):
        self.reason = reason
        self.detail = printable(detail)
        super().__init__(f"{reason}: {self.detail}")


def printable(text: str) -> str:
    """`text` with escapes for what is no visible character: names of files may hold line breaks and stray bytes.

    >>> print(printable("a\\nb"))
    a\\nb
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
