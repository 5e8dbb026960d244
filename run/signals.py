"""Ctrl-C, SIGTERM and SIGHUP (a terminal was closed): the first asks a run to finish its step, the second leaves at
once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """Which signal has asked for a stop: 0 for none."""

    number = 0


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Within it a signal only sets the number of what is returned; another one raises what ends the process."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.number:
            raise leaving(number)
        stop.number = number

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    # nohup ignores SIGHUP, so that a run goes on when its terminal is closed: what is ignored stays so, but for Ctrl-C
    heard = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leaving(number: int) -> BaseException:
    """What ends the process with exit code 128 + number, and after Ctrl-C leaves a notebook's kernel alive."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
