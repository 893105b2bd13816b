"""What compressed pixel data say of themselves, read before a decoder gets to allocate what they claim."""

import os
import threading
import warnings
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_inside = 0  # threads in `silence`
_restore = None


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
def silence():
    """Drop what decoders say meanwhile: pydicom's warnings quote header values, and libjpeg comments on stderr.

    Both are of the process, not of a thread. So the first thread that comes in switches them off and the last one that
    leaves switches them on again; none waits for another's decoder.
    """
    global _inside, _restore
    with _lock:
        if _inside == 0:
            _restore = _switch_off()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore.close()


def _switch_off():
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        saved = os.dup(2)
        stack.callback(os.close, saved)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        stack.callback(os.dup2, saved, 2)
        return stack.pop_all()
