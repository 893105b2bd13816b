"""What compressed pixel data say of themselves, read before a decoder gets to allocate what they claim."""

import os
import threading
from contextlib import contextmanager

_stderr_lock = threading.Lock()


def declared_matrix(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the header of a JPEG, JPEG-LS or JPEG 2000 stream, None where it does not get to say.

    JPEG 2000: marker SIZ, ISO/IEC 15444-1 A.5.1. JPEG: the first SOF marker, ISO/IEC 10918-1 B.2.2; JPEG-LS: SOF55,
    ISO/IEC 14495-1 C.2.2.
    """
    if stream.startswith(b"\0\0\0\x0cjP  "):  # in a JP2 file, against PS3.5 A.4.4; decoders accept it
        start = stream.find(b"\xff\x4f\xff\x51")
        stream = stream[start:] if start > 0 else b""
    if stream.startswith(b"\xff\x4f\xff\x51"):
        x_end, y_end, x_start, y_start = (int.from_bytes(stream[at : at + 4]) for at in (8, 12, 16, 20))
        return (y_end - y_start, x_end - x_start) if len(stream) >= 24 else None
    place = 2
    while stream.startswith(b"\xff\xd8") and place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(stream[place + 5 : place + 7]), int.from_bytes(stream[place + 7 : place + 9])
        else:
            place += 2 + int.from_bytes(stream[place + 2 : place + 4])
    return None


@contextmanager
def silent_stderr():
    """Drop what C code prints to stderr meanwhile: libjpeg comments on every broken stream, without a file's name."""
    with _stderr_lock:
        saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)
