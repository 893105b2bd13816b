"""Label the lungs of one patient: volume in; mask, what was measured on it, and sampling positions out."""

import _job

_job.start(snakemake)

from lungmill.positions import write_positions
from lungmill.segmenting import segment
from lungmill.sidecar import open_volume, write_array

patient, output = snakemake.wildcards.patient, snakemake.output
volume, grid, _ = open_volume(snakemake.input.volume, snakemake.input.geometry)


def make(create):
    settings, folder = snakemake.params.step["segment"], f"{output.mask}.command"
    mask, statistics, positions = segment(
        volume, grid, settings, patient=patient, folder=folder, threads=snakemake.threads
    )
    write_positions(output.positions, positions)
    create(mask.shape, mask.dtype)[:] = mask
    return {**grid.as_dict(), **statistics}


write_array(output.mask, output.labels, patient, make)
