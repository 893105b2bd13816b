"""Write dataset.tsv: every accepted patient's split, label and paths."""

import _job

_job.start(snakemake)

from lungmill.dataset import make_dataset

step = snakemake.params.step
make_dataset(
    snakemake.output.table,
    step["patients"],
    products=step["products"],
    fractions=step["fractions"],
    seed=step["seed"],
)
