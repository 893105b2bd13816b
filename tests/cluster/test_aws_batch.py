"""The workflow on AWS Batch and S3 as moto plays them (aws_harness.py), through its profile, with what goes wrong.

The normal run of pytest tries three settings that are refused. All of it, about twenty minutes:

    pytest tests/cluster/test_aws_batch.py -m "long or not long"
"""

import gzip
import importlib.util
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from archives import entries_of, write_tar, write_zip
from aws_harness import IMAGE_TAG, REGION, ROLE_KEY, ROLE_SECRET, Aws
from dicom_files import chest_like, stack, write_series
from workspace import Outcome, Workspace

NEEDED = ("moto", "flask", "boto3", "snakemake_executor_plugin_aws_batch", "snakemake_storage_plugin_s3")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no moto here: pip install -r requirements-dev.txt brings {', '.join(MISSING)}"
)
BUCKET = "lungmill-test"
USER_KEY, USER_SECRET = "AKIAPLANTEDPLANTED00", "planted-secret-of-the-user"
OTHERS = ("demo-2-thin-localizer", "demo-3-jpeg2000", "demo-4-rle-padding", "demo-5-tilt", "demo-6-prone-gap")
# Names of the formats that are in use stand in the tables and in the report; a local run of the same formats says what
# is to stand there. Sizes are what tables are made from where products are not. All other files are compared.
NAME_FORMATS = {"cohort.tsv", "dataset.tsv", "report/index.html"}


class AwsWorkspace(Workspace):
    """A workspace whose runs go through the profile; every one has a time limit."""

    def __init__(self, folder, aws, prefix):
        super().__init__(folder)
        self.aws, self.prefix = aws, prefix
        home = self.folder / "home"
        (home / ".aws").mkdir(parents=True)
        keys = f"[default]\naws_access_key_id = {USER_KEY}\naws_secret_access_key = {USER_SECRET}\n"
        (home / ".aws" / "credentials").write_text(keys)
        self.environment = aws.environment(home)

    def command(self, *options, **config):
        given = {
            "--aws-batch-region": REGION,
            "--aws-batch-job-queue": self.aws.queue,
            "--aws-batch-job-role": self.aws.role,
            "--container-image": IMAGE_TAG,
            "--default-storage-prefix": f"s3://{BUCKET}/{self.prefix}",
        }
        options = [*(word for pair in given.items() if pair[0] not in options for word in pair), *options]
        settings = [f"{key}={value}" for key, value in config.items()]
        return [
            sys.executable, "-m", "snakemake", "--workflow-profile", "aws-batch", *options,
            *(["--config", *settings] if settings else []),
        ]  # fmt: skip

    def start(self, *options, **config):
        self.said = self.folder / "said.txt"
        self.before = len(self.aws.containers())
        with self.said.open("w") as said:
            return subprocess.Popen(
                self.command(*options, **config), cwd=self.folder, env=self.environment, stdout=said, stderr=said
            )

    def run(self, *options, ok=True, seconds=400, **config):
        process = self.start(*options, **config)
        try:
            process.wait(seconds)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        text = self.said.read_text()
        assert ok is None or (process.returncode == 0) == ok, text + self.failed_containers()
        return Outcome(text, process.returncode)

    def ran(self):
        """(rule, patient) of what the containers of the last run were asked for, and how often."""
        asked = [re.findall(r"'(\w+):(?:patient=([^']*))?'", " ".join(c["command"])) for c in self.containers()]
        return [job for jobs in asked for job in jobs]

    def containers(self):
        return self.aws.containers(self.before)

    def failed_containers(self):
        return "".join(c["output"].read_text()[-3000:] for c in self.containers() if c["code"])

    def downloaded(self):
        """Digests of the results in S3, as `digests` of a folder."""
        target = self.folder / "downloaded"
        shutil.rmtree(target, ignore_errors=True)
        self.results = self.aws.download(BUCKET, f"{self.prefix}/results", target)
        return self.digests()


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    # What Dockerfile says of pip is all that the image has beside the programs that are installed here.
    from test_dockerfile import pip_of_the_image

    server = Aws(tmp_path_factory.mktemp("aws") / "state", {"pip": pip_of_the_image()})
    server.client("s3").create_bucket(Bucket=BUCKET)
    server.client("s3").put_object(Bucket=BUCKET, Key="somebody/elses.txt", Body=b"kept")
    yield server
    server.stop()


@pytest.fixture
def clear(aws):
    aws.clear_faults()
    yield aws
    aws.clear_faults()


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three patients: a folder, a .zip and a .tar."""
    folder = tmp_path_factory.mktemp("scans")
    for name, height in (("anna", 1), ("bert", 2), ("carl", 3)):
        write_series(folder / name, chest_like, stack((-24, -24, height), (0, 0, 2), 14))
    write_zip(folder / "bert.zip", entries_of(folder / "bert"))
    write_tar(folder / "carl.tar", entries_of(folder / "carl"))
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory, scans):
    """Digests of a local run on the same three patients, as folders."""
    workspace = Workspace(tmp_path_factory.mktemp("local"))
    (workspace.folder / "patients.tsv").write_text(table({name: scans / name for name in ("anna", "bert", "carl")}))
    workspace.run(patients="patients.tsv", pack=f"{{formats: [{travelling()}]}}")
    return workspace.digests()


@pytest.fixture
def cohort(clear, scans, tmp_path, request):
    """A workspace with the three patients in S3, under a prefix of this test's own."""
    prefix = re.sub(r"\W+", "-", request.node.name)
    clear.upload(scans / "anna", BUCKET, f"{prefix}/scans/anna")
    for name in ("bert.zip", "carl.tar"):
        clear.client("s3").upload_file(str(scans / name), BUCKET, f"{prefix}/scans/{name}")
    workspace = AwsWorkspace(tmp_path / "work", clear, f"{prefix}/run")
    place = f"s3://{BUCKET}/{prefix}/scans"
    (workspace.folder / "patients.tsv").write_text(
        table({"anna": f"{place}/anna/", "bert": f"{place}/bert.zip", "carl": f"{place}/carl.tar"})
    )
    workspace.scans = f"{prefix}/scans"
    return workspace


def table(places):
    return "patient\tdicom\n" + "".join(f"{name}\t{place}\n" for name, place in places.items())


def travelling():
    """The format that zarr becomes where files travel one by one."""
    from lungmill.dataset import PRODUCTS
    from remote import TRAVELLING

    return TRAVELLING["zarr"] if TRAVELLING["zarr"] in PRODUCTS else "hdf5"


def less_sizes(digests):
    return {name: digest for name, digest in digests.items() if not name.startswith(("products/", "demo/dicom/"))}


def assert_as_demo(workspace, demo_results, patients):
    """Every file of the patients is that of a local run, and the demo's DICOM files are, inside their .zip."""
    made = workspace.downloaded()
    expected = Workspace.digests(type("Local", (), {"results": demo_results})())
    for name, digest in less_sizes(made).items():
        if name not in NAME_FORMATS and name != "index/verdicts.tsv":
            assert digest == expected[name], name
    wanted = {name for name in expected if any(f"/{patient}" in name for patient in patients)}
    kinds = {"index", "volumes", "masks", "patches", "demo", travelling().split("_")[0]}
    missing = {name for name in wanted - set(made) if name.split("/")[0] in kinds - {"demo"}}
    assert not missing
    for patient in patients:
        with zipfile.ZipFile(workspace.results / "demo" / "dicom" / f"{patient}.zip") as archive:
            inside = {name: archive.read(name) for name in archive.namelist()}
        here = dict(entries_of(demo_results / "demo" / "dicom" / patient))
        here.pop(".snakemake_timestamp")  # Snakemake's mark of a folder
        assert inside == here


@pytest.mark.long
def test_demo_patients_through_the_profile(aws, tmp_path, demo_results):
    """Outputs, resources, credentials and the bucket's root, all from one run."""
    patients = ("demo-1-plain", "demo-8-few-slices")
    workspace = AwsWorkspace(tmp_path / "work", aws, "short/run")
    exclude = f"[{', '.join((*OTHERS, 'demo-7-truncated'))}]"
    outcome = workspace.run(exclude=exclude)
    assert {("report", ""), ("patches", "demo-1-plain"), ("index", "demo-8-few-slices")} <= outcome.jobs
    assert "rejected: 1" in outcome.text and f"s3://{BUCKET}/short/run/results/report/index.html" in outcome.text
    assert_as_demo(workspace, demo_results, patients)
    tables_are_those_of_a_local_run(workspace, tmp_path, demo_results, exclude)
    resources_are_what_was_meant(workspace)
    no_credentials_anywhere(workspace)
    roots = {key.split("/")[0] for key in aws.keys(BUCKET)}
    assert {"short", "somebody"} <= roots and not any("/" not in key for key in aws.keys(BUCKET))
    assert "Nothing to be done" in workspace.run(exclude=exclude).text
    assert not workspace.containers()


def tables_are_those_of_a_local_run(workspace, tmp_path, demo_results, exclude):
    """The tables name the formats in use: made here from the same results, by a local run with the same formats."""
    beside = Workspace(tmp_path / "beside")
    shutil.copytree(demo_results, beside.results, ignore=shutil.ignore_patterns("cohort.zarr", "bcolz", "hdf5", "npz"))
    for name in NAME_FORMATS | {"index/verdicts.tsv"}:
        (beside.results / name).unlink()
    # Nothing is known of how these files were made, so nothing but what is missing is made.
    beside.run("--rerun-triggers", "mtime", exclude=exclude, pack=f"{{formats: [{travelling()}]}}")
    here, there = beside.digests(), workspace.downloaded()
    assert {name: here[name] for name in NAME_FORMATS} == {name: there[name] for name in NAME_FORMATS}


def resources_are_what_was_meant(workspace, attempt=1):
    """vCPUs and memory of every job definition: the profile's, doubled with every attempt, a pair of the plugin's."""
    from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

    asked = definitions(workspace.aws)
    assert {stage for stage, *_ in asked} >= {"index_demo", "patient_pack", "report"}, asked
    for _, vcpus, memory, definition in asked:
        assert (vcpus, memory) == (1, 2048 * 2 ** (attempt - 1))
        assert vcpus in VALID_RESOURCES_MAPPING[memory]
        assert definition["timeout"] == {"attemptDurationSeconds": 3600}
        assert definition["containerProperties"]["image"] == IMAGE_TAG
        assert definition["containerProperties"]["jobRoleArn"] == workspace.aws.role
    return asked


def definitions(aws):
    """(stage, vCPUs, MiB, definition) of every job definition there was; the plugin withdraws each after its job."""
    pages = aws.client("batch").get_paginator("describe_job_definitions").paginate(status="INACTIVE")
    found = []
    for definition in (definition for page in pages for definition in page["jobDefinitions"]):
        needs = {need["type"]: int(need["value"]) for need in definition["containerProperties"]["resourceRequirements"]}
        stage = "_".join(definition["jobDefinitionName"].split("-")[2].split("_")[:2])
        found.append((stage, needs["VCPU"], needs["MEMORY"], definition))
    return found


def no_credentials_anywhere(workspace):
    """Keys of the user and of the jobs' role are in no file, object, command, environment or job definition."""
    aws = workspace.aws
    words = [word.encode() for word in (USER_KEY, USER_SECRET, ROLE_KEY, ROLE_SECRET)]
    texts = {"what was said": workspace.said.read_bytes()}
    texts |= {f"job definition {n}": repr(made[3]).encode() for n, made in enumerate(definitions(aws))}
    for container in aws.containers():
        texts[f"command of {container['name']}"] = json.dumps([container["command"], container["environment"]]).encode()
        texts[f"output of {container['name']}"] = container["output"].read_bytes()
    s3 = aws.client("s3")
    for key in aws.keys(BUCKET):
        texts[key] = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    for path in workspace.folder.rglob("*"):
        if path.is_file() and path.name != "credentials":
            texts[str(path)] = path.read_bytes()
    assert sum(BUCKET.encode() in text for text in texts.values()) > 5, "this search finds nothing at all"
    for name, text in texts.items():
        for content in (text, _unpacked(text)):
            assert not any(word in content for word in words), name


def _unpacked(text):
    if text.startswith(b"\x1f\x8b"):
        return gzip.decompress(text)
    if text.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(text)) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    return b""


REFUSED = {
    "root": (("--default-storage-prefix", f"s3://{BUCKET}"), {}, ["default-storage-prefix", "whole bucket"]),
    "secret": (
        ("--storage-s3-access-key", USER_KEY, "--storage-s3-secret-key", USER_SECRET), {}, ["storage-s3", "every job"]
    ),
    "folder": ((), {"dicom": "profiles"}, ["jobs cannot see", "S3"]),
    "slash": (("--default-storage-prefix", f"s3://{BUCKET}//"), {}, ["default-storage-prefix", "whole bucket"]),
    "results": ((), {"results": f"s3://{BUCKET}/x"}, ["results", "default-storage-prefix"]),
    "bcolz": ((), {"pack": "{formats: [bcolz]}"}, ["bcolz", "S3"]),
    "list": ((), {"dicom": f"s3://{BUCKET}/scans"}, ["cannot be listed", "table"]),
    "key": ((), {"annotations": USER_KEY}, ["annotations", "access key"]),
    "envvars": (("--envvars", "AWS_SECRET_ACCESS_KEY"), {}, ["envvars", "AWS_SECRET_ACCESS_KEY"]),
}  # fmt: skip
SHORT = ("root", "secret", "folder")


@pytest.mark.parametrize(
    "options, config, words",
    [pytest.param(*case, id=name, marks=() if name in SHORT else pytest.mark.long) for name, case in REFUSED.items()],
)
def test_what_is_refused_is_one_line(aws, refusing, options, config, words):
    before = set(aws.keys(BUCKET))
    outcome = refusing.run(*options, ok=False, seconds=60, **config)
    lines = [line for line in outcome.lines if not line.startswith("Config file")]
    assert len(lines) == 1 and lines[0].startswith("lungmill: "), outcome.text
    assert all(word in lines[0] for word in words), lines
    assert USER_SECRET not in outcome.text and USER_KEY not in outcome.text
    assert set(aws.keys(BUCKET)) == before and not refusing.containers()


@pytest.fixture(scope="module")
def refusing(aws, tmp_path_factory):
    workspace = AwsWorkspace(tmp_path_factory.mktemp("refusing"), aws, "refusing/run")
    workspace.environment |= {"AWS_SECRET_ACCESS_KEY": USER_SECRET, "AWS_ACCESS_KEY_ID": USER_KEY}
    return workspace


@pytest.mark.long
def test_the_whole_demo_cohort(aws, tmp_path, demo_results):
    workspace = AwsWorkspace(tmp_path / "work", aws, "whole/run")
    started = time.monotonic()
    workspace.run(seconds=500)
    print(f"\nwhole demo cohort: {time.monotonic() - started:.0f} s, {len(workspace.containers())} containers")
    for container in workspace.containers():
        print(f"  {container['seconds']:5.1f} s  {container['name'][:60]}")
    patients = [path.stem for path in sorted((demo_results / "index").glob("demo-*.json"))]
    assert len(patients) == 8
    assert_as_demo(workspace, demo_results, patients)
    verdicts = workspace.results / "index" / "verdicts.tsv"
    assert verdicts.read_bytes() == (demo_results / "index" / "verdicts.tsv").read_bytes()


def assert_as_local(cohort, local):
    assert less_sizes(cohort.downloaded()) == local


@pytest.mark.long
def test_folders_zips_and_tars_in_s3_and_a_changed_object(cohort, local, scans):
    cohort.run(patients="patients.tsv")
    assert_as_local(cohort, local)
    s3 = cohort.aws.client("s3")
    time.sleep(1.1)  # S3 dates objects to the second
    s3.upload_file(str(scans / "anna" / "IM0003"), BUCKET, f"{cohort.scans}/anna/IM0003")
    again = cohort.run(patients="patients.tsv")
    assert again.patients == {"anna"} and {patient for _, patient in cohort.ran() if patient} == {"anna"}
    assert_as_local(cohort, local)
    time.sleep(1.1)
    s3.upload_file(str(scans / "bert.zip"), BUCKET, f"{cohort.scans}/bert.zip")
    assert cohort.run(patients="patients.tsv").patients == {"bert"}
    assert_as_local(cohort, local)


@pytest.mark.long
def test_scans_in_s3_and_everything_else_here(cohort, local):
    """The local executor: no default storage, so results lie in a folder."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "patients=patients.tsv"]
    command.append(f"pack={{formats: [{travelling()}]}}")

    def run():
        done = subprocess.run(
            command, cwd=cohort.folder, env=cohort.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Outcome(done.stdout + done.stderr, 0)

    run()
    assert cohort.digests() == local
    assert "Nothing to be done" in run().text
    time.sleep(1.1)
    cohort.aws.client("s3").put_object(Bucket=BUCKET, Key=f"{cohort.scans}/anna/notes.txt", Body=b"new")
    assert run().patients == {"anna"}


MIDWAY = ".snakemake/storage/s3/*/*/run/results/volumes/bert.npy"


@pytest.mark.long
def test_a_killed_container_without_retries(cohort, local):
    happened = cohort.aws.add_fault(kind="kill", match="resample:patient=bert", after=MIDWAY)
    outcome = cohort.run("--retries", "0", ok=False, patients="patients.tsv")
    assert happened() == 1
    assert "bert" in outcome.text and "run the same command again" in outcome.text
    done = cohort.downloaded()
    assert {"patches/anna.h5", "patches/carl.h5"} <= set(done) and "volumes/bert.npy" not in done
    cohort.run(patients="patients.tsv")
    assert {patient for _, patient in cohort.ran() if patient} == {"bert"}
    assert ("index", "bert") not in cohort.ran()
    assert_as_local(cohort, local)


@pytest.mark.long
def test_a_killed_container_with_retries_asks_for_more_memory(cohort, local):
    known = {made[3]["jobDefinitionName"] for made in definitions(cohort.aws)}
    happened = cohort.aws.add_fault(kind="kill", match="resample:patient=bert", after=MIDWAY)
    cohort.run(patients="patients.tsv")
    assert happened() == 1
    assert_as_local(cohort, local)
    new = [made for made in definitions(cohort.aws) if made[3]["jobDefinitionName"] not in known]
    memory = [memory for stage, _, memory, _ in new if stage == "patient_pack"]
    assert sorted(memory) == [2048, 2048, 2048, 4096]
    assert sum(job == ("segment", "bert") for job in cohort.ran()) == 2


@pytest.mark.long
def test_the_main_process_is_killed_and_started_again(cohort, local):
    folder = cohort.aws.state / "containers"
    before = set(folder.glob("*resample*"))
    process = cohort.start(patients="patients.tsv")
    until(lambda: set(folder.glob("*resample*")) - before)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not {"cohort.tsv"} & set(cohort.downloaded())
    # Jobs of the killed run go on: two runs' jobs write the same objects with the same bytes.
    cohort.run(patients="patients.tsv")
    assert not any(rule == "index" for rule, _ in cohort.ran())
    assert_as_local(cohort, local)
    assert "Nothing to be done" in cohort.run(patients="patients.tsv").text


@pytest.mark.long
@pytest.mark.parametrize("times", [3, 40], ids=["a while", "until jobs fail"])
def test_s3_asks_to_slow_down(cohort, local, times):
    happened = cohort.aws.add_fault(kind="slow_down", method="GET", match="scans/bert.zip", times=times)
    outcome = cohort.run(patients="patients.tsv", ok=None)
    assert happened() >= 3
    if outcome.code:
        cohort.aws.clear_faults()
        # Everybody is judged before anybody goes on, so the others wait for the verdict that is missing, judged.
        assert {("index", "anna"), ("index", "carl")} <= outcome.jobs
        again = cohort.run(patients="patients.tsv")
        assert {job for job in again.jobs if job[0] == "index"} == {("index", "bert")}
    assert_as_local(cohort, local)


@pytest.mark.long
@pytest.mark.parametrize("what", ["scans/bert.zip", "index/bert.json", "volumes/carl.json"])
def test_a_download_that_is_cut_short(cohort, local, what):
    happened = cohort.aws.add_fault(kind="cut", method="GET", match=what, times=2)
    cohort.run(patients="patients.tsv")
    assert happened() == 2
    assert_as_local(cohort, local)
