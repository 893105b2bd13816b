"""Cut one patient's patch dataset from its volume and mask."""

import _job

_job.start(snakemake)

from lungmill.annotations import Nodule
from lungmill.patches import cut_patches
from lungmill.sidecar import open_volume

volume, grid, _ = open_volume(snakemake.input.volume, snakemake.input.geometry)
mask, *_ = open_volume(snakemake.input.mask, snakemake.input.labels)
step = snakemake.params.step
cut_patches(
    snakemake.output.patches,
    volume,
    mask,
    grid,
    shape=step["shape"],
    per_class=step["per_class"],
    nodules=None if step["nodules"] is None else [Nodule(*nodule) for nodule in step["nodules"]],
    seed=step["seed"],
    patient=snakemake.wildcards.patient,
)
