"""Collect the verdicts of all patients in one table."""

import _job

_job.start(snakemake)

from lungmill.summary import write_verdicts

patients = snakemake.params.step["names"]
write_verdicts(snakemake.output.table, dict(zip(patients, snakemake.input.verdicts, strict=True)), patients)
