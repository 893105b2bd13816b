"""Ctrl-C at moments when it would be lost or do harm, delivered when they are over."""

import contextlib
import signal
import threading

SECONDS_LATER = 0.05


@contextlib.contextmanager
def interrupt_later():
    """Ctrl-C in this block takes effect shortly after it.

    What is started or ended by halves stays behind. And a generator that nobody holds any more is closed by Python
    where an exception has nowhere to go: it would be printed and forgotten, and the program would go on.
    """
    main = threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not main or handler is None:
        yield
        return
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came.is_set():
            again = threading.Timer(SECONDS_LATER, signal.pthread_kill, (main.ident, signal.SIGINT))
            again.daemon = True
            again.start()


@contextlib.contextmanager
def interrupt_blocked():
    """Ctrl-C does not reach processes started in this block until they unblock it, nor this thread in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
