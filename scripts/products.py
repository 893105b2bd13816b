"""Write the sizes of one patient's products, for tables that are made where those products are not."""

import _job

_job.start(snakemake)

from lungmill.summary import write_sizes

write_sizes(snakemake.output.sizes, dict(zip(snakemake.params.step["products"], snakemake.input, strict=True)))
