"""What jobs ask for: enough for what the demo cohort and real scans used, not far above, more on each attempt."""

import math
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from snakemake.common.tbdstring import TBDString
from workspace import ROOT

from lungmill.config import checked_config
from lungmill.files import read_json, write_json
from lungmill.indexing import index
from resources import SNAKEMAKE_MB, Needs, scan_of

USED = re.compile(r"used ([\d.]+) s of CPU, ([\d.]+) MB at most")
NAMES = dict.fromkeys(("verdicts", "cohort", "dataset", "cohort_zarr"), "table") | {"demo_annotations": "demo"}


def name_of(rule):
    """The name under which `Needs` knows a rule."""
    return "pack" if rule.startswith("pack_") else NAMES.get(rule, rule)


def configuration(**changes):
    import yaml

    schema = yaml.safe_load((ROOT / "schemas" / "config.schema.yaml").read_text())
    return checked_config({**yaml.safe_load((ROOT / "config.yaml").read_text()), **changes}, schema)


def needs(results, patients=("x",), remote=False, **changes):
    return Needs(results, configuration(**changes), list(patients), lambda: remote)


def test_every_job_of_the_demo_cohort_used_less_than_it_asked_for_and_not_much_less(demo_results):
    logs = demo_results.parent / "logs"
    patients = [path.stem for path in sorted((demo_results / "index").glob("*.json"))]
    asked = needs(demo_results, patients)
    checked = set()
    for log in sorted(logs.glob("*/*.log")):
        rule = log.parent.name
        _, used = map(float, USED.findall(log.read_text())[-1])
        mem_mb = asked.of(name_of(rule))["mem_mb"](SimpleNamespace(patient=log.stem), attempt=1)
        assert used <= mem_mb <= 2.5 * used + 200, f"{rule} {log.stem}: used {used}, asked {mem_mb}"
        checked.add(rule)
    assert {"demo", "index", "resample", "segment", "patches", "report", "verdicts"} < checked


def test_the_output_grid_is_that_of_the_resampling(demo_results):
    """Tilted, prone and irregular scans too: the number of voxels is taken from the verdict alone."""
    for sidecar in sorted((demo_results / "volumes").glob("*.json")):
        scan = scan_of(str(demo_results / "index" / sidecar.name), (1.0, 1.0, 1.0))
        described = read_json(sidecar)
        assert scan.voxels == pytest.approx(math.prod(described["shape"]) / 1e6, rel=1e-9)
        assert scan.pixels == pytest.approx(math.prod(described["source"]["shape"]) / 1e6)


@pytest.mark.parametrize("name, shape", [("lidc-0001", (331, 360, 360)), ("ct64", (312, 263, 263))])
def test_real_scans_and_finer_grids_ask_for_more(real_data, tmp_path, name, shape):
    """Peaks in MB of these scans when the fits were made, at 1 mm; their shapes are those of the resampled volumes."""
    settings = configuration()["series"]
    write_json(tmp_path / "index" / "x.json", index(str(real_data / name), "x", settings, None))
    wildcards = SimpleNamespace(patient="x")
    fine = needs(tmp_path, resample={"spacing": [1, 0.5, 0.5], "interpolation": "cubic"})
    coarse = needs(tmp_path)
    assert scan_of(str(tmp_path / "index" / "x.json"), (1, 1, 1)).voxels == math.prod(shape) / 1e6
    for rule in ("resample", "segment", "pack", "patches"):
        few, many = (asked.of(rule)["mem_mb"](wildcards, attempt=1) for asked in (coarse, fine))
        assert few < many
        assert fine.of(rule)["runtime"](wildcards, attempt=1) >= coarse.of(rule)["runtime"](wildcards, attempt=1)


def test_each_attempt_doubles_and_a_cluster_job_holds_snakemake_too(demo_results):
    wildcards = SimpleNamespace(patient="demo-1-plain")
    for rule in ("demo", "index", "resample", "segment", "pack", "patches", "table", "report"):
        here, there = needs(demo_results).of(rule), needs(demo_results, remote=True).of(rule)
        first = here["mem_mb"](wildcards, attempt=1)
        assert there["mem_mb"](wildcards, attempt=1) == first + SNAKEMAKE_MB
        for attempt in (2, 3):
            assert here["mem_mb"](wildcards, attempt=attempt) == first * 2 ** (attempt - 1)
            assert here["runtime"](wildcards, attempt=attempt) > here["runtime"](wildcards, attempt=attempt - 1)
        assert isinstance(first, int) and isinstance(here["runtime"](wildcards, attempt=1), int)


def test_on_aws_memory_is_what_batch_has_and_verdicts_are_fetched_once(demo_results):
    fetched = []

    def fetch(path):
        if len(fetched) < 2:  # as from S3 before the verdict is there
            fetched.append(path)
            raise FileNotFoundError(2, "not in the storage yet", f"storage/{path}")
        fetched.append(path)
        return path.replace("bucket", str(demo_results))

    wildcards, settings = SimpleNamespace(patient="demo-1-plain"), {"spacing": 0.2, "interpolation": "linear"}
    on_aws = Needs("bucket", configuration(resample=settings), ["demo-1-plain"], lambda: True, fetch, on_aws=True)
    here = needs(demo_results, ["demo-1-plain"], remote=True, resample=settings)
    mem_mb = on_aws.of("segment")["mem_mb"]
    assert isinstance(mem_mb(wildcards, attempt=1), TBDString)
    assert isinstance(on_aws.of("segment")["runtime"](wildcards, attempt=1), TBDString)
    for rule in ("index", "resample", "segment", "pack", "patches", "table", "report"):
        least = here.of(rule)["mem_mb"](wildcards, attempt=1)
        first = on_aws.of(rule)["mem_mb"](wildcards, attempt=1)
        assert first == min(max(2048, 1024 * math.ceil(least / 1024)), 8192)  # the most that one vCPU may have
        assert on_aws.of(rule)["mem_mb"](wildcards, attempt=2) == min(2 * first, 8192)
        assert on_aws.of(rule)["mem_mb"](wildcards, attempt=9) == 8192
    assert mem_mb(wildcards, attempt=1) > 2048
    assert fetched == ["bucket/index/demo-1-plain.json"] * 3


def test_without_a_verdict_snakemake_is_to_ask_again_and_a_damaged_one_is_the_jobs_affair(tmp_path):
    wildcards = SimpleNamespace(patient="x")
    asked = needs(tmp_path)
    assert isinstance(asked.of("segment")["mem_mb"](wildcards, attempt=1), TBDString)
    assert isinstance(asked.of("resample")["runtime"](wildcards, attempt=1), TBDString)
    (tmp_path / "index").mkdir()
    for text in ("", "{", '{"geometry": 3}', '{\n  "status": "rejected"\n}'):
        (tmp_path / "index" / "x.json").write_text(text)
        assert asked.of("segment")["mem_mb"](wildcards, attempt=1) > 0
    assert asked.of("index")["mem_mb"](wildcards, attempt=1) > 0


def test_sixteen_thousand_patients_do_not_hold_up_the_planning(demo_results, tmp_path):
    """Each verdict is read once, and only its head; no list of slices is parsed. Counted, not timed."""
    (tmp_path / "index").mkdir()
    verdict = (demo_results / "index" / "demo-1-plain.json").read_text()
    patients = [f"p{number}" for number in range(300)]
    for patient in patients:
        (tmp_path / "index" / f"{patient}.json").write_text(verdict)
    asked = needs(tmp_path, patients)
    functions = [
        asked.of(rule)[key] for rule in ("resample", "segment", "pack", "patches") for key in ("mem_mb", "runtime")
    ]
    begin = time.process_time()
    for patient in patients:
        for function in functions:
            function(SimpleNamespace(patient=patient), attempt=1)
    milliseconds = 1000 * (time.process_time() - begin) / len(patients)
    print(f"{milliseconds:.2f} ms per patient")
    from resources import _read

    before = _read.cache_info()
    functions[0](SimpleNamespace(patient="p7"), attempt=2)
    assert _read.cache_info().misses == before.misses
    assert np.isclose(scan_of(str(tmp_path / "index" / "p7.json"), (1, 1, 1)).pixels, 123 * 256 * 256 / 1e6)
