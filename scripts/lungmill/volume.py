"""What stands in the JSON beside a resampled volume."""

import numpy as np
from numba import njit

from lungmill.grid import Grid

AIR_HU = -1024


def describe_volume(volume, grid: Grid, series, interpolation: str) -> dict:
    """The JSON of a resampled volume: its grid, where it came from, and a histogram of its HU.

    volume: the int16 array, or the `CountedVolume` that it was written through.
    `source` is in the scan's own axes: slice, row, column. Only technical attributes of the scan are repeated.
    """
    geometry, verdict = series.geometry, series.verdict
    stored = verdict["geometry"]
    return {
        **grid.as_dict(),
        "interpolation": interpolation,
        "series": verdict["series"]["uid"],
        "source": {
            "spacing_mm": [stored["step_mm"], *stored["pixel_spacing"]],
            "shape": stored["shape"],
            "orientation": stored["orientation"],
            "directions": stored["directions"],
            "tilt_degrees": stored["tilt_degrees"],
            "slice_positions_mm": np.round(geometry.positions_mm, 6).tolist(),
            **{key: value for key, value in verdict["series"].items() if key not in ("uid", "megabytes")},
        },
        "hu_histogram": volume.histogram() if isinstance(volume, CountedVolume) else hounsfield_histogram(volume),
    }


class CountedVolume:
    """Passes planes of int16 HU on to `volume`, and counts their voxels while they are in the cache.

    volume: takes planes, `volume[first:stop] = planes`, as this does.
    """

    def __init__(self, volume):
        self.volume = volume
        # By stored bits. Twice: neighbours are alike, and a count would wait for the one before it.
        self.counts = np.zeros((2, 1 << 16), dtype=np.int64)

    def __setitem__(self, planes, values):
        self.volume[planes] = values
        self.count(values)

    def count(self, values):
        """Count the voxels of an int16 array without passing them on."""
        _count(np.ascontiguousarray(values).reshape(-1).view(np.uint16), self.counts)

    def histogram(self, width_hu: int = 32) -> dict:
        """As `hounsfield_histogram`, of what has been counted."""
        total = self.counts.sum(axis=0)
        bins = (3072 - AIR_HU) // width_hu
        index = (np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int32) - AIR_HU) // width_hu
        counts = np.zeros(bins, dtype=np.int64)
        np.add.at(counts, np.clip(index, 0, bins - 1), total)
        return {"start_hu": AIR_HU, "width_hu": width_hu, "counts": counts.tolist()}


def hounsfield_histogram(volume, width_hu: int = 32) -> dict:
    """Count the voxels of an int16 volume in bins of `width_hu` from -1024 HU to 3071 HU; the last bin takes the rest.

    Returns {"start_hu", "width_hu", "counts"}.
    """
    counted = CountedVolume(volume)
    for plane in volume:
        counted.count(np.array(plane, dtype=np.int16))  # a copy: memory-mapped planes would be compiled for again
    return counted.histogram(width_hu)


@njit(cache=True, nogil=True)
def _count(values, counts):
    """Count uint16 values: the sum of both rows of `counts` (2, 65536)."""
    pairs = len(values) // 2
    for i in range(pairs):
        counts[0, values[2 * i]] += 1
        counts[1, values[2 * i + 1]] += 1
    if len(values) % 2:
        counts[0, values[-1]] += 1
