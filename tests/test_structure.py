"""The promises of the file tree: which part knows of which, and that versions are written once."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lungmill

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
LIBRARY = SCRIPTS / "lungmill"
# What neither needs a compiler nor knows of DICOM; augmentation needs the compiler.
TRAINING_SIDE = (
    "cohort", "patches", "positions", "dataset", "annotations", "packing", "grid", "files", "training.views",
    "training.writers", "training.dataflow", "training.patch_source", "training.sliding_window",
    "training.patch_generator",
)  # fmt: skip
STEPS = ("dicom", "indexing", "series", "resampling", "segmentation", "body", "airway", "reporting", "demo")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: path.name)
def test_the_library_knows_nothing_of_snakemake_and_pydicom_stays_in_its_place(path):
    names = set(imports_of(path))
    assert not any(name.split(".")[0] == "snakemake" for name in names)
    if "pydicom" in {name.split(".")[0] for name in names}:
        assert path.parent.name == "dicom" or path.name == "demo.py"


def test_the_training_side_loads_no_dicom_and_no_compiler():
    code = "import sys, lungmill\n" + "".join(f"import lungmill.{name}\n" for name in TRAINING_SIDE)
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = {"PYTHONPATH": str(SCRIPTS), "PATH": ""}
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"pydicom", "numba", "skimage", "snakemake"} & set(loaded.stdout.split())


@pytest.mark.parametrize("path", sorted((LIBRARY / "training").glob("*.py")), ids=lambda path: path.name)
def test_the_training_side_imports_nothing_of_the_steps(path):
    parts = {name.removeprefix("lungmill.").split(".")[0] for name in imports_of(path) if name.startswith("lungmill.")}
    assert not parts & set(STEPS)


def test_every_public_name_is_importable():
    for name in lungmill.__all__:
        assert getattr(lungmill, name) is not None, name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        lungmill.nothing_like_it  # noqa: B018


def test_public_names_and_modules_do_not_share_a_name():
    modules = {path.stem for path in LIBRARY.glob("*.py")}
    assert not modules & set(lungmill.__all__)
    for name in modules - {"__init__"}:
        importlib.import_module(f"lungmill.{name}")
    assert callable(lungmill.resample) and callable(lungmill.index)


def test_every_rule_has_its_script_log_and_environment():
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"^(?:rule|checkpoint) ", text, flags=re.MULTILINE)[1:]
    for rule in rules:
        name = rule[: rule.index(":")]
        script = "pack" if name == "pack_zarr" else name
        assert f"../scripts/{script}.py" in rule and (SCRIPTS / f"{script}.py").is_file(), name
        assert "log:" in rule and "conda:" in rule, name


def pins(lines):
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line.strip())
        if match:
            found[match[1].lower()] = match[2]
    return found


def test_environments_are_in_step_with_the_requirements():
    required = pins((ROOT / "requirements.txt").read_text().splitlines())
    seen = {}
    for path in (ROOT / "envs").glob("*.yaml"):
        environment = yaml.safe_load(path.read_text())
        packages = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
        listed = pins(packages)
        assert len(listed) == len(packages), path.name
        seen |= listed
        for name, version in listed.items():
            assert required.get(name) == version, f"{path.name}: {name}"
    only_the_workflow = {"snakemake", "pyyaml", "jsonschema", "pandas"}
    assert set(required) == set(seen) | only_the_workflow


def test_requirements_are_pinned_and_name_no_address():
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-slurm.txt", "requirements-aws.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                assert "==" in line or line.startswith("-r "), line
                assert "://" not in line and "--" not in line, line


def test_files_can_be_read_in_one_sitting():
    for path in [*LIBRARY.rglob("*.py"), *SCRIPTS.glob("*.py"), *(ROOT / "rules").iterdir()]:
        if path.is_file():
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 60
