"""What stands in the JSON beside a resampled volume."""

import numpy as np

from lungmill.grid import Grid

AIR_HU = -1024


def describe_volume(volume, grid: Grid, series, interpolation: str) -> dict:
    """The JSON of a resampled volume: its grid, where it came from, and a histogram of its HU.

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
        "hu_histogram": hounsfield_histogram(volume),
    }


def hounsfield_histogram(volume, width_hu: int = 32) -> dict:
    """Count the voxels of an int16 volume in bins of `width_hu` from -1024 HU to 3071 HU; the last bin takes the rest.

    Returns {"start_hu", "width_hu", "counts"}.
    """
    bins = (3072 - AIR_HU) // width_hu
    counts = np.zeros(bins, dtype=np.int64)
    for plane in volume:
        # One plane at a time: bincount makes int64 copies of what it is given.
        index = (plane.ravel().astype(np.int32) - AIR_HU) // width_hu
        counts += np.bincount(np.clip(index, 0, bins - 1), minlength=bins)
    return {"start_hu": AIR_HU, "width_hu": width_hu, "counts": counts.tolist()}
