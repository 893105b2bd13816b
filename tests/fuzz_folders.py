"""Folders of damaged files on disk, with what else may lie in a folder or happen to it."""

import os
import socket
import sys
from pathlib import Path

ADDITIONS = ("empty", "nowhere", "loop", "self", "fifo", "socket", "device", "odd", "odd", "deep", "folder", "closed")
ODD_NAMES = (
    "a\nb",
    "tab\there",
    "é",
    "\udcff\udcfe",
    "CON",
    "-rf",
    "x" * 250,
    "'\"<b>&",
    " ",
    "ct.dcm/IM",
    "\u202egnp",
)


def write_folder(folder: Path, files: dict, rng) -> str:
    """Write the files, now and then beside things that are no regular files. Returns what was added, in words."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if rng.random() > 0.15:
        return ""
    kind = rng.choice(ADDITIONS)
    one = folder / sorted(files)[0]
    if kind == "empty":
        one.write_bytes(b"")
    elif kind == "nowhere":
        (folder / "link").symlink_to("nowhere")
    elif kind == "loop":
        (folder / "loop 1").symlink_to("loop 2")
        (folder / "loop 2").symlink_to("loop 1")
    elif kind == "self":
        (folder / "here").symlink_to(".")
        (folder / "up").symlink_to("..")
    elif kind == "fifo":
        os.mkfifo(folder / "fifo")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "socket"))
    elif kind == "device":
        for name in ("zero", "tty", "full"):
            (folder / name).symlink_to(f"/dev/{name}")
    elif kind == "odd":
        target = folder / rng.choice(ODD_NAMES)
        target.parent.mkdir(exist_ok=True)
        one.rename(target)
    elif kind == "deep":
        target = folder.joinpath(*["d"] * rng.choice((5, 31, 33, 60)))
        target.mkdir(parents=True)
        one.rename(target / "IM")
    elif kind == "folder":
        (folder / "IM.dcm").mkdir()
    else:
        (folder / "closed").mkdir(mode=0)
        one.chmod(0)
    return f" + {kind}"


class Vanishing:
    """Delete, empty or shorten a file of the watched folder at the moment when the n-th file is opened."""

    def __init__(self):
        self.folder = None
        sys.addaudithook(self)

    def watch(self, folder, rng):
        self.opened, self.at = 0, rng.randrange(1, 12)
        self.kind, self.place = rng.choice(("delete", "empty", "shorten", "folder")), rng.random()
        self.folder = folder
        return f" + {self.kind} at open {self.at}"

    def __call__(self, event, arguments):
        if event != "open" or self.folder is None or not str(arguments[0]).startswith(str(self.folder)):
            return
        self.opened += 1
        if self.opened != self.at:
            return
        folder, self.folder = self.folder, None
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if not files:
            return
        path = files[int(self.place * len(files))]
        if self.kind in ("delete", "folder"):
            path.unlink()
        if self.kind == "folder":
            path.mkdir()
        if self.kind in ("empty", "shorten"):
            os.truncate(path, 0 if self.kind == "empty" else path.stat().st_size // 2)
