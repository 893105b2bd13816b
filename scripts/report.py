"""Write the report: one self-contained page on the whole cohort."""

import _job

_job.start(snakemake)

from pathlib import Path

from lungmill.reporting import write_report

step = snakemake.params.step
write_report(
    snakemake.output.page,
    Path(snakemake.input.cohort).parent,
    cohort=snakemake.input.cohort,
    logs=step["logs"],
    threads=snakemake.threads,
)
