"""Batches in memory that two processes share: the arrays lie in a slot, and a few hundred bytes travel between them."""

import io
import math
import mmap
import os
import pickle
import tempfile
import weakref
from multiprocessing import reduction
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64
GRAIN = 1 << 20
WORTH_STAYING = 1 << 16

_open_slots = weakref.WeakSet()


class Parcel(NamedTuple):
    """Something laid down in a slot: its structure, pickled, and where the contents of its arrays are."""

    structure: bytes
    spans: list[tuple[int, int]]


class Slot:
    """Shared memory without a name, that grows to what it has to hold.

    The memory belongs to an open file that no directory lists. So it goes with the last process that has it open, even
    when all of them are killed, and it is not bound by the size of /dev/shm, which is small in containers.
    """

    _file = None

    def __init__(self):
        self._file = _nameless_file()
        self._mapped = np.empty(0, np.uint8)
        _open_slots.add(self)

    def __getstate__(self):
        return reduction.DupFd(self._file)

    def __setstate__(self, file):
        self._file = file.detach()
        self._mapped = np.empty(0, np.uint8)

    def allocator(self):
        """A function like `numpy.empty`, with memory of this slot as long as there is some.

        What is filled there needs no copy when it is packed. The slot does not grow for it: it did, or will, when the
        rest is packed.
        """
        used = 0

        def empty(shape, dtype):
            nonlocal used
            place, size = used, math.prod(shape) * np.dtype(dtype).itemsize
            if place + size > self._mapped.size or np.dtype(dtype).hasobject:
                return np.empty(shape, dtype)
            used = _aligned(place + size)
            return self._mapped[place : place + size].view(dtype).reshape(shape)

        return empty

    def pack(self, thing) -> Parcel:
        """Lay `thing` down, replacing what was here; arrays of it that lie here already stay where they are."""
        buffers = []
        structure = _dumps(thing, buffers.append)
        contents = [self._moved(np.frombuffer(buffer.raw(), np.uint8)) for buffer in buffers]
        places = [self._place_of(content) for content in contents]
        fresh = [position for position, place in enumerate(places) if place is None]
        end = max(
            (place + content.size for place, content in zip(places, contents, strict=True) if place is not None),
            default=0,
        )
        for position in fresh:
            places[position] = _aligned(end)
            end = places[position] + contents[position].size
        spans = [(place, content.size) for place, content in zip(places, contents, strict=True)]
        memory = self._memory(end)
        for position in fresh:
            place, size = spans[position]
            np.copyto(memory[place : place + size], contents[position])
        return Parcel(structure, spans)

    def look(self, parcel: Parcel):
        """What the parcel holds; its arrays are this memory itself, valid until the slot is used again."""
        return pickle.loads(parcel.structure, buffers=self._contents(parcel))

    def take_out(self, parcel: Parcel):
        """What the parcel holds, with arrays of its own."""
        # Copied by NumPy rather than as bytearray(content), since NumPy lets other threads run meanwhile.
        return pickle.loads(parcel.structure, buffers=[content.copy() for content in self._contents(parcel)])

    def close(self):
        """Let go of the memory; arrays that still show it keep it alive. The garbage collector does so too."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._mapped = np.empty(0, np.uint8)

    __del__ = close

    def _contents(self, parcel):
        memory = self._memory(max((place + size for place, size in parcel.spans), default=0))
        return [memory[place : place + size] for place, size in parcel.spans]

    def _moved(self, content):
        # A few bytes that stay at the end of the slot would keep the rest from being used again.
        return content.copy() if content.size < WORTH_STAYING and self._place_of(content) is not None else content

    def _place_of(self, content):
        """Where in this slot `content` lies; None if it lies elsewhere."""
        place = content.ctypes.data - self._mapped.ctypes.data
        return place if content.size and 0 <= place <= self._mapped.size - content.size else None

    def _memory(self, size):
        if size > len(self._mapped):
            size = -(-size // GRAIN) * GRAIN
            size = max(size, _grown(self._file, size))
            self._mapped = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        return self._mapped


def close_others(slots: list[Slot]):
    """In a new process: let go of slots inherited from the parent that belong to other flows."""
    for slot in list(_open_slots):
        if not any(slot is mine for mine in slots):
            slot.close()


def _aligned(place):
    return -(-place // ALIGNMENT) * ALIGNMENT


def _nameless_file():
    if hasattr(os, "memfd_create"):
        return os.memfd_create("lungmill")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _grown(file, size):
    """Make the file at least `size` bytes long and return its length."""
    length = os.fstat(file).st_size
    if length >= size:
        return length
    if hasattr(os, "posix_fallocate"):
        # Memory that is short shows as an OSError here; a file with holes would end the process with SIGBUS later.
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)
    return size


class _Pickler(pickle.Pickler):
    """Leaves the contents of every array out of the pickle, also of those whose elements are not side by side."""

    def reducer_override(self, value):
        if type(value) is np.ndarray and not value.flags.forc and not value.dtype.hasobject:
            return value.copy().__reduce_ex__(5)
        return NotImplemented


def _dumps(thing, take_buffer):
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=take_buffer).dump(thing)
    return file.getvalue()
