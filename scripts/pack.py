"""Write one patient's image and mask as a compressed store of one format."""

import _job

_job.start(snakemake)

from pathlib import Path

from lungmill.packing import pack
from lungmill.sidecar import open_volume

image, grid, described = open_volume(snakemake.input.volume, snakemake.input.geometry)
mask, *_ = open_volume(snakemake.input.mask, snakemake.input.labels)
step = snakemake.params.step
store = Path(snakemake.output.store) if step["format"] != "zarr" else Path(snakemake.output.store[0]).parent
metadata = {"patient": described["patient"], "series": described["series"]}
pack(
    store,
    image,
    mask,
    grid,
    format=step["format"],
    codec=step.get("codec"),
    level=step["level"],
    chunk=step["chunk"],
    metadata=metadata,
    threads=snakemake.threads,
)
