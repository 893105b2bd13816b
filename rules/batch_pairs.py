"""The pairs of vCPUs and memory that AWS Batch takes, and the next one for what a job needs.

The executor plugin (0.2.1) lowers memory that is in no pair to the smallest of its vCPUs, with a warning that nobody
reads, and the job dies of it. https://docs.aws.amazon.com/batch/latest/APIReference/API_ResourceRequirement.html
"""

from lungmill.errors import ConfigError

# vCPUs to (smallest, largest, step) in MiB.
MEMORY = {
    1: (2048, 8192, 1024),
    2: (4096, 16384, 1024),
    4: (8192, 30720, 1024),
    8: (16384, 61440, 4096),
    16: (32768, 122880, 8192),
}


def legal_pair(mem_mb: float, cores: int = 1) -> tuple[int, int]:
    """The smallest pair (vCPUs, MiB) with at least `cores` vCPUs and at least `mem_mb` MiB.

    More memory than a number of vCPUs may have is to be had with more of them only. Raises ConfigError for more than
    there is.
    """
    for vcpus, (smallest, largest, step) in MEMORY.items():
        if vcpus >= cores and mem_mb <= largest:
            steps = -(-(max(mem_mb, smallest) - smallest) // step)
            return vcpus, int(smallest + steps * step)
    most = MEMORY[16][1]
    raise ConfigError(f"resources: AWS Batch has no machine of {cores} vCPUs and {mem_mb} MiB, at most 16 and {most}")


def legal_memory(mem_mb: float, cores: int = 1) -> int:
    """The smallest memory of a pair with exactly `cores` vCPUs that is at least `mem_mb`, or the largest there is.

    For `mem_mb` of a rule whose threads are fixed: a retry that asks for more than its vCPUs may have gets the most.
    """
    smallest, largest, step = MEMORY[cores]
    steps = -(-(max(mem_mb, smallest) - smallest) // step)
    return int(min(smallest + steps * step, largest))
