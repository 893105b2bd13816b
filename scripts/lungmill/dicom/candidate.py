"""Candidate volumes: the files of a folder grouped by series and geometry, each judged on its own."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lungmill.dicom.geometry import SAME_POSITION_MM, SliceGeometry, check_steps, slice_geometry, unit_directions
from lungmill.dicom.header import Header
from lungmill.dicom.pixels import LOSSY_SYNTAXES, can_decode, expected_bytes
from lungmill.errors import DicomError
from lungmill.identity import hash_uid


@dataclass
class Candidate:
    """Headers that may form one volume, in the order of their slices once `geometry` is known."""

    headers: list[Header]
    geometry: SliceGeometry | None = None
    warnings: list[dict] = field(default_factory=list)
    reason: str | None = None
    detail: str | None = None

    @property
    def acceptable(self):
        return self.reason is None

    def reject(self, error: DicomError):
        self.reason, self.detail = error.reason, error.detail

    def rank(self):
        """Sort key, best first: acceptable, CT, original, axial, most slices, thinnest, then by UID."""
        first, geometry = self.headers[0], self.geometry
        step = float(np.median(geometry.steps_mm)) if geometry is not None and len(geometry.steps_mm) else np.inf
        return (
            not self.acceptable,
            not first.is_ct,
            first.is_localizer,
            not first.is_original,
            geometry is None or geometry.orientation != "axial",
            -len(self.headers),
            step,
            hash_uid(first.series_uid or ""),
            first.file,
        )

    def describe(self, chosen: bool) -> dict:
        """The candidate's line in the verdict: technical facts only."""
        first, geometry = self.headers[0], self.geometry
        even = geometry is not None and len(geometry.steps_mm)
        return {
            "series": hash_uid(first.series_uid or ""),
            "chosen": chosen,
            "status": "accepted" if self.acceptable else "rejected",
            "reason": self.reason,
            "detail": self.detail,
            "n_slices": len(self.headers),
            "orientation": geometry.orientation if geometry is not None else None,
            "step_mm": round(float(np.median(geometry.steps_mm)), 4) if even else None,
            "original": first.is_original,
        }


def find_candidates(root, headers, settings) -> list[Candidate]:
    """Group headers by series, matrix, pixel spacing and orientation, judge each group, best first.

    settings: the `series` part of config.yaml.
    """
    groups = defaultdict(list)
    for header in headers:
        groups[_group_key(header)].append(header)
    candidates = [part for group in groups.values() for part in _judge(root, group, settings)]
    return sorted(candidates, key=Candidate.rank)


def _group_key(header):
    rounded = [
        None if vector is None else tuple(round(number, digits) for number in vector)
        for vector, digits in ((header.orientation, 3), (header.pixel_spacing, 4))
    ]
    return header.series_uid, header.is_ct, header.is_localizer, header.rows, header.columns, *rounded


def _judge(root, headers, settings):
    """Yield the candidates of one group, more than one where several slices share their positions."""
    whole = Candidate(sorted(headers, key=lambda header: header.file))
    try:
        _check_kind(whole)
        kept, dropped = _drop_copies(root, whole.headers)
        parts = _split_repeats(kept)
    except (DicomError, OSError) as error:
        if isinstance(error, OSError):
            error = DicomError("unreadable", f"a slice cannot be read ({type(error).__name__})")
        whole.reject(error)
        yield whole
        return
    for part in parts:
        candidate = Candidate(part)
        if dropped:
            candidate.warnings.append(
                {"code": "duplicate_slices", "detail": f"{dropped} exact copies of slices were dropped"}
            )
        try:
            _check(candidate, settings)
        except DicomError as error:
            candidate.reject(error)
        yield candidate


def _check_kind(candidate):
    first = candidate.headers[0]
    if not first.is_ct:
        raise DicomError("no_ct_series", f"not CT images but {_known_modality(first.modality)}")
    if first.is_localizer:
        raise DicomError("no_ct_series", "a localizer")
    if not first.rows or not first.columns:
        raise DicomError("no_ct_series", "CT objects without an image")
    for header in candidate.headers:
        if header.pixels is None:
            raise DicomError("truncated_pixels", f"{header.file} has no pixel data")
    if any(header.frames > 1 for header in candidate.headers):
        raise DicomError("no_geometry", "a multi-frame object, whose geometry per frame is not read")
    if any(header.position is None for header in candidate.headers) or first.orientation is None:
        raise DicomError("no_geometry", "ImagePositionPatient or ImageOrientationPatient is absent")
    if first.pixel_spacing is None or min(first.pixel_spacing) <= 0:
        raise DicomError("no_geometry", "PixelSpacing is absent or not positive")


def _check(candidate, settings):
    """Work out the geometry and raise DicomError for what makes the candidate unusable."""
    headers, first = candidate.headers, candidate.headers[0]
    candidate.geometry, order = slice_geometry(
        [header.position for header in headers], first.orientation, first.pixel_spacing, first.rows, first.columns
    )
    headers[:] = [headers[k] for k in order]
    if len(headers) < settings["min_slices"]:
        raise DicomError("too_few_slices", f"{len(headers)} slices (series.min_slices is {settings['min_slices']})")
    candidate.warnings += check_steps(candidate.geometry, settings["max_gap"])
    if candidate.geometry.orientation not in settings["orientations"]:
        raise DicomError(
            "not_axial", f"slices are {candidate.geometry.orientation} (series.orientations does not list that)"
        )
    _check_pixels(candidate)


def _check_pixels(candidate):
    headers = candidate.headers
    for syntax in sorted({header.transfer_syntax for header in headers}):
        if not can_decode(syntax):
            raise DicomError("unsupported_transfer_syntax", f"no decoder for {syntax}")
    for header in headers:
        if header.samples != 1 or header.bits_allocated not in (8, 16, 32):
            raise DicomError("unreadable", f"{header.file} does not hold one integer number per pixel")
        if not _is_complete(header):
            raise DicomError("truncated_pixels", f"{header.file} ends before its pixel data do")
    lossy = sum(header.lossy or header.transfer_syntax in LOSSY_SYNTAXES for header in headers)
    if lossy:
        candidate.warnings.append({"code": "lossy_compression", "detail": f"{lossy} slices were compressed with loss"})
    padded = sorted({header.padding[0] for header in headers if header.padding})
    if padded:
        values = ", ".join(str(value) for value in padded)
        candidate.warnings.append({"code": "padding", "detail": f"stored value {values} is padding, taken as air"})


def _is_complete(header):
    pixels = header.pixels
    if pixels is None or not pixels.complete:
        return False
    if pixels.fragments is not None:
        return pixels.fragments >= header.frames
    needed = expected_bytes(header.rows, header.columns, header.bits_allocated, header.samples, header.frames)
    return pixels.offset is None or pixels.length >= needed


def _drop_copies(root, headers):
    """Keep one of each set of files that hold the same pixels at the same position."""
    by_position = defaultdict(list)
    for header in headers:
        by_position[tuple(round(mm / SAME_POSITION_MM) for mm in header.position)].append(header)
    kept = []
    for group in by_position.values():
        seen = set()
        for header in group:
            digest = _pixel_digest(root, header) if len(group) > 1 else None
            if digest is None or digest not in seen:
                seen.add(digest)
                kept.append(header)
    return kept, len(headers) - len(kept)


def _pixel_digest(root, header):
    with (Path(root) / header.file).open("rb") as stream:
        stream.seek(header.pixels.offset or 0)
        return hashlib.file_digest(stream, "sha256").digest()


def _split_repeats(headers):
    """Tell acquisitions apart where different slices share positions: by AcquisitionNumber, else by order.

    A stack with a single position is left whole: it is no volume, and is judged as such.
    """
    row, column = unit_directions(headers[0].orientation)
    normal = np.cross(row, column)
    places = [round(float(np.dot(header.position, normal)) / SAME_POSITION_MM) for header in headers]
    counts = Counter(places)
    if len(counts) == 1 or max(counts.values()) == 1:
        return [headers]
    by_acquisition = defaultdict(list)
    for header, place in zip(headers, places, strict=True):
        by_acquisition[header.acquisition].append((place, header))
    if all(len({place for place, _ in part}) == len(part) for part in by_acquisition.values()):
        return [[header for _, header in part] for part in by_acquisition.values()]
    parts = defaultdict(list)
    nth = Counter()
    in_order = sorted(zip(headers, places, strict=True), key=lambda item: (item[0].instance or 0, item[0].file))
    for header, place in in_order:
        parts[nth[place]].append(header)
        nth[place] += 1
    return list(parts.values())


def _known_modality(modality):
    """Modality is a defined term (PS3.3 C.7.3.1.1.1); anything else is not repeated."""
    known = {"MR", "PT", "NM", "CR", "DX", "US", "SR", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "OT", "KO", "PR"}
    return modality if modality in known else "another kind"
