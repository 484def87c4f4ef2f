"""Signals that ask a program to end: Ctrl-C, `kill` or a time limit, a terminal that is closed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from opsin.base.job import Terminated

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Give the signals that end a program to `handler`, but for those that are ignored, as under `nohup`."""
    before = {number: signal.getsignal(number) for number in ENDING}
    ours = [number for number, known in before.items() if known not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def end(number: int, _: Any = None) -> NoReturn:
    """Raise what ends the program so that it leaves nothing behind."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def exit_code(error: BaseException) -> int:
    """The exit code of a program that an interrupt ended, by the signal where it was one."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)
