"""How it is measured: all contestants in one process, a step of each in turn, medians, and ratios made round by round.

A machine that slows down for a while then slows all of them, and a ratio hardly moves.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import run.device


@dataclass
class Contestant:
    name: str
    step: Callable[[], int]  # does one step's work and returns how much it was, in tokens
    seconds: list[float] = field(default_factory=list)  # of each round
    tokens: list[int] = field(default_factory=list)

    def speeds(self) -> list[float]:
        """Tokens per second, round by round."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


def seconds_of(step: Callable[[], int], device: torch.device) -> tuple[float, int]:
    """CUDA time from the first kernel to the last; on a CPU, the CPU time of this process, all threads together."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        tokens = step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000, tokens
    started = time.process_time()
    tokens = step()
    return time.process_time() - started, tokens


def race(contestants: list[Contestant], rounds: int, device: torch.device, warmup: int = 2) -> None:
    """Every round is a step of each, in a new order each time; the first rounds do not count."""
    rng = random.Random(0)
    for number in range(warmup + rounds):
        for contestant in rng.sample(contestants, len(contestants)):
            seconds, tokens = seconds_of(contestant.step, device)
            if number >= warmup:
                contestant.seconds.append(seconds)
                contestant.tokens.append(tokens)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def times(contestant: Contestant, other: Contestant) -> str:
    """How many times as fast as the other: the median over the rounds and the middle half of them."""
    ratios = [mine / theirs for mine, theirs in zip(contestant.speeds(), other.speeds(), strict=True)]
    low, middle, high = quartiles(ratios)
    return f"{middle:.2f}× ({low:.2f}–{high:.2f})"


SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of the matrices that are multiplied


@functools.cache
def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """The most floating-point operations per second that a large matrix product reaches here."""
    best = 0.0
    for n in SIDES[device.type]:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = lambda a=a, b=b: (a @ b) is None or 1  # noqa: E731
        best = max(best, *(2 * n**3 / seconds_of(product, device)[0] for _ in range(6)))
    return best


def machine(device: torch.device) -> str:
    """One line: what the figures were measured on."""
    found = run.device.machine(device)
    units = f"{found['processor']}, bf16 units: {', '.join(run.device.cpu_bf16_units()) or 'none'}"
    name = found["device"] if device.type == "cuda" else units
    return f"{name}; {found['threads']} thread(s); torch {found['torch']}, Python {found['Python']}"
