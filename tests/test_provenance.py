import os
from pathlib import Path

import pytest

from lungmill import provenance
from lungmill.provenance import KnownSources, code_hash, folder_fingerprint, imported_files

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "scripts" / "lungmill"


def used(script):
    files = imported_files(ROOT / "scripts" / f"{script}.py")
    return {str(path.relative_to(LIBRARY)) for path in files if LIBRARY in path.parents}


def forget():
    """What this process has found so far."""
    for function in (code_hash, provenance._read):
        function.cache_clear()


def test_imports_are_followed_to_the_end():
    import subprocess
    import sys

    # What Python itself imports, as the independent answer.
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import lungmill.series, lungmill.resampling, lungmill.sidecar;"
        "print(*[m.__file__ for n, m in sys.modules.items() if n.startswith('lungmill.')], sep='\\n')"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = {str(Path(line).relative_to(LIBRARY)) for line in out.split()}
    missing = loaded - used("resample") - {"dicom/__init__.py"}
    assert not missing


def test_steps_do_not_depend_on_each_other():
    assert "segmentation.py" in used("segment")
    assert "segmentation.py" not in used("resample") | used("index") | used("pack") | used("patches")
    assert "resampling.py" not in used("segment") | used("pack") | used("patches") | used("index")
    assert "report.html" in used("report")


def test_only_what_changes_behaviour_changes_the_hash(tmp_path):
    hashes = []
    for number, text in enumerate(
        (
            '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1\n',
            '"""Another."""\n\n# comment\ndef f(x):\n    """Say it."""\n    return (x +\n        1)\n',
            '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 2\n',
        )
    ):
        path = tmp_path / str(number) / "module.py"
        path.parent.mkdir()
        path.write_text(text)
        hashes.append(code_hash(path))
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_is_known_of_a_source_survives_the_process(tmp_path, monkeypatch):
    forget()
    monkeypatch.setattr(provenance, "KNOWN", KnownSources(tmp_path / "cache"))
    script = tmp_path / "script.py"
    script.write_text("from lungmill.grid import Grid\nx = 'page.html'\n")
    first = code_hash(script)
    before = provenance.KNOWN.file.read_bytes()
    monkeypatch.setattr(provenance, "KNOWN", KnownSources(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "_parsed", None)  # nothing is parsed again
    forget()
    assert code_hash(script) == first
    assert provenance.KNOWN.file.read_bytes() == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [provenance.KNOWN.file.name]


@pytest.mark.parametrize("damage", ["not there", "not JSON", "no folder may be made"])
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path, monkeypatch, damage):
    known = KnownSources(tmp_path / "cache")
    if damage == "not JSON":
        known.file.parent.mkdir()
        known.file.write_text("{")
    elif damage == "no folder may be made":
        (tmp_path / "cache").write_text("a file")
    expected = code_hash(ROOT / "scripts" / "segment.py")
    monkeypatch.setattr(provenance, "KNOWN", known)
    forget()
    assert code_hash(ROOT / "scripts" / "segment.py") == expected


def test_hash_of_a_script_is_stable():
    assert code_hash(ROOT / "scripts" / "index.py") == code_hash(ROOT / "scripts" / "index.py")


@pytest.mark.parametrize("change", ["content", "add", "remove", "rename", "nested"])
def test_fingerprint_sees_every_change(tmp_path, change):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_text(name)
    before = folder_fingerprint(tmp_path)
    assert folder_fingerprint(tmp_path) == before
    if change == "content":
        status = (tmp_path / "one").stat()
        (tmp_path / "one").write_text("eno")
        os.utime(tmp_path / "one", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "add":
        (tmp_path / "four").touch()
    elif change == "remove":
        (tmp_path / "a" / "two").unlink()
    elif change == "rename":
        (tmp_path / "one").rename(tmp_path / "eins")
    else:
        (tmp_path / "a" / "b" / "three").write_text("three and more")
    assert folder_fingerprint(tmp_path) != before


def test_fingerprint_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        folder_fingerprint(tmp_path / "absent")
