"""Judge one patient's DICOM folder: headers in, verdict out."""

import _job

_job.start(snakemake)

from lungmill.files import write_json
from lungmill.indexing import index

step = snakemake.params.step
verdict = index(snakemake.input.get("dicom") or step["dicom"], step["patient"], step["series"], step["series_uid"])
write_json(snakemake.output.verdict, verdict)
