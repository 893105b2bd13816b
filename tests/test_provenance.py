import os
from pathlib import Path

import pytest

from lungmill.provenance import _meaning, code_hash, folder_fingerprint, imported_files

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "scripts" / "lungmill"


def used(script):
    files = imported_files(ROOT / "scripts" / f"{script}.py")
    return {str(path.relative_to(LIBRARY)) for path in files if LIBRARY in path.parents}


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


def test_only_what_changes_behaviour_changes_the_meaning(tmp_path):
    path = tmp_path / "module.py"
    meanings = []
    for text in (
        '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1\n',
        '"""Another."""\n\n# comment\ndef f(x):\n    return (x +\n        1)\n',
        '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 2\n',
    ):
        path.write_text(text)
        for function in (_meaning, __import__("lungmill.provenance").provenance._parse):
            function.cache_clear()
        meanings.append(_meaning(path).replace(b"    pass\n", b"").replace(b"pass\n", b""))
    assert meanings[0] == meanings[1] != meanings[2]


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
