"""Write one synthetic patient of the demo cohort as a DICOM folder."""

import _job

_job.start(snakemake)

from lungmill.demo import write_demo_patient

write_demo_patient(snakemake.output.dicom, snakemake.wildcards.patient, snakemake.params.step["seed"])
