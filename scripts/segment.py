"""Label the lungs of one patient: volume in, mask and its statistics out."""

import _job

_job.start(snakemake)

from lungmill.segmentation import segment_lungs
from lungmill.sidecar import open_volume, write_array

step = snakemake.params.step
volume, grid, _ = open_volume(snakemake.input.volume, snakemake.input.geometry)


def make(create):
    settings = {key: value for key, value in step["segment"].items() if key != "method"}
    mask, statistics = segment_lungs(volume, grid.spacing_mm, **settings)
    create(mask.shape, mask.dtype)[:] = mask
    return {**grid.as_dict(), **statistics}


write_array(snakemake.output.mask, snakemake.output.labels, snakemake.wildcards.patient, make)
