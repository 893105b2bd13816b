"""A patient's files in a .zip or .tar, read in place: nothing is ever written under a name that an archive gives.

Stored members are read at their offset. A deflated one is inflated when it is opened, and the last one is kept: in
memory where it is small, else in a nameless temporary file. A compressed tar can only be read from its start, so it is
inflated once into such a file. An archive that is damaged, encrypted or absurdly large is `unreadable` as a whole: a
scan that lost its end would otherwise pass for a shorter one.
"""

import gzip
import io
import os
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lungmill.dicom.stream import LARGEST_INFLATED, BoundedFile
from lungmill.errors import DicomError
from lungmill.files import DEEPEST_FOLDER, archive_stem

STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1 | 0x2040  # flag bits 0, 6 and 13: encrypted, strongly, and names too (APPNOTE 4.4.4)
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field (APPNOTE 4.3.7)
# Images shrink to a third; what shrinks to less than a 64th is a bomb, or too small to matter.
MOST_RATIO = 64
IN_MEMORY, PIECE = 1 << 26, 1 << 20


class _Member(NamedTuple):
    """One file in the archive; `fault` is why it cannot be read, or None."""

    start: int
    packed: int
    size: int
    method: int = STORED
    crc: int | None = None
    fault: str | None = None


class _Section(io.RawIOBase):
    """`size` bytes from `start` of an open file, read without moving that file's own position."""

    def __init__(self, file, start, size):
        super().__init__()
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self.position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")[: max(self.size - self.position, 0)]
        count = os.preadv(self.file.fileno(), [view], self.start + self.position) if len(view) else 0
        self.position += count
        return count


class Archive:
    """The members of an archive that are files, by name; hidden ones are passed over as in a folder."""

    def __init__(self, file, members):
        self._file = file
        self._members = members
        self._last = None, None
        self._opening = threading.Lock()

    def files(self) -> list[str]:
        return sorted(self._members, key=lambda name: name.split("/"))

    def open(self, file):
        """The member as a stream of its bytes. Raises DicomError for a damaged one."""
        raw, _ = self._raw(file)
        return io.BufferedReader(raw)

    def open_bounded(self, file) -> BoundedFile | None:
        """The member to parse a header from; None for what is no file, such as a device."""
        if self._members[file].size < 0:
            return None
        return BoundedFile(*self._raw(file))

    def open_raw(self, file):
        """The member as a stream without a buffer, for one long read."""
        return self._raw(file)[0]

    def verify(self, file):
        """Compare a stored member with its checksum; others were when they were inflated. Raises DicomError."""
        member = self._members[file]
        if member.method == STORED and member.crc is not None:
            crc = 0
            with self.open(file) as stream:
                while piece := stream.read(PIECE):
                    crc = zlib.crc32(piece, crc)
            if crc != member.crc:
                raise DicomError("unreadable", f"{file} is damaged in the archive: its checksum differs")

    def _raw(self, file):
        """A raw stream of the member and its size."""
        member = self._members.get(file)
        if member is None:
            raise FileNotFoundError(file)
        if member.fault:
            raise OSError(member.fault)
        if member.method == STORED:
            # What lies beyond the end of the archive is missing, and the reader is to see that.
            return _Section(self._file, member.start, member.size), member.size
        with self._opening:
            if self._last[0] != file:
                self._last = None, None  # the one before goes before the next is inflated
                self._last = file, self._inflated(file, member)
            content = self._last[1]
        if isinstance(content, bytes):
            return io.BytesIO(content), len(content)
        return _Section(content, 0, member.size), member.size

    def _inflated(self, file, member):
        """A deflated member as bytes, or as a temporary file where it is large; its checksum is right."""
        unpacker, crc, size = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        source = _Section(self._file, member.start, member.packed)
        target = tempfile.TemporaryFile() if member.size > IN_MEMORY else io.BytesIO()  # noqa: SIM115 (lives in the cache)
        try:
            while not unpacker.eof and size <= member.size:
                packed = unpacker.unconsumed_tail or source.read(PIECE)
                piece = unpacker.decompress(packed, PIECE)
                if not piece and not packed:
                    break
                crc, size = zlib.crc32(piece, crc), size + len(piece)
                target.write(piece)
        except zlib.error:
            size = -1
        if size != member.size or crc != member.crc or not unpacker.eof:
            raise DamagedArchive(f"{file} is damaged in the archive: copy the archive again")
        if isinstance(target, io.BytesIO):
            return target.getvalue()
        target.flush()
        return target


class DamagedArchive(DicomError):
    """The archive as a whole cannot be trusted."""

    def __init__(self, detail):
        super().__init__("unreadable", detail)


@lru_cache(maxsize=2)
def open_archive(path: str, size: int, mtime_ns: int) -> Archive:
    """Open the archive `path`; its size and time are what tells that it is still the one that was opened before.

    Raises DamagedArchive where it is no archive, damaged, encrypted or of absurd size.
    """
    del mtime_ns
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (kept open for its members)
        if file.read(2) == b"\x1f\x8b":
            file, size = _gunzipped(file, size)
        is_zip = path.lower().endswith(".zip")
        members = _zip_members(file, size) if is_zip else _tar_members(file, size)
    except DicomError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, struct.error, zlib.error) as error:
        raise DamagedArchive(f"the archive cannot be opened ({type(error).__name__})") from None
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DamagedArchive(f"the archive is damaged or incomplete ({type(error).__name__}): copy it again") from None
    return Archive(file, _without_own_folder(members, archive_stem(Path(path).name)))


def _most_bytes(packed):
    return max(LARGEST_INFLATED, MOST_RATIO * packed)


class _Directory(BoundedFile):
    """The archive as a stream that refuses reads of absurd length, whatever lengths its directory claims."""

    def read(self, size=-1, /):
        return super().read(self.size if size is None or size < 0 else size)


def _gunzipped(file, size):
    """The content of a gzip file in a nameless temporary file, and its length. Its checksum is compared."""
    target, total = tempfile.TemporaryFile(), 0  # noqa: SIM115 (kept open for its members)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as stream:
        while piece := stream.read(PIECE):
            total += len(piece)
            if total > _most_bytes(size):
                raise DamagedArchive("the archive unpacks to an absurd size")
            target.write(piece)
    target.flush()
    return target, total


def _zip_members(file, size):
    members, total = {}, 0
    with zipfile.ZipFile(_Directory(_Section(file, 0, size), size)) as archive:
        for info in archive.infolist():
            name = info.filename
            if "/" not in name:
                name = name.replace("\\", "/")  # as some programs on Windows write it
            if name.endswith("/") or _is_hidden(name):
                continue
            if info.flag_bits & ENCRYPTED:
                raise DamagedArchive("the archive is encrypted: give it without a password")
            if info.compress_type not in (STORED, DEFLATED):
                raise DamagedArchive("the archive is compressed in another way than deflate: pack it again")
            total += info.file_size
            start = _start_of_data(file, info.header_offset)
            if start + info.compress_size > size or (
                info.compress_type == STORED and info.compress_size != info.file_size
            ):
                raise DamagedArchive("the archive is damaged or incomplete: copy it again")
            members[name] = _Member(start, info.compress_size, info.file_size, info.compress_type, info.CRC)
    if total > _most_bytes(size):
        raise DamagedArchive("the archive unpacks to an absurd size")
    return members


def _start_of_data(file, offset):
    signature, name, extra = LOCAL_HEADER.unpack(os.pread(file.fileno(), LOCAL_HEADER.size, offset))
    if signature != b"PK\3\4":
        raise DamagedArchive("the archive is damaged: copy it again")
    return offset + LOCAL_HEADER.size + name + extra


def _tar_members(file, size):
    members, links = {}, {}
    stream = _Directory(_Section(file, 0, size), size)
    with tarfile.open(fileobj=stream, mode="r:", errorlevel=1) as archive:
        for info in archive:
            name = info.name
            if info.isdir() or _is_hidden(name):
                continue
            if info.islnk():
                links[name] = info.linkname
            elif not info.isreg() or info.issparse():
                fault = "a link or a sparse file" if info.issym() or info.issparse() else None
                members[name] = _Member(0, 0, 0 if fault else -1, fault=fault)
            else:
                members[name] = _Member(info.offset_data, info.size, info.size)
        # tarfile takes a damaged header for the end; the real one is a block of zeros (POSIX pax, ustar format).
        stream.seek(archive.offset)
        end = stream.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise DamagedArchive("the archive is damaged or incomplete: copy it again")
    for name, target in links.items():
        members[name] = members.get(target, _Member(0, 0, 0, fault="a link that leads nowhere"))
    return members


def _is_hidden(name):
    """Whether a folder's listing would pass over the name; the parts `.` and an absolute name's first go first."""
    parts = _parts(name)
    return not parts or len(parts) > DEEPEST_FOLDER + 1 or any(part.startswith(".") and part != ".." for part in parts)


def _parts(name):
    return [part for part in name.split("/") if part not in ("", ".")]


def _without_own_folder(members, stem):
    """Names as in the folder that was packed, also where it was packed itself and not its content.

    A name that climbs out with `..` stays in the list, but is not read.
    """
    named = {}
    for name, member in members.items():
        parts = _parts(name)
        if ".." in parts:
            member = _Member(0, 0, 0, fault="a name that leads out of the archive")
        named["/".join(parts)] = member
    prefix = f"{stem}/"
    if named and all(name.startswith(prefix) for name in named):
        named = {name.removeprefix(prefix): member for name, member in named.items()}
    return named
