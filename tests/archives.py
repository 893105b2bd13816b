"""Archives of a patient's folder for tests, written with the standard library in the forms that users have."""

import io
import tarfile
import zipfile
from pathlib import Path

KINDS = {
    "stored.zip": lambda path, entries: write_zip(path, entries, zipfile.ZIP_STORED),
    "deflated.zip": lambda path, entries: write_zip(path, entries, zipfile.ZIP_DEFLATED),
    "plain.tar": lambda path, entries: write_tar(path, entries, "w"),
    "packed.tar.gz": lambda path, entries: write_tar(path, entries, "w:gz"),
    "packed.TGZ": lambda path, entries: write_tar(path, entries, "w:gz"),
}


def entries_of(folder):
    """(name, content) of every file below a folder."""
    folder = Path(folder)
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def write_zip(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def write_tar(path, entries, mode="w"):
    level = {"compresslevel": 1} if mode.endswith("gz") else {}
    with tarfile.open(path, mode, **level) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
