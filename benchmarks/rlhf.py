"""Which share of an RLHF run is spent on sampling answers.

python -m benchmarks.rlhf FOLDER        of a seed of `compare.py --only preference`, which holds sft and reward-model
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import train_rlhf
from run import rollout


def shares(config: train_rlhf.Config) -> tuple[float, float, float]:
    """Seconds of a run: in generate, in roll_out (which scores the answers too), and in all of it."""
    sampling, rolling_out = [0.0], [0.0]
    generate, roll_out = rollout.generate, train_rlhf.roll_out
    rollout.generate, train_rlhf.roll_out = timed(generate, sampling), timed(roll_out, rolling_out)
    try:
        seconds = train_rlhf.main(config)["seconds"]
    finally:
        rollout.generate, train_rlhf.roll_out = generate, roll_out
    return sampling[0], rolling_out[0], seconds


def timed(function: Callable, took: list[float]) -> Callable:
    @wraps(function)
    def run(*given: Any, **how: Any) -> Any:
        begun = time.perf_counter()
        found = function(*given, **how)
        took[0] += time.perf_counter() - begun
        return found

    return run


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        config = train_rlhf.Config(  # as compare.py has it
            instructions="data/builtin/preferences.json",
            columns="output=chosen",
            init_from=f"{sys.argv[1]}/sft",
            reward=f"{sys.argv[1]}/reward-model",
            block_size=240,
            batch_size=16,
            steps=40,
            learning_rate=5e-5,
            beta=0.5,
            eval_every=200,
            held_out=0.05,
            out=f"{folder}/run",
        )
        sampling, rolling_out, seconds = shares(config)
    print(f"sampling {sampling:.1f} s, with the rewards {rolling_out:.1f} s, of {seconds:.1f} s")
