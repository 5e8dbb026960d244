"""How the learning rate changes over a run."""

import math


def warmup_then_cosine(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at step 0, 1, … steps - 1.

    In the first share `warmup` of the steps it rises to 1 in a line (Goyal et al. 2017, sec. 2.2); then it falls to 0
    along half a cosine (Loshchilov and Hutter 2016, eq. 5, without restarts).
    """
    warmup_steps = int(warmup * steps)
    rise = min(1.0, (step + 1) / (warmup_steps + 1))
    progress = max(0, step - warmup_steps) / max(1, steps - warmup_steps)  # from 0 to 1
    return rise * 0.5 * (1 + math.cos(math.pi * progress))
