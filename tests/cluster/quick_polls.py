"""snakemake that asks SLURM every two seconds: the plugin waits 10 s longer after each answer that changed nothing."""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda executor: 2, lambda executor, seconds: None)
    sys.argv[0] = "snakemake"
    main()
