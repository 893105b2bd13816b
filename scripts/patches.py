"""Cut one patient's patch dataset from its volume, around positions that were drawn with its mask."""

import _job

_job.start(snakemake)

from lungmill.annotations import Nodule
from lungmill.patches import cut_patches
from lungmill.positions import read_positions
from lungmill.sidecar import open_volume

volume, grid, _ = open_volume(snakemake.input.volume, snakemake.input.geometry)
step = snakemake.params.step
cut_patches(
    snakemake.output.patches,
    volume,
    read_positions(snakemake.input.positions),
    grid,
    shape=step["shape"],
    per_class=step["per_class"],
    nodules=None if step["nodules"] is None else [Nodule(*nodule) for nodule in step["nodules"]],
    seed=step["seed"],
    patient=snakemake.wildcards.patient,
)
