"""All headers under a patient's folder or in its archive, whatever else lies there."""

import warnings
from dataclasses import dataclass, field

from lungmill.dicom.archive import DamagedArchive
from lungmill.dicom.header import Header, read_header
from lungmill.dicom.source import open_source
from lungmill.errors import DicomError


@dataclass
class FolderContent:
    """What was found: headers of DICOM files, and why the other files were left out, by kind.

    damage: why the files may not be used at all, where they came from an archive that is not whole.
    """

    headers: list[Header] = field(default_factory=list)
    not_dicom: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    damage: DamagedArchive | None = None


def read_folder(folder, progress=lambda files: files) -> FolderContent:
    """Read the header of every file below `folder`; nothing that is wrong with one file stops the others.

    folder: a folder, an archive, or what `lungmill.dicom.source.open_source` made of it.
    """
    content = FolderContent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote header values, which must not reach a log
        try:
            source = open_source(folder)
        except DamagedArchive as error:
            content.damage = error
            return content
        for file in progress(source.files()):
            try:
                header = read_header(source, file)
            except DamagedArchive as error:
                content.damage = error
                break
            except (DicomError, OSError):
                content.unreadable.append(file)
                continue
            if header is None:
                content.not_dicom.append(file)
            else:
                content.headers.append(header)
    return content
