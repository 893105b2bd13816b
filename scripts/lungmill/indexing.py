"""Judge a patient's DICOM folder: which series is the scan, where its slices lie, or why there is none."""

from pathlib import Path

import numpy as np

from lungmill.dicom.candidate import find_candidates
from lungmill.dicom.folder import read_folder
from lungmill.dicom.pixels import read_hounsfield
from lungmill.dicom.source import open_source
from lungmill.errors import DicomError, printable
from lungmill.files import archive_stem
from lungmill.identity import hash_uid
from lungmill.progress import bar
from lungmill.version import __version__

# A scan of a person holds air (lungs, bowel, the room) and soft tissue. Shares of the voxels in three slices.
AIR_HU, TISSUE_HU = (-1024, -700), (-200, 200)
LEAST_AIR, LEAST_TISSUE = 0.005, 0.02
MANUFACTURERS = ("GE", "SIEMENS", "PHILIPS", "TOSHIBA", "CANON", "HITACHI", "NEUSOFT", "UNITED IMAGING", "SHIMADZU")
DEFAULT_SETTINGS = {"min_slices": 10, "max_gap": 2.5, "orientations": ["axial"]}


def index(folder, patient: str | None = None, settings: dict | None = None, series_uid: str | None = None) -> dict:
    """Read the headers below `folder` and return the verdict, ready for JSON; it never raises for bad data.

    folder: a patient's DICOM folder, or an archive of it. patient: its name in the verdict, by default the folder's.
    settings: `min_slices`, `max_gap` and `orientations`, as `series` in config.yaml.
    series_uid: take this SeriesInstanceUID and no other.

    Besides headers, the pixels of three slices of the chosen series are decoded, to see that they can be and that
    they are Hounsfield units. The verdict's keys are described in `lungmill.verdict`.
    """
    settings = {**DEFAULT_SETTINGS, **(settings or {})}
    patient = patient or archive_stem(Path(folder).name) or Path(folder).name
    content = read_folder(folder, bar(f"index {patient}"))
    headers = content.headers if content.damage is None else []
    if series_uid:
        headers = [header for header in headers if header.series_uid == series_uid.strip()]
    candidates = find_candidates(folder, headers, settings)
    chosen = _first_plausible(folder, candidates)
    verdict = {"lungmill": __version__, "patient": patient}
    if chosen is not None:
        verdict |= {"status": "accepted", "reason": None, "detail": None}
        verdict["warnings"] = _warnings(chosen, candidates, content, settings)
        verdict |= _describe(chosen)
    else:
        verdict |= {"status": "rejected", **_why_none(content, candidates, series_uid)}
    verdict["candidates"] = [candidate.describe(chosen) for candidate in candidates]
    verdict["files"] = {
        "dicom": len(content.headers),
        "not_dicom": len(content.not_dicom),
        "unreadable": len(content.unreadable),
    }
    return verdict


def _first_plausible(folder, candidates):
    """The best candidate that is acceptable and whose pixels are Hounsfield units."""
    for candidate in candidates:
        if not candidate.acceptable:
            continue
        try:
            _check_hounsfield(folder, candidate)
            _check_whole(folder, candidate)
        except DicomError as error:
            candidate.reject(error)
        except OSError as error:
            candidate.reject(DicomError("unreadable", f"a slice cannot be read ({type(error).__name__})"))
        else:
            return candidate
    return None


def _check_hounsfield(folder, candidate):
    records = [_slice_record(header) for header in candidate.headers]
    places = sorted({len(records) // 4, len(records) // 2, 3 * len(records) // 4})
    values = np.concatenate([read_hounsfield(folder, records[place]).ravel() for place in places])
    for name, (low, high), least in (("air", AIR_HU, LEAST_AIR), ("soft tissue", TISSUE_HU, LEAST_TISSUE)):
        share = np.count_nonzero((values >= low) & (values <= high)) / values.size
        if share < least:
            raise DicomError(
                "implausible_hu", f"{share:.1%} of the voxels are {name} ({low} to {high} HU): not Hounsfield units"
            )


def _check_whole(folder, candidate):
    """Compare the files with their archive's checksums: a damaged one is not to surface hours later, or never."""
    source = open_source(folder)
    for file in sorted({header.file for header in candidate.headers}):
        source.verify(file)


def _why_none(content, candidates, series_uid):
    """Reason, detail and warnings of the best candidate, or the reason for there being none."""
    if content.damage is not None:
        return {"reason": content.damage.reason, "detail": content.damage.detail, "warnings": []}
    if candidates:
        best = min(candidates, key=lambda candidate: (candidate.reason == "no_ct_series", candidate.rank()))
        return {"reason": best.reason, "detail": best.detail, "warnings": best.warnings}
    if series_uid and content.headers:
        reason, detail = "no_ct_series", "the series_uid of the patients table is not in the folder"
    elif content.unreadable:
        reason = "unreadable"
        detail = f"{len(content.unreadable)} files cannot be read, {printable(content.unreadable[0])} the first"
    else:
        reason, detail = "no_dicom", f"no DICOM file among {len(content.not_dicom)} files"
    return {"reason": reason, "detail": detail, "warnings": []}


def _warnings(chosen, candidates, content, settings):
    warnings = list(chosen.warnings)
    others = [
        candidate
        for candidate in candidates
        if candidate is not chosen and len(candidate.headers) >= settings["min_slices"] and candidate.headers[0].is_ct
    ]
    if others:
        warnings.append(
            {"code": "several_series", "detail": f"{len(others)} other CT series in the folder, see candidates"}
        )
    ignored = len(content.not_dicom) + len(content.unreadable)
    if ignored:
        warnings.append(
            {
                "code": "ignored_files",
                "detail": f"{len(content.not_dicom)} files are not DICOM, {len(content.unreadable)} cannot be read",
            }
        )
    return warnings


def _describe(chosen):
    first, geometry = chosen.headers[0], chosen.geometry
    return {
        "series": {
            "uid": hash_uid(first.series_uid or ""),
            "manufacturer": _known_manufacturer(first.manufacturer),
            "transfer_syntax": first.transfer_syntax,
            "thickness_mm": first.thickness,
            "kvp": first.kvp,
            "megabytes": round(sum(header.size for header in chosen.headers) / 1e6, 3),
        },
        "geometry": {
            "orientation": geometry.orientation,
            "directions": [*geometry.row_direction.tolist(), *geometry.column_direction.tolist()],
            "pixel_spacing": list(geometry.pixel_spacing),
            "shape": list(geometry.shape),
            "step_mm": round(float(np.median(geometry.steps_mm)), 6),
            "tilt_degrees": round(geometry.tilt_degrees, 3),
        },
        "slices": [_slice_record(header) for header in chosen.headers],
    }


def _slice_record(header):
    """One line of the verdict's `slices`: all that `lungmill.dicom.pixels.read_hounsfield` needs to know."""
    return {
        "file": header.file,
        "frame": header.frame,
        "frames": header.frames,
        "position": list(header.position),
        "rows": header.rows,
        "columns": header.columns,
        "transfer_syntax": header.transfer_syntax,
        "offset": header.pixels.offset,
        "item": header.item,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored or header.bits_allocated,
        "high_bit": (header.bits_stored or header.bits_allocated) - 1 if header.high_bit is None else header.high_bit,
        "signed": header.signed,
        "slope": header.slope,
        "intercept": header.intercept,
        "lut": header.lut,
        "padding": None if header.padding is None else list(header.padding),
    }


def _known_manufacturer(text):
    """The vendor by a name of our own: Manufacturer is free text, and free text is not written."""
    upper = (text or "").upper()
    return next((name for name in MANUFACTURERS if name in upper), "other")
