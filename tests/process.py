"""A script in a process of its own, with signals, an end and output of its own, as from a shell; but where the system
can, forked off one that has imported torch: importing it takes longer than the runs of tests.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")


class Process:
    """Used as a subprocess.Popen with pipes, which are files here."""

    def __init__(self, *program: object) -> None:
        """program: a file, or -c and code; and flags."""
        paths = [Path(tempfile.mkdtemp(prefix="finetuning-process-"), name) for name in ("stdout", "stderr")]
        for path in paths:
            path.touch()
        self.stdout, self.stderr = (open(path, encoding="utf-8", errors="replace") for path in paths)  # noqa: SIM115
        if CAN_FORK:
            CONTEXT.set_forkserver_preload(["torch._dynamo"])  # as experiment/own_process.py
        self.process = CONTEXT.Process(target=as_from_a_shell, args=(paths, [*map(str, program)]))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        assert self.returncode is not None, f"it goes on after {timeout} seconds"

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def wait_for(self, words: str) -> None:
        """Until it has printed them."""
        said = ""
        while words not in said:
            ended = self.poll() is not None
            said += self.stdout.read()
            assert words in said or not ended, f"it ended with {self.returncode}: {self.stderr.read()}"
            time.sleep(0.01)


def as_from_a_shell(paths: list[Path], program: list[str]) -> None:
    for path, number in zip(paths, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY), number)
    if CAN_FORK:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though nohup may run the tests
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is among processes: a killed one would leave it behind
    name, *flags = program
    if name == "-c":
        sys.argv[:] = ["-c", *flags[1:]]
        exec(flags[0], {"__name__": "__main__"})
    else:
        sys.argv[:] = program
        runpy.run_path(name, run_name="__main__")
