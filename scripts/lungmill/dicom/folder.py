"""All headers under a patient's folder, whatever else lies there."""

import warnings
from dataclasses import dataclass, field

from lungmill.dicom.header import Header, read_header
from lungmill.errors import DicomError
from lungmill.files import list_files


@dataclass
class FolderContent:
    """What was found: headers of DICOM files, and why the other files were left out, by kind."""

    headers: list[Header] = field(default_factory=list)
    not_dicom: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_folder(folder, progress=lambda files: files) -> FolderContent:
    """Read the header of every file below `folder`; nothing that is wrong with one file stops the others."""
    content = FolderContent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote header values, which must not reach a log
        for file in progress(list(list_files(folder))):
            try:
                header = read_header(folder, file)
            except (DicomError, OSError):
                content.unreadable.append(file)
                continue
            if header is None:
                content.not_dicom.append(file)
            else:
                content.headers.append(header)
    return content
