"""Programs that the tests of the data flow start, interrupt and kill: `python dataflow_program.py NAME`.

Each prints a line when it is where the test wants it.
"""

import os
import signal
import sys
import time

import numpy as np

from lungmill.training.dataflow import DataFlow
from lungmill.training.stages import Keep, Stage

IMAGES = np.zeros((1000, 64, 64), np.int16)
NUMBERS = np.arange(1000)


def say(*words):
    print(*words, flush=True)


def quick(batch):
    return [batch[0] + 1, batch[1]]


def slow_from_the_third(batch):
    if batch[1][0] >= 16:
        time.sleep(600)
    return quick(batch)


def hard_to_end(batch):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return slow_from_the_third(batch)


def two_stages(function, nb_workers=2):
    return [Stage(quick, nb_workers=nb_workers), Stage(function, nb_workers=nb_workers)]


def flow_of(preprocessor, **settings):
    return DataFlow([IMAGES, NUMBERS], 8, 2, 1, preprocessor=preprocessor, rng=0, **settings)


def waits_for_a_batch(nb_workers=2, **settings):
    flow = flow_of(two_stages(slow_from_the_third, nb_workers), nb_batches_ahead=1, **settings)
    for count, _ in enumerate(flow.flow(), 1):
        say("received", count)


def trains():
    signal.signal(signal.SIGTERM, lambda *_: say("this handler is for the main process"))
    for _ in flow_of(two_stages(quick)).flow():
        say("training")
        time.sleep(600)


def comes_and_goes():
    say("begins")
    while True:
        leaves_early()


def holds_it_to_the_end():
    global batches
    batches = flow_of(two_stages(slow_from_the_third), nb_batches_ahead=1).flow()
    next(batches)
    say("done")


def leaves_early():
    for preprocessor in (quick, slow_from_the_third, hard_to_end):
        for _ in flow_of(two_stages(preprocessor), nb_batches_ahead=2).flow():
            break
    say("done")


def starts_without_forking(method):
    flow = flow_of([Keep(is_even), Stage(quick, nb_workers=1)], start_method=method, loop_forever=False)
    found = [batch[1] for batch in flow.flow()]
    np.testing.assert_array_equal(np.concatenate(found), NUMBERS[::2])
    try:
        next(flow_of(lambda batch: batch, start_method=method).flow())
    except ValueError as error:
        say(error)


def waits_without_forking():
    waits_for_a_batch(nb_workers=1, start_method="forkserver")


def is_even(element):
    return element[1] % 2 == 0


def worker_dies(number):
    """The process that has batch 3 ends by a signal, or by exiting."""

    def die(batch):
        if batch[-1][0] == 24:
            if number:
                os.kill(os.getpid(), number)
            os._exit(7)
        return batch

    return die


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
