"""Writing files so that a name either holds the whole content or does not exist, and the small formats."""

import csv
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from lungmill.errors import LungmillError

DEEPEST_FOLDER = 32
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; on success it takes the name of `path`, on failure it is removed.

    Works for a file or a folder, whichever the body creates. A temporary left by a killed process is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)  # renaming refuses a folder that is not empty
        temporary.replace(path)
    finally:
        remove(temporary)


def remove(path):
    """Remove a file, a link or a folder with all it holds; nothing happens where there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text: str):
    """Write `text` as UTF-8, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path, value):
    """Write `json_text(value)`, all or nothing."""
    write_text(path, json_text(value))


def json_text(value):
    """`value` as indented JSON with short lists of numbers on one line; the same value gives the same text."""
    return _json(value, 0) + "\n"


def _json(value, depth):
    pad = "  " * (depth + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(str(key))}: {_json(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        if depth >= 2:  # rows of a table: one line each
            rows = [pad + _dumps(item) for item in value]
        else:
            rows = [pad + _json(item, depth + 1) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + "  " * depth + "]"
    return _dumps(value)


def _dumps(value):
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return json.dumps(value, allow_nan=False)  # names of files with bytes that are no UTF-8: escaped
    return text


def read_json(path):
    """Read a JSON file; a damaged one is a LungmillError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LungmillError(f"{path} is not valid JSON ({error}): delete it and run again") from error


def write_tsv(path, columns, rows):
    """Write dicts as a tab-separated table; None becomes an empty cell, a list is joined with commas."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return value


def read_tsv(path):
    """Read a tab-separated table with a header line as a list of dicts of str; empty cells are ''."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return [
            {key.strip(): (cell or "").strip() for key, cell in row.items() if key is not None}
            for row in csv.DictReader(file, delimiter="\t")
        ]


def archive_stem(name: str) -> str | None:
    """The name of an archive of files without its suffix, or None where the name is none of an archive.

    >>> archive_stem("anna.tar.gz"), archive_stem("scans/anna.zip"), archive_stem("anna")
    ('anna', 'scans/anna', None)
    """
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix and len(name) > len(suffix) else None


def zip_folder(folder, path):
    """Write the files below `folder` as a .zip, stored as they are; the same files give the same bytes."""
    import zipfile

    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in list_files(folder):
            archive.writestr(zipfile.ZipInfo(name), (Path(folder) / name).read_bytes())


def list_files(folder):
    """Yield the paths of all files below `folder`, relative to it with `/`, in sorted order.

    Linked folders are followed once each, hidden files and folders are passed over, and a folder that may not be
    listed is yielded itself, so that whoever opens it learns why. Raises FileNotFoundError where there is no `folder`.
    """
    seen = set()

    def walk(relative, depth):
        where = os.path.join(folder, relative) if relative else os.fspath(folder)  # noqa: PTH118
        real = os.path.realpath(where)
        if depth > DEEPEST_FOLDER or real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(where), key=lambda entry: entry.name)
        except OSError:
            if not relative and not os.path.isdir(where):  # noqa: PTH112
                raise
            yield relative or "."
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{relative}/{entry.name}" if relative else entry.name
            if _is_folder(entry):
                yield from walk(name, depth + 1)
            else:
                yield name

    yield from walk("", 0)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
