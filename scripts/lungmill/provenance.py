"""What a result depends on besides its settings: the DICOM files it was made from and the code that made it."""

import ast
import contextlib
import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path

from lungmill.files import list_files

LIBRARY = Path(__file__).parent


def folder_fingerprint(folder) -> str:
    """Hash of the names, sizes and modification times of all files below `folder`; changes when one is overwritten.

    An archive is a single file. Raises FileNotFoundError where there is no such folder.
    """
    digest = hashlib.sha256()
    if Path(folder).is_file():
        status = Path(folder).stat()
        digest.update(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]
    for file in list_files(folder):
        try:
            status = (Path(folder) / file).stat()
            line = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:  # a link that leads nowhere is part of the folder's state too
            line = f"{file}\0gone\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@cache
def code_hash(script) -> str:
    """Hash of a script and of every lungmill module that it imports, directly or not; comments and docstrings aside.

    The package's `__init__` is left out: it only hands out names.
    """
    digest = hashlib.sha256()
    for path in sorted(imported_files(Path(script))):
        digest.update(path.name.encode() + _read(path)["meaning"].encode())
    KNOWN.save()
    return digest.hexdigest()[:16]


def imported_files(script: Path) -> set[Path]:
    """The script and the files of all lungmill modules it imports, found without running them."""
    found, todo = set(), [Path(script)]
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        read = _read(path)
        todo += [LIBRARY.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in read["modules"]]
        todo += [path.parent / name for name in read["templates"]]
    return found


@cache
def _read(path):
    """What matters of a file: hash of its meaning, names of the lungmill modules it imports, its page templates."""
    content = path.read_bytes()
    if path.suffix != ".py":
        return {"meaning": hashlib.sha256(content).hexdigest(), "modules": [], "templates": []}
    return KNOWN.of(content)


class KnownSources:
    """What was found in sources before, by their content, kept beside Python's own compiled files.

    Parsing the library takes half a second, at every start of Snakemake and so in every job of a cluster.
    """

    def __init__(self, folder):
        self.file = folder / f"provenance.{sys.implementation.cache_tag}.json"  # what `ast` gives differs by version
        self._found = None
        self._is_new = False

    def of(self, content):
        if self._found is None:
            try:
                self._found = json.loads(self.file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._found = {}
        key = hashlib.sha256(content).hexdigest()
        if key not in self._found:
            self._found[key] = _parsed(content)
            self._is_new = True
        return self._found[key]

    def save(self):
        """Write down what is new; where nobody may write there, it is found again the next time."""
        if not self._is_new:
            return
        self._is_new = False
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(exist_ok=True)
            temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")  # other runs may start just now
            temporary.write_text(json.dumps(self._found), encoding="utf-8")
            temporary.replace(self.file)


KNOWN = KnownSources(LIBRARY / "__pycache__")


def _parsed(content):
    tree = ast.parse(content)
    modules, templates = set(), set()
    for node in ast.walk(tree):
        modules.update(_library_modules(node))
        # A page template that the module names, such as report.html.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".html"):
            templates.add(node.value)
    meaning = hashlib.sha256(_meaning(tree)).hexdigest()
    return {"meaning": meaning, "modules": sorted(modules), "templates": sorted(templates)}


def _library_modules(node):
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        # `from lungmill.dicom import header` names a module, `from lungmill.grid import Grid` does not.
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        return []
    return [name for name in names if name.startswith("lungmill.")]


def _meaning(tree):
    """The code without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).encode()
