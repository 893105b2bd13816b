"""A progress bar for long steps: on a terminal only, and only once a step has taken a moment."""

import sys

SECONDS_BEFORE_SHOWN = 2.0


def bar(description: str):
    """Return a function that passes an iterable through while a bar follows it on stderr.

    >>> list(bar("reading")(range(3)))
    [0, 1, 2]
    """

    def follow(iterable):
        if not sys.stderr.isatty():
            return iterable
        from tqdm import tqdm

        return tqdm(iterable, desc=description, delay=SECONDS_BEFORE_SHOWN, leave=False, dynamic_ncols=True)

    return follow
