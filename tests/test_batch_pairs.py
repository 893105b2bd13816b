"""Memory and vCPUs that AWS Batch takes: the plugin's own table is the judge."""

import pytest

from batch_pairs import MEMORY, legal_memory, legal_pair
from lungmill.errors import ConfigError


def table():
    constant = pytest.importorskip(
        "snakemake_executor_plugin_aws_batch.constant", reason="the AWS Batch plugin is not installed"
    )
    return constant.VALID_RESOURCES_MAPPING


def test_every_pair_is_the_plugins_smallest_that_suffices():
    pairs = sorted((vcpus, memory) for memory, allowed in table().items() for vcpus in allowed)
    for cores in (1, 2, 3, 4, 8, 16):
        for mem_mb in [*range(1, 123_000, 379), *(memory + off for _, memory in pairs for off in (-1, 0, 1))]:
            enough = [pair for pair in pairs if pair[0] >= cores and pair[1] >= mem_mb]
            if enough:
                assert legal_pair(mem_mb, cores) == min(enough)
            else:
                with pytest.raises(ConfigError, match="no machine"):
                    legal_pair(mem_mb, cores)


def test_memory_for_vcpus_that_are_given():
    for cores in MEMORY:
        allowed = sorted(memory for memory, vcpus in table().items() if cores in vcpus)
        for mem_mb in range(1, 130_000, 511):
            enough = [memory for memory in allowed if memory >= mem_mb]
            assert legal_memory(mem_mb, cores) == (enough[0] if enough else allowed[-1])


def test_fractions_are_rounded_up():
    assert legal_pair(2048.5) == (1, 3072) and legal_memory(8192.1) == 8192 and legal_pair(8192.1) == (2, 9216)
