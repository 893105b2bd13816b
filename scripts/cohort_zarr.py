"""Write the root of the cohort's Zarr group, which the patients' groups lie in."""

import _job

_job.start(snakemake)

from pathlib import Path

from lungmill.packing import create_cohort_group

create_cohort_group(Path(snakemake.output.group).parent)
