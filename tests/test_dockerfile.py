"""Dockerfile cannot be built here: what it copies is there, and what it installs is what the workflow imports."""

import ast
import fnmatch
import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile"


def instructions():
    """(instruction, rest) in order; lines that end in a backslash go on."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(kind):
    return [rest for instruction, rest in instructions() if instruction == kind]


def requirement_files():
    command = next(rest for rest in of("RUN") if "pip install" in rest)
    return re.findall(r"-r (\S+)", command)


def pip_of_the_image():
    """What stands in for pip in the image, made by the Dockerfile's own line."""
    command = next(rest for rest in of("RUN") if "printf" in rest)
    made = command.replace('> "$(command -v pip)"', "")
    assert made != command
    return subprocess.run(["/bin/sh", "-c", made], capture_output=True, text=True, check=True).stdout


def test_every_instruction_is_one_of_docker():
    assert {kind for kind, _ in instructions()} <= {"FROM", "RUN", "COPY", "WORKDIR", "ENV"}
    assert instructions()[0][0] == "FROM" and len(of("FROM")) == 1


def test_what_is_copied_is_there_and_not_ignored():
    ignored = []
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            ignored.append((line.removeprefix("!"), not line.startswith("!")))
    copied = [source for rest in of("COPY") for source in shlex.split(rest)[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).is_file(), source
        matching = [verdict for pattern, verdict in ignored if fnmatch.fnmatch(source, pattern)]
        assert not matching[-1], f"{source} is left out by .dockerignore"


def test_it_installs_from_the_files_that_it_copies():
    copied = {source for rest in of("COPY") for source in shlex.split(rest)[:-1]}
    assert set(requirement_files()) == {"requirements.txt", "requirements-aws.txt"} <= copied
    order = [kind if kind != "RUN" else rest for kind, rest in instructions()]
    assert order.index("COPY") < next(n for n, rest in enumerate(order) if "pip install" in rest)


def test_everything_that_a_job_imports_is_installed():
    """Of the packages that the rules' scripts and the steps import, each is a requirement or comes with one."""
    pinned = set()
    for name in requirement_files():
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            match = re.match(r"([A-Za-z0-9_.-]+)==[\w.]+", line)
            assert match or not line or line.startswith("#"), line
            if match:
                pinned.add(match[1].lower().replace("_", "-"))
    owners = importlib.metadata.packages_distributions()
    steps = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "rules").glob("*.py")]
    steps += [path for path in (ROOT / "scripts" / "lungmill").rglob("*.py") if "training" not in path.parts]
    names = {name for path in steps for name in imports_of(path)} - set(sys.stdlib_module_names)
    ours = {path.stem for path in steps} | {"lungmill"}
    with_snakemake = {f"snakemake-interface-{part}" for part in ("logger-plugins", "executor-plugins", "common")}
    for name in sorted(names - ours):
        installed = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
        assert installed & (pinned | with_snakemake), f"{name} is imported but not in the image"


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_the_plugins_are_those_of_the_profile():
    import yaml

    profile = yaml.safe_load((ROOT / "profiles" / "aws-batch" / "profile.yaml").read_text(encoding="utf-8"))
    aws = (ROOT / "requirements-aws.txt").read_text(encoding="utf-8")
    assert f"snakemake-executor-plugin-{profile['executor']}==" in aws
    assert f"snakemake-storage-plugin-{profile['default-storage-provider']}==" in aws


def test_the_pip_of_the_image_installs_nothing(tmp_path):
    pip = tmp_path / "pip"
    pip.write_text(pip_of_the_image())
    pip.chmod(0o755)
    command = [str(pip), "install", "--target", "x", "snakemake-storage-plugin-s3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=10)
    assert "snakemake-storage-plugin-s3" in done.stdout and not (tmp_path / "x").exists()


def test_the_python_is_one_that_lungmill_runs_on():
    version = re.match(r"python:(\d+)\.(\d+)", of("FROM")[0])
    assert (3, 11) <= (int(version[1]), int(version[2])) < (3, 13)  # bcolz has no package for 3.13
