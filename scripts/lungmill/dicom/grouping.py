"""Slices that may form one volume: those of a series that share matrix, spacing, orientation and coordinate system."""

from collections import defaultdict

import numpy as np

from lungmill.dicom.header import Header

# Vectors this near to each other are the same, written with fewer digits: 0.001 tilts a 500 mm slice by 0.5 mm, and
# 0.0002 mm of spacing add up to 0.1 mm.
SAME_COSINES, SAME_SPACING_MM = 1e-3, 2e-4


class _Alike:
    """Numbers vectors so that those within `tolerance` of one another's first get the same number."""

    def __init__(self, tolerance, length):
        self.tolerance = tolerance
        self.known = {None: None}
        self.firsts = np.full((8, length), np.inf)
        self.count = 0

    def number(self, vector):
        if vector not in self.known:
            distances = np.abs(self.firsts[: self.count] - vector).max(axis=1)
            nearest = int(distances.argmin()) if self.count else -1
            if nearest < 0 or distances[nearest] > self.tolerance:
                nearest = self._add(vector)
            self.known[vector] = nearest
        return self.known[vector]

    def _add(self, vector):
        if self.count == len(self.firsts):
            self.firsts = np.concatenate([self.firsts, self.firsts])
        self.firsts[self.count] = vector
        self.count += 1
        return self.count - 1


def group_slices(headers: list[Header]) -> list[list[Header]]:
    """Group by series, stack, kind, matrix, samples, orientation, pixel spacing, and then by frame of reference."""
    orientations, spacings = _Alike(SAME_COSINES, 6), _Alike(SAME_SPACING_MM, 2)
    groups = defaultdict(list)
    for header in sorted(headers, key=lambda header: (header.file, header.frame)):
        what = header.series_uid, header.stack, header.is_ct, header.is_localizer
        matrix = header.rows, header.columns, header.samples
        geometry = orientations.number(header.orientation), spacings.number(header.pixel_spacing)
        groups[(*what, *matrix, *geometry)].append(header)
    return [part for group in groups.values() for part in _by_frame_of_reference(group)]


def _by_frame_of_reference(headers):
    """Split where positions belong to different coordinate systems (PS3.3 C.7.4.1.1.1).

    Frames of reference that no two slices share say nothing: some anonymizers make a new one for every file.
    """
    parts = defaultdict(list)
    for header in headers:
        parts[header.frame_of_reference].append(header)
    return [headers] if len(parts) == len(headers) else list(parts.values())
