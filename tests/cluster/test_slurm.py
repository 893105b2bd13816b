"""The workflow on a real SLURM, through profiles/slurm, with what goes wrong on clusters.

The normal run of pytest looks at the profile and has one job cancelled. All of it, about a quarter of an hour:

    pytest tests/cluster/test_slurm.py -m "long or not long"
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dicom_files import chest_like, stack, write_series
from slurm_harness import Slurm, missing
from stores import EVERY_FORMAT
from workspace import TIMINGS, Outcome, Workspace

PLUGIN = "snakemake_executor_plugin_slurm"
REASON = missing() or (None if importlib.util.find_spec(PLUGIN) else f"{PLUGIN} is not installed")
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no SLURM here: {REASON}")
SNAKEMAKE = (sys.executable, str(Path(__file__).with_name("quick_polls.py")))
# The profile's waiting is for jobs of minutes and a shared file system.
QUICK = ("--workflow-profile", "slurm", "--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10")


class SlurmWorkspace(Workspace):
    """A workspace whose runs go through the profile to a cluster; every one has a time limit."""

    def __init__(self, folder, slurm):
        super().__init__(folder)
        self.slurm = slurm

    def command(self, *options, **config):
        settings = [f"{key}={value}" for key, value in config.items()]
        return [*SNAKEMAKE, *QUICK, *options, *(["--config", *settings] if settings else [])]

    def start(self, *options, **config):
        """A run as a process that is left to itself, which writes into the file `said`."""
        self.said = self.folder / "said.txt"
        with self.said.open("w") as said:
            process = subprocess.Popen(
                self.command(*options, **config), cwd=self.folder, env=self.slurm.environment, stdout=said, stderr=said
            )
        self.slurm.users.append(process)
        return process

    def finish(self, process, seconds=900, ok=True):
        """Wait for its end."""
        try:
            process.wait(seconds)
        finally:
            if process.poll() is None:
                process.kill()
        text = self.said.read_text()
        print(text)
        assert (process.returncode == 0) == ok, text
        return Outcome(text, process.returncode)

    def run(self, *options, ok=True, **config):
        return self.finish(self.start(*options, **config), ok=ok)


def until(true, seconds=400):
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
    return found


@pytest.fixture
def slurm():
    with Slurm() as running:
        running.users = []
        yield running
        for process in running.users:
            process.kill()
            process.wait()


# --- the short form ---------------------------------------------------------------------------------------------------


def test_one_job_is_cancelled_the_others_finish_and_the_next_run_does_the_rest(tmp_path, slurm):
    for name, slices in (("anna", 14), ("bert", 14), ("carl", 3)):
        write_series(tmp_path / "dicom" / name, chest_like, stack((-24, -24, 0), (0, 0, 2), slices))
    local = Workspace(tmp_path / "local")
    local.run(dicom=tmp_path / "dicom")
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    first = workspace.start("--retries", "0", dicom=tmp_path / "dicom")
    cancelled = until(lambda: sent(workspace, "bert"))
    slurm.command("scancel", cancelled)
    failed = workspace.finish(first, ok=False)
    assert {("pack_zarr", "anna"), ("patches", "anna")} <= failed.jobs
    assert "bert" not in {patient for rule, patient in failed.jobs if rule != "index"}
    end = "\n".join(failed.lines[-6:])
    assert "bert" in end and f"SLURM job {cancelled} was cancelled" in end
    assert "run the same command again" in end and "Traceback" not in failed.text
    # One job judged all folders; each accepted patient had one; no name of a patient is in the queue.
    jobs = slurm.jobs()
    assert [job["cpus"] for job in jobs] == ["1"] * 3
    assert not any(name in job["comment"] + job["name"] for job in jobs for name in ("anna", "bert", "carl"))

    rest = workspace.run(dicom=tmp_path / "dicom")
    assert rest.patients == {"bert"}
    assert workspace.digests() == local.digests()
    assert "Nothing to be done" in workspace.run(dicom=tmp_path / "dicom").text


def sent(workspace, patient):
    """The id of the SLURM job that a patient's chain was sent as, once it was."""
    found = re.search(rf"^sent to SLURM as job (\d+): .*segment.*{patient}$", workspace.said.read_text(), re.MULTILINE)
    return found and found[1]


def at(results):
    """A workspace as far as its results go."""
    workspace = object.__new__(Workspace)
    workspace.results = results
    return workspace


# --- the long form ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_demo_cohort_gives_the_bytes_of_a_local_run(tmp_path, slurm, demo_results):
    workspace = SlurmWorkspace(tmp_path, slurm)
    begin = time.monotonic()
    outcome = workspace.run("--group-components", "patient=3", "index=50", pack=EVERY_FORMAT)
    print(f"\ndemo cohort through SLURM: {time.monotonic() - begin:.0f} s, {len(slurm.jobs())} jobs")
    # digests() leaves out logs, benchmarks, and the report's one line of times.
    assert workspace.digests() == Workspace.digests(at(demo_results))
    assert TIMINGS.search((workspace.results / "report" / "index.html").read_bytes())
    assert len(outcome.patients) == 8
    # All verdicts in one job, six accepted patients in two, the report: one CPU each.
    assert [job["cpus"] for job in slurm.jobs()] == ["1"] * 4


PROGRAM = """
import sys, time, nibabel
from pathlib import Path
here = Path(__file__).parent
folder = next(name for name in ("anna", "bert", "carl", "dora", "emil") if name in sys.argv[1])
with open(here / "calls.txt", "a") as calls:
    print(folder, file=calls)
while (here / "wait").exists():
    time.sleep(0.1)
if (here / f"broken-{folder}").exists():
    sys.exit("this one is broken")
if (here / "hungry").exists():
    food = bytearray(900_000_000)
    food[::4096] = b"x" * len(food[::4096])
    time.sleep(5)
image = nibabel.load(sys.argv[1])
nibabel.save(nibabel.Nifti1Image((image.get_fdata() > -500).astype("uint8") * 3, image.affine), sys.argv[2])
"""


@pytest.fixture
def cohort(tmp_path):
    """Five small patients, a program that segments them when it is let, and a local run's digests."""
    made = Cohort(tmp_path / "dicom", tmp_path / "program")
    workspace = Workspace(tmp_path / "local")
    workspace.run(*made.options)
    made.expected = workspace.digests()
    made.calls.unlink()
    return made


class Cohort:
    def __init__(self, dicom, folder):
        for height, name in enumerate(("anna", "bert", "carl", "dora", "emil")):
            write_series(dicom / name, chest_like, stack((-24, -24, height), (0, 0, 2), 14))
        folder.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        settings = folder / "settings.yaml"
        command = f"{sys.executable} {folder}/program.py {{volume}} {{mask}}"
        settings.write_text(
            f"dicom: {dicom}\nsegment: {{method: command, command: '{command}', labels: {{right: [3], left: [7]}}}}\n"
        )
        self.folder, self.options = folder, ("--configfile", str(settings))
        self.calls = folder / "calls.txt"

    @property
    def called(self):
        """For whom the program was started, in order of names."""
        return sorted(self.calls.read_text().split()) if self.calls.exists() else []

    def make(self, *flags):
        for flag in flags:
            (self.folder / flag).touch()

    def let(self, *flags):
        for flag in flags:
            (self.folder / flag).unlink()


@pytest.mark.long
def test_a_node_goes_and_the_retry_completes_on_another(tmp_path, slurm, cohort):
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    cohort.make("wait")
    run = workspace.start(*cohort.options)
    until(lambda: len(cohort.called) == 4)
    lost = [job["id"] for job in slurm.jobs() if job["state"] == "RUNNING" and job["node"] == "n1"]
    slurm.kill_node("n1")
    cohort.let("wait")
    outcome = workspace.finish(run)
    assert workspace.digests() == cohort.expected
    assert len(lost) == 2 and all(f"job {job}" in outcome.text for job in lost)
    assert outcome.text.count("again ") >= 2
    states = {job["id"]: job["state"] for job in slurm.jobs()}
    # FAILED where a step's daemon could still say that its program was gone before it was itself.
    assert {states[job] for job in lost} <= {"NODE_FAIL", "FAILED"}
    assert "Nothing to be done" in workspace.run(*cohort.options).text


@pytest.mark.long
def test_the_main_process_is_killed_and_started_again_while_its_jobs_run(tmp_path, slurm, cohort):
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    cohort.make("wait")
    first = workspace.start(*cohort.options)
    until(lambda: len(cohort.called) == 4)  # four CPUs: the fifth patient waits in the queue
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert sum(job["state"] == "RUNNING" for job in slurm.jobs()) == 4
    assert sum(job["state"] == "PENDING" for job in slurm.jobs()) == 1
    second = workspace.start(*cohort.options)
    until(lambda: "waiting for 5 SLURM jobs of an interrupted run" in workspace.said.read_text())
    until(lambda: sum(job["state"] == "CANCELLED" for job in slurm.jobs()) == 1)
    assert not sent(workspace, "")
    cohort.let("wait")
    workspace.finish(second)
    assert workspace.digests() == cohort.expected
    assert cohort.called == ["anna", "bert", "carl", "dora", "emil"]  # what was under way was adopted
    assert "Nothing to be done" in workspace.run(*cohort.options).text
    # What was adopted is known to be made with these settings: others redo all of it.
    changed = workspace.run(*cohort.options, "-n", resample="{spacing: 2}")
    assert changed.text.count("would run  resample") == 5


@pytest.mark.long
def test_one_that_fails_in_a_job_of_several_costs_the_others_nothing(tmp_path, slurm, cohort):
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    cohort.make("broken-bert")
    several = ("--group-components", "patient=5", "index=50", *cohort.options)
    failed = workspace.run(*several, "--retries", "1", ok=False)
    assert cohort.called == ["anna", "bert", "bert", "carl", "dora", "emil"]
    end = "\n".join(failed.lines[-5:])
    assert "1 of " in end and "segment      bert" in end and "this one is broken" in end
    assert "logs/segment/bert.log" in end
    cohort.let("broken-bert")
    workspace.run(*several)
    assert cohort.called == ["anna", "bert", "bert", "bert", "carl", "dora", "emil"]
    assert workspace.digests() == cohort.expected
    # Jobs that cannot even be sent leave nothing behind that another run would take for made with these settings.
    nowhere = ("--default-resources", "slurm_partition=nowhere", "--retries", "0")
    refused = workspace.run(*several, *nowhere, ok=False, resample="{spacing: 2}")
    assert "invalid partition" in "\n".join(refused.lines[-5:])
    again = workspace.run(*several, "-n", resample="{spacing: 2}")
    assert again.text.count("would run  segment") == 5


@pytest.mark.long
def test_a_job_without_enough_memory_is_killed_by_slurm_and_its_retry_asks_for_more(tmp_path, slurm, cohort):
    """Real enforcement: SLURM's accounting samples the processes' memory each second and cancels what exceeds it."""
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    resources = workspace.folder / "rules" / "resources.py"
    text = resources.read_text()
    assert "return 4000 + 12" in text
    resources.write_text(text.replace("return 4000 + 12", "return 300 + 12"))  # too little for the hungry program
    cohort.make("hungry")
    outcome = workspace.run(*cohort.options, "--jobs", "1", exclude="[bert, carl, dora, emil]")
    asked = [job for job in slurm.jobs() if "segment" in job["comment"]]
    asked.sort(key=lambda job: int(job["id"]))
    print("\nattempts:", [(job["state"], job["mem"], job["limit"]) for job in asked])
    memory = [int(job["mem"].rstrip("M")) for job in asked]
    assert asked[-1]["state"] == "COMPLETED" and asked[0]["state"] != "COMPLETED" and len(asked) > 1
    assert memory[1] - memory[0] == pytest.approx(300, abs=10)
    assert "again   segment      anna" in outcome.text
    assert (workspace.results / "masks" / "anna.npy").is_file()


@pytest.mark.long
def test_a_job_that_meets_its_time_limit_asks_for_more_time(tmp_path, slurm, cohort):
    """SLURM ends it: the limit of the first attempt is lowered to SLURM's smallest, a minute, while the job hangs."""
    workspace = SlurmWorkspace(tmp_path / "work", slurm)
    cohort.make("wait")
    run = workspace.start(*cohort.options, exclude="[bert, carl, dora, emil]")
    job = until(lambda: cohort.called and sent(workspace, "anna"))
    asked = next(one["limit"] for one in slurm.jobs() if one["id"] == job)
    slurm.command("scontrol", "update", f"jobid={job}", "timelimit=1")
    until(lambda: next(one["state"] for one in slurm.jobs() if one["id"] == job) == "TIMEOUT")
    cohort.let("wait")
    workspace.finish(run)
    states = [(one["state"], minutes(one["limit"])) for one in slurm.jobs() if "segment" in one["comment"]]
    print("\nattempts:", states, "the first asked for", asked)
    assert sorted(states) == [("COMPLETED", 2 * minutes(asked)), ("TIMEOUT", 1)]
    assert "again   segment      anna" in workspace.said.read_text()


def minutes(limit):
    """SLURM's D-HH:MM:SS, or less of it, in minutes."""
    *days, clock = limit.split("-")
    parts = [int(part) for part in clock.split(":")]
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return (seconds + 86400 * int(days[0] if days else 0)) // 60


@pytest.mark.long
def test_the_harness_leaves_nothing_behind_when_it_is_interrupted(tmp_path):
    harness = Path(__file__).with_name("slurm_harness.py")
    command = [sys.executable, str(harness), "bash", "-c", 'dirname "$SLURM_CONF"; srun sleep 100']
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    folder = process.stdout.readline().strip()
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(40)
    assert not Path(folder).exists()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if folder.encode() in _read(path)]
    assert not left


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_profile_names_every_rule_of_a_patient():
    """A rule that is in no group would be a job of its own for every patient."""
    import yaml

    root = Path(__file__).resolve().parents[2]
    profile = yaml.safe_load((root / "profiles" / "slurm" / "profile.yaml").read_text())
    text = "".join(path.read_text() for path in (root / "rules").glob("*.smk"))
    rules = re.split(r"^(?:use rule \w+ as|rule|checkpoint) ", text, flags=re.MULTILINE)[1:]
    of_patients = {re.match(r"\w+", rule)[0] for rule in rules if "{patient}.log" in rule}
    assert set(profile["groups"]) == of_patients
