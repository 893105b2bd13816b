"""Write one synthetic patient of the demo cohort as a DICOM folder, or as a .zip of one."""

import _job

_job.start(snakemake)

import tempfile
from pathlib import Path

from lungmill.demo import write_demo_patient
from lungmill.files import archive_stem, zip_folder

patient, seed = snakemake.wildcards.patient, snakemake.params.step["seed"]
if archive_stem(snakemake.output.dicom) is None:
    write_demo_patient(snakemake.output.dicom, patient, seed)
else:
    with tempfile.TemporaryDirectory() as folder:
        write_demo_patient(Path(folder, patient), patient, seed)
        zip_folder(Path(folder, patient), snakemake.output.dicom)
