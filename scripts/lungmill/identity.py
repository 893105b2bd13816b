"""Names that are safe to write: hashed DICOM identifiers and patient ids that are file names."""

import hashlib
import re
import unicodedata

# Windows' and POSIX' limit for one component is 255 bytes; room is left for suffixes such as ".json".
LONGEST_ID = 120


def hash_uid(uid: str) -> str:
    """The first 16 hexadecimal digits of a UID's SHA-256: equal UIDs stay equal, the UID itself is not written."""
    return hashlib.sha256(str(uid).strip().encode()).hexdigest()[:16]


def patient_id(name: str) -> str:
    """Turn any patient name into one path component: letters, digits, `-`, `_` and `.` stay, the rest becomes `_`.

    A name that had to change gets a short hash of the original, so that two different names never share an id.

    >>> patient_id("LIDC-IDRI-0001")
    'LIDC-IDRI-0001'
    >>> patient_id("../etc").startswith("etc-")
    True
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", ascii_name).strip("._-")[:LONGEST_ID]
    if safe == name and name.lower() != "zarr.json":  # that name belongs to the cohort group itself
        return name
    return f"{safe or 'patient'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
