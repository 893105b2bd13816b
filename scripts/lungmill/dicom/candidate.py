"""Candidate volumes: the files of a folder grouped by series and geometry, each judged on its own."""

from dataclasses import dataclass, field

import numpy as np
from pydicom.uid import UID

from lungmill.dicom.geometry import SliceGeometry, check_steps, slice_geometry
from lungmill.dicom.grouping import group_slices
from lungmill.dicom.header import Header
from lungmill.dicom.multiframe import split_frames
from lungmill.dicom.pixels import LOSSY_SYNTAXES, can_decode, expected_bytes, is_known_syntax
from lungmill.dicom.repeats import drop_copies, split_ranges, split_repeats
from lungmill.errors import DicomError
from lungmill.identity import hash_uid

# Beginnings of SOP Class UIDs (PS3.6 A), the longer before the shorter.
STORAGE = "1.2.840.10008.5.1.4.1.1."
KINDS = {
    STORAGE + "7": "secondary captures",
    STORAGE + "88.67": "radiation dose reports",
    STORAGE + "88": "structured reports",
    STORAGE + "481": "radiotherapy objects",
    STORAGE + "11": "presentation states",
    STORAGE + "104": "encapsulated documents",
    STORAGE + "66.4": "segmentations",
    STORAGE + "66": "raw data or registrations",
    "1.2.840.10008.1.3.10": "a media directory (DICOMDIR)",
}
# The finest CT matrix on the market is 2048 x 2048; a header that claims far more must not have it allocated.
MOST_PIXELS = 4096 * 4096
# Beyond these, positions or spacings are wrong, and resampling to a cohort's spacing would make an absurd volume.
LONGEST_MM, FINEST_MM = 4000, 0.01
MODALITIES = {"MR", "PT", "NM", "CR", "DX", "US", "SR", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "OT", "KO", "PR"}


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

    @property
    def is_original(self):
        return all(header.is_original for header in self.headers)

    def reject(self, error: DicomError):
        self.reason, self.detail = error.reason, error.detail

    def rank(self):
        """Sort key, best first: acceptable, CT, original, axial, most slices, thinnest, then by UIDs."""
        return (*self._merits().values(), *self._names())

    def _merits(self):
        first, geometry = self.headers[0], self.geometry
        step = float(np.median(geometry.steps_mm)) if geometry is not None and len(geometry.steps_mm) else np.inf
        return {
            "it was rejected": not self.acceptable,
            "it is no CT": not first.is_ct,
            "it is a localizer": first.is_localizer,
            "it is derived, not original": not self.is_original,
            "it is not axial": geometry is None or geometry.orientation != "axial",
            "it has fewer slices": -len(self.headers),
            "its slices are further apart": round(step, 4),
        }

    def _names(self):
        """What orders equals, independent of file names as long as instances have UIDs."""
        first = self.headers[0]
        instances = [hash_uid(header.sop_instance) for header in self.headers if header.sop_instance]
        return (
            hash_uid(first.series_uid or ""),
            hash_uid(first.frame_of_reference or ""),
            first.acquisition or 0,
            min((header.frame for header in self.headers if header.frames > 1), default=0),
            min(instances, default=""),
            min((header.file, header.frame) for header in self.headers),
        )

    def describe(self, chosen: "Candidate | None") -> dict:
        """The candidate's line in the verdict: technical facts only.

        chosen: the candidate that was taken. `detail` of any other says why it was not.
        """
        first, geometry = self.headers[0], self.geometry
        even = geometry is not None and len(geometry.steps_mm)
        return {
            "series": hash_uid(first.series_uid or ""),
            "chosen": self is chosen,
            "status": "accepted" if self.acceptable else "rejected",
            "reason": self.reason,
            "detail": self.detail or self._why_not(chosen),
            "n_slices": len(self.headers),
            "orientation": geometry.orientation if geometry is not None else None,
            "step_mm": round(float(np.median(geometry.steps_mm)), 4) if even else None,
            "original": self.is_original,
            "score": self._score(),
        }

    def _score(self):
        """Merits as numbers, better ones larger but for the step, which comes last; compared from left to right."""
        *flaws, negative_slices, step = self._merits().values()
        return [*(int(not flaw) for flaw in flaws), -negative_slices, step if np.isfinite(step) else None]

    def _why_not(self, chosen):
        if chosen is None or self is chosen:
            return None
        better = chosen._merits()
        worse = (words for words, merit in self._merits().items() if merit != better[words])
        return f"not taken: {next(worse, 'it is as good, and another came first')}"


def find_candidates(root, headers, settings) -> list[Candidate]:
    """Group headers by series and geometry (`lungmill.dicom.grouping`) and judge each group.

    Multi-frame files are split into their frames first. settings: the `series` part of config.yaml. Best first.
    """
    frames, candidates = [], []
    for header in headers:
        try:
            frames.extend(split_frames(root, header))
        except (DicomError, OSError) as error:
            candidates.append(Candidate([header]))
            candidates[-1].reject(_as_verdict(error))
    for group in group_slices(frames):
        candidates.extend(_judge(root, group, settings))
    return sorted(candidates, key=Candidate.rank)


def _as_verdict(error):
    if isinstance(error, DicomError):
        return error
    return DicomError("unreadable", f"a file cannot be read ({type(error).__name__})")


def _judge(root, headers, settings):
    """Yield the candidates of one group, more than one where several slices share their positions."""
    whole = Candidate(headers)
    try:
        _check_kind(whole)
        kept, dropped = drop_copies(root, whole.headers)
        parts = split_repeats(kept)
    except (DicomError, OSError) as error:
        whole.reject(_as_verdict(error))
        yield whole
        return
    for part in parts:
        candidate = _judge_part(part, dropped, settings)
        if candidate.reason == "missing_slices":
            ranges = split_ranges(candidate.headers, candidate.geometry, settings["max_gap"])
            split = [_judge_part(part, dropped, settings) for part in ranges] if len(ranges) > 1 else []
            if any(part.acceptable for part in split):
                yield from split
                continue
        yield candidate


def _judge_part(headers, dropped, settings):
    candidate = Candidate(list(headers))
    if dropped:
        candidate.warnings.append(
            {"code": "duplicate_slices", "detail": f"{dropped} exact copies of slices were dropped"}
        )
    try:
        _check(candidate, settings)
    except DicomError as error:
        candidate.reject(error)
    return candidate


def _check_kind(candidate):
    first = candidate.headers[0]
    if not first.is_ct:
        raise DicomError("no_ct_series", f"not CT images but {kind_of(first)}")
    if first.is_localizer:
        raise DicomError("no_ct_series", "a localizer")
    if (first.rows or 0) < 1 or (first.columns or 0) < 1:
        raise DicomError("no_ct_series", "CT objects without an image")
    for header in candidate.headers:
        if header.pixels is None:
            raise DicomError("truncated_pixels", f"{header.file} has no pixel data")
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
    if len(headers) < 2:
        raise DicomError("too_few_slices", "one slice is no volume, whatever series.min_slices says")
    candidate.warnings += check_steps(candidate.geometry, settings["max_gap"])
    if candidate.geometry.orientation not in settings["orientations"]:
        raise DicomError(
            "not_axial", f"slices are {candidate.geometry.orientation} (series.orientations does not list that)"
        )
    _check_pixels(candidate)
    extent = float(np.ptp(candidate.geometry.corners(), axis=(0, 1)).max())
    if extent > LONGEST_MM or min(first.pixel_spacing) < FINEST_MM:
        finest = min(first.pixel_spacing)
        raise DicomError(
            "inconsistent_geometry", f"no scan of a person: {extent:.4g} mm long, pixels of {finest:.4g} mm"
        )


def _check_pixels(candidate):
    headers = candidate.headers
    for syntax in sorted({header.transfer_syntax for header in headers}):
        if not can_decode(syntax):
            known = syntax if is_known_syntax(syntax) else "an unknown one"  # free text is not repeated
            raise DicomError("unsupported_transfer_syntax", f"no decoder for the transfer syntax, {known}")
    for header in headers:
        if header.samples != 1 or header.bits_allocated not in (8, 16, 32):
            raise DicomError("unreadable", f"{header.file} does not hold one integer number per pixel")
        if header.rows * header.columns > MOST_PIXELS:
            raise DicomError("unreadable", f"{header.file} claims {header.rows} x {header.columns} pixels")
        if not _is_complete(header):
            raise DicomError("truncated_pixels", f"{header.file} ends before its pixel data do")
        if UID(header.transfer_syntax).is_encapsulated != (header.pixels.fragments is not None):
            raise DicomError("unreadable", f"{header.file} is not compressed in the way that it says")
        if header.pixels.matrix not in (None, (header.rows, header.columns)):
            raise DicomError("unreadable", f"the header of {header.file} and its compressed pixels differ in size")
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


def kind_of(header) -> str:
    """What a file that is no CT image is, in words of our own: nothing of the header is repeated."""
    for start, words in KINDS.items():
        if f"{header.sop_class}.".startswith(f"{start}."):
            return words
    # Modality is a defined term (PS3.3 C.7.3.1.1.1); anything else is not repeated.
    return header.modality if header.modality in MODALITIES else "another kind"
