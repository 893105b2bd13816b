"""A volume or a mask on disk: the .npy, and the JSON beside it that says where its voxels lie."""

import numpy as np

from lungmill.files import read_json, replacing, write_json
from lungmill.grid import Grid
from lungmill.version import __version__


def open_volume(npy, sidecar):
    """Memory-map a volume or mask and read its JSON: (array, grid, JSON)."""
    described = read_json(sidecar)
    return np.load(npy, mmap_mode="r"), Grid.from_dict(described), described


def write_array(npy, sidecar, patient: str, make):
    """Write an array and its JSON so that the .npy appears only when it is whole, and the JSON after it.

    make: called with a function that takes (shape, dtype) and returns the memory-mapped array to fill; returns the
    dict for the JSON, which `lungmill` and `patient` are put in front of.
    """
    with replacing(npy) as temporary:
        described = make(
            lambda shape, dtype: np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=tuple(shape))
        )
    write_json(sidecar, {"lungmill": __version__, "patient": patient, **described})


def describe_volume(volume, grid: Grid, series, interpolation: str) -> dict:
    """The JSON of a resampled volume: its grid, where it came from, and a histogram of its HU.

    `source` is in the scan's own axes: slice, row, column. Only technical attributes of the scan are repeated.
    """
    from lungmill.resampling import hounsfield_histogram

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
