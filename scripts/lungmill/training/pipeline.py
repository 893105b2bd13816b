"""The line that batches pass along: threads that read, processes that preprocess, a thread that takes the result out.

Every batch has a ticket. The consumer issues tickets in order, waits for them in order, and so decides how many are on
their way. Between stations, they overtake each other freely: what happens to a batch does not depend on when.
"""

import atexit
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from queue import SimpleQueue

from lungmill.errors import LungmillError
from lungmill.training.interrupts import interrupt_later
from lungmill.training.sampling import Chunk
from lungmill.training.shared_memory import Slot
from lungmill.training.stages import Work
from lungmill.training.workers import WorkerProcess

SECONDS_TO_END = 5.0


class Ticket:
    """A batch on its way, and in the end the batch or the exception that came of it."""

    def __init__(self, chunk: Chunk):
        self.chunk = chunk
        self.place = None
        self.parcel = None
        self._error = None
        self._done = threading.Event()

    def finish(self, error: BaseException | None = None):
        self._error = error
        self._done.set()

    def result(self) -> Chunk:
        """Wait for the batch and return it, or raise what went wrong."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self.chunk


class Station:
    """Threads that take tickets from a queue, one for each of `actions`.

    An action returns whether there is something to pass on to the following station. Without threads, whoever brings
    a ticket does the first action.
    """

    def __init__(self, name: str, actions: list[Callable[[Ticket], bool]], threads: bool = True):
        self.following: Station | None = None
        self._actions = actions
        self._tickets = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=(action,), name=f"lungmill {name}", daemon=True)
            for action in (actions if threads else [])
        ]

    def start(self):
        for thread in self._threads:
            thread.start()

    def take(self, ticket: Ticket):
        if self._threads:
            self._tickets.put(ticket)
        else:
            self._do(self._actions[0], ticket)

    def stop(self):
        self._stopped = True
        for _ in self._threads:
            self._tickets.put(None)

    def join(self) -> bool:
        """Wait for the threads to end, and return whether they did: a read may be stuck."""
        for thread in self._threads:
            # The garbage collector closes a flow that nobody holds from any thread, maybe from this one.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(SECONDS_TO_END)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, action):
        while (ticket := self._tickets.get()) is not None and not self._stopped:
            self._do(action, ticket)
            del ticket

    def _do(self, action, ticket):
        try:
            goes_on = action(ticket)
        except BaseException as error:
            ticket.finish(error)
            if not self._threads and not isinstance(error, Exception):
                raise
            return
        if goes_on and self.following is not None:
            self.following.take(ticket)
        else:
            ticket.finish()


class Line:
    """Stations for `read` and for each of `works` that has processes, started and ready for chunks.

    Up to `nb_batches_ahead` batches are worked on or wait while the consumer has one. Processes are started before
    the threads, so that a forked process finds no lock held by a thread of this line. Closing ends all of them.
    """

    def __init__(self, read, works: list[Work], nb_io_workers: int, nb_batches_ahead: int, start_method: str):
        self._read = read
        self._first_work, *process_works = works
        self._ahead = nb_batches_ahead
        self._owner = os.getpid()
        self._stations = []
        self._workers = []
        self._slots = [Slot() for _ in range(nb_batches_ahead + 1)] if process_works else []
        # The slot that was free last is used first: slots that are not needed stay empty.
        self._free = list(range(len(self._slots)))
        try:
            with interrupt_later():
                self._start(process_works, nb_io_workers, start_method)
        except BaseException:
            self.close()
            raise

    def _start(self, process_works, nb_io_workers, start_method):
        groups = []
        for work in process_works:
            groups.append([])
            for _ in range(work.nb_workers):
                worker = WorkerProcess(work, self._slots, start_method)
                self._workers.append(worker)
                groups[-1].append(functools.partial(self._preprocess, worker))
        load = self._load_and_pack if groups else self._load
        self._stations.append(Station("reading", [load] * max(1, nb_io_workers), threads=nb_io_workers > 0))
        self._stations += [Station("preprocessing", actions) for actions in groups]
        if groups:
            self._stations.append(Station("taking out", [self._take_out]))
        for station, following in itertools.pairwise(self._stations):
            station.following = following
        for station in self._stations:
            station.start()
        # Runs before multiprocessing's own, which would wait for the processes while threads still wait for work.
        atexit.register(self.close)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def pass_along(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks with their batches, in order; those that were dropped have none."""
        tickets = deque()
        for chunk in chunks:
            tickets.append(self._submit(chunk))
            if len(tickets) > self._ahead:
                yield tickets.popleft().result()
        while tickets:
            yield tickets.popleft().result()

    def close(self):
        """End all threads and processes and let go of the memory."""
        with interrupt_later():
            # A process that was forked from this one holds a copy of this line, and no right to end its processes.
            if os.getpid() == self._owner:
                self._end()
                atexit.unregister(self.close)

    def _end(self):
        for station in self._stations:
            station.stop()
        for worker in self._workers:
            worker.stop()
        ended = [station.join() for station in self._stations]
        for worker in self._workers:
            worker.join()
        # A thread that is stuck in a read may be about to fill a slot. Then the slots go when it does.
        if all(ended):
            for slot in self._slots:
                slot.close()
        self._stations, self._workers, self._slots = [], [], []

    def _submit(self, chunk):
        if os.getpid() != self._owner:
            raise LungmillError("this flow was begun in another process: call flow() in the process that consumes it")
        ticket = Ticket(chunk)
        self._stations[0].take(ticket)
        return ticket

    def _load(self, ticket):
        ticket.chunk = self._first_work(self._read(ticket.chunk))
        return True

    def _load_and_pack(self, ticket):
        ticket.place = self._free.pop()
        slot = self._slots[ticket.place]
        chunk = self._first_work(self._read(ticket.chunk, slot.allocator()))
        ticket.chunk = replace(chunk, batch=None)
        if chunk.dropped:
            self._free.append(ticket.place)
        else:
            ticket.parcel = slot.pack(chunk)
        return not chunk.dropped

    def _preprocess(self, worker, ticket):
        ticket.parcel = worker.call(ticket.chunk, ticket.place, ticket.parcel)
        if ticket.parcel is None:
            self._free.append(ticket.place)
        return ticket.parcel is not None

    def _take_out(self, ticket):
        ticket.chunk = self._slots[ticket.place].take_out(ticket.parcel)
        self._free.append(ticket.place)
        return True
