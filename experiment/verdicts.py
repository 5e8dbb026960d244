"""How a claim is decided: by numbers that are further apart than chance would put them."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

HOLDS, FAILS, UNSEEN = "holds", "does not hold", "not visible at this scale"
T_975 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t by degrees of freedom


def t_975(degrees: int) -> float:
    return T_975[min(degrees, len(T_975) - 1)]


def standard_error(share: float, n: int) -> float:
    """Of a share among n, from (hits + 1) / (n + 2), so that 0 and 100 % have one too."""
    p = (share * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def beats(one: float, other: float, n_one: int, n_other: int) -> str:
    """Whether a share is above another by more than chance would do: 1.96 standard errors of the difference."""
    error = 1.96 * math.hypot(standard_error(one, n_one), standard_error(other, n_other) if n_other else 0)
    return HOLDS if one - other > error else FAILS if other - one > error else UNSEEN


def above_chance(share: dict[str, Any]) -> str:
    return beats(share["value"], share["chance"], share["n"], 0) if share["n"] else UNSEEN


def both(*verdicts: str) -> str:
    """All hold, or the worst of them; without any, nothing was seen."""
    return FAILS if FAILS in verdicts else UNSEEN if UNSEEN in verdicts or not verdicts else HOLDS


def when(condition: bool) -> str:
    return HOLDS if condition else FAILS


def draws_beat(one: Sequence[float], other: Sequence[float], all_draws: Sequence[Sequence[float]]) -> str:
    """Whether the mean of some draws is above that of others, by the error between draws: all_draws are groups of
    several, of which each has a spread of its own, and the pooled one counts."""
    degrees = sum(len(group) - 1 for group in all_draws)
    if degrees < 1:
        return UNSEEN
    spread = sum(statistics.variance(group) * (len(group) - 1) for group in all_draws if len(group) > 1) / degrees
    error = t_975(degrees) * math.sqrt(spread * (1 / len(one) + 1 / len(other)))
    apart = statistics.mean(one) - statistics.mean(other)
    return HOLDS if apart > error else FAILS if -apart > error else UNSEEN
