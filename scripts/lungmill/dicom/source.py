"""Where a patient's files are read from: a folder, or an archive that is read in place (`lungmill.dicom.archive`)."""

import io
import os
import stat
from pathlib import Path

from lungmill.dicom.archive import Archive, open_archive
from lungmill.dicom.stream import BoundedFile
from lungmill.files import archive_stem, list_files


class Folder:
    """The files below a folder, named relative to it with `/`."""

    def __init__(self, path):
        self.path = Path(path)

    def files(self) -> list[str]:
        return list(list_files(self.path))

    def open(self, file):
        """The file as a stream of its bytes."""
        return (self.path / file).open("rb")

    def open_bounded(self, file) -> BoundedFile | None:
        """The file to parse a header from, or None for what is neither file nor folder: a FIFO waits, a device acts."""
        path = self.path / file
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
        # FileIO raises OSError for a folder, which is listed only where it may not be read.
        raw = io.FileIO(path)
        return BoundedFile(raw, os.fstat(raw.fileno()).st_size)

    def open_raw(self, file):
        """The file as a stream without a buffer, for one long read."""
        return (self.path / file).open("rb", buffering=0)

    def verify(self, file):
        """A folder holds nothing to check its files against."""


def open_source(place) -> Folder | Archive:
    """What holds a patient's files: `place` is a folder, an archive, or what this function returned for one.

    Raises DicomError('unreadable') for an archive that cannot be read as a whole.
    """
    if isinstance(place, (Folder, Archive)):
        return place
    if archive_stem(os.fspath(place)) is not None and Path(place).is_file():
        status = Path(place).stat()
        return open_archive(os.fspath(place), status.st_size, status.st_mtime_ns)
    return Folder(place)
