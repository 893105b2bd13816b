"""Write cohort.tsv: what became of every patient."""

import _job

_job.start(snakemake)

from lungmill.summary import write_cohort

names = snakemake.params.step["names"]
write_cohort(snakemake.output.table, names, names)
