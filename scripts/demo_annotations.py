"""Write the true nodules of the demo cohort as annotations.csv."""

import _job

_job.start(snakemake)

from lungmill.demo import write_annotations

write_annotations(snakemake.output.annotations, snakemake.params.step["seed"])
