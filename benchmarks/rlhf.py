"""Which share of an RLHF run is spent on sampling answers.

python -m benchmarks.rlhf FOLDER        of a seed of `compare.py --only preference`, which holds sft and reward-model
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import compare
import train_rlhf
from experiment import preference
from run import rollout


def shares(config: train_rlhf.Config) -> tuple[float, float, float]:
    """Seconds of a run: in generate, in roll_out (which scores the answers too), and in all of it."""
    sampling, rolling_out = [0.0], [0.0]
    generate = mock.patch.object(rollout, "generate", timed(rollout.generate, sampling))
    roll_out = mock.patch.object(train_rlhf, "roll_out", timed(train_rlhf.roll_out, rolling_out))
    with generate, roll_out:
        seconds = train_rlhf.main(config)["seconds"]
    return sampling[0], rolling_out[0], seconds


def timed(function: Callable, took: list[float]) -> Callable:
    def run(*given: Any, **how: Any) -> Any:
        begun = time.perf_counter()
        found = function(*given, **how)
        took[0] += time.perf_counter() - begun
        return found

    return run


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        methods = compare.methods_of_preference(compare.Config(), Path(sys.argv[1]), seed=0)
        [method] = [method for method in methods if method.name == preference.RLHF]
        sampling, rolling_out, seconds = shares(method.config(f"{folder}/run"))
    print(f"sampling {sampling:.1f} s, with the rewards {rolling_out:.1f} s, of {seconds:.1f} s")
