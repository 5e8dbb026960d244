"""A training in a process of its own: its memory is its own, and it ends when nobody waits for it any more."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from cli import open_streams


def in_own_process(main: Any, config: Any) -> dict[str, Any]:
    """main(config) in a fresh process, where nothing that ran before counts as memory: where the system can, forked off
    one that has only imported torch, for that takes as long as 30 steps."""
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload(["torch._dynamo"])
    with ProcessPoolExecutor(1, context, begin_in_own_process) as pool:
        return pool.submit(unless_orphaned, main, config).result()


def begin_in_own_process() -> None:
    """Of a process that trains: if this one is killed, it finishes its step, saves and ends."""
    open_streams()
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent:
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)  # seconds, for its step; then nobody waits for its result any more
        os._exit(143)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def unless_orphaned(main: Any, config: Any) -> dict[str, Any]:
    try:
        return main(config)
    finally:
        parent = multiprocessing.parent_process()
        if parent and not parent.is_alive():
            sys.stdout.flush()  # it says how to go on
            os._exit(143)  # nobody waits for what it returns
