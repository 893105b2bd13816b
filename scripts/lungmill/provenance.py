"""What a result depends on besides its settings: the DICOM files it was made from and the code that made it."""

import ast
import hashlib
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
        digest.update(path.name.encode() + _meaning(path))
    return digest.hexdigest()[:16]


def imported_files(script: Path) -> set[Path]:
    """The script and the files of all lungmill modules it imports, found without running them."""
    found, todo = set(), [Path(script)]
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        if path.suffix == ".py":
            for node in ast.walk(_parse(path)):
                todo += _library_files(node)
                todo += _template_beside(path, node)
    return found


def _template_beside(path, node):
    """A page template that the module names, such as report.html."""
    named = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".html")
    return [path.parent / node.value] if named else []


def _library_files(node):
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        # `from lungmill.dicom import header` names a module, `from lungmill.grid import Grid` does not.
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        return []
    inside = [name.split(".")[1:] for name in names if name.startswith("lungmill.")]
    return [LIBRARY.joinpath(*parts).with_suffix(".py") for parts in inside]


@cache
def _parse(path):
    return ast.parse(path.read_bytes())


@cache
def _meaning(path):
    """The code of a file without comments, docstrings and layout, or the bytes of a file that is not Python."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = _parse(path)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).encode()
