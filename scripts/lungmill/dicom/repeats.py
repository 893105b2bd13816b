"""Slices that share positions, or leave wide gaps: copies are dropped, acquisitions are told apart."""

import hashlib
import os
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import PurePath

import numpy as np

from lungmill.dicom.geometry import SAME_POSITION_MM, SliceGeometry, unit_directions
from lungmill.dicom.header import Header
from lungmill.dicom.pixels import expected_bytes
from lungmill.dicom.source import open_source
from lungmill.dicom.stream import read_frame

# Attributes by which acquisitions in one series are told apart, the first that explains every repeat.
TELLING_APART = (
    lambda header: header.image_type,
    lambda header: header.acquisition,
    lambda header: (header.image_type, header.acquisition),
    lambda header: header.file if header.frames > 1 else str(PurePath(header.file).parent),
)


def drop_copies(root, headers: list[Header]) -> tuple[list[Header], int]:
    """Keep one of each set of slices that hold the same pixels at the same position; also return how many went."""
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
    """What tells one slice's Hounsfield units from another's: its bytes as stored, and what makes HU of them."""
    pixels = header.pixels
    rescale = header.slope, header.intercept
    with open_source(root).open(header.file) as stream:
        if pixels.offset is None or header.frames == 1:
            stream.seek(pixels.offset or 0)
            return hashlib.file_digest(stream, "sha256").digest(), header.frame, rescale
        stream.seek(pixels.offset)
        if pixels.fragments is None:
            size = expected_bytes(header.rows, header.columns, header.bits_allocated or 16)
            stream.seek(header.frame * size, os.SEEK_CUR)
            data = stream.read(size)
        else:
            data = read_frame(stream, pixels.offset, header.item, header.frame, header.frames)
        return hashlib.sha256(data).digest(), 0, rescale


def split_repeats(headers: list[Header]) -> list[list[Header]]:
    """Tell acquisitions apart where different slices share positions: by what names them, else by order.

    A stack with a single position is left whole: it is no volume, and is judged as such.
    """
    places = _places(headers)
    counts = Counter(places)
    if len(counts) == 1 or max(counts.values()) == 1:
        return [headers]
    for name_of in TELLING_APART:
        named = defaultdict(list)
        for header, place in zip(headers, places, strict=True):
            named[name_of(header)].append((place, header))
        if all(len({place for place, _ in part}) == len(part) for part in named.values()):
            return [[header for _, header in part] for part in named.values()]
    parts = defaultdict(list)
    nth = Counter()
    in_order = sorted(zip(headers, places, strict=True), key=lambda pair: order_in_series(pair[0]))
    for header, place in in_order:
        parts[nth[place]].append(header)
        nth[place] += 1
    return list(parts.values())


def order_in_series(header: Header):
    """Sort key of slices whose positions do not tell: as numbered, then as named."""
    return header.instance or 0, header.file, header.frame


def _places(headers):
    """The position of each slice along the normal as a count of different positions from the first."""
    row, column = unit_directions(headers[0].orientation)
    along = np.array([header.position for header in headers], dtype=np.float64) @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    places = np.empty(len(headers), dtype=np.int64)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) >= SAME_POSITION_MM)])
    return places.tolist()


def split_ranges(headers: list[Header], geometry: SliceGeometry, max_gap: float) -> list[list[Header]]:
    """Split ordered slices at gaps wider than `max_gap` steps where each range is one acquisition of its own.

    A scan of chest and abdomen may be one series of two ranges. Where the numbers of acquisitions do not say so, the
    gap is a loss of slices: then the slices are returned whole.
    """
    steps = geometry.steps_mm
    cuts = np.flatnonzero(steps > max_gap * np.median(steps)) + 1
    bounds = [0, *cuts.tolist(), len(headers)]
    ranges = [headers[start:stop] for start, stop in pairwise(bounds)]
    numbers = [{header.acquisition for header in part} for part in ranges]
    known = set().union(*numbers) - {None}
    if all(len(part) == 1 for part in numbers) and len(known) == len(ranges):
        return ranges
    return [headers]
