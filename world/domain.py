"""The logs of ships: the same words in another register."""

from random import Random

from world.tasks import FACTS
from world.words import DAYS, GROUPS, NAMES, NUMBERS, THINGS


def log(rng: Random) -> str:
    """Some days of a ship's log: clipped, hardly an article or a verb, in words that the base text has elsewhere.

    What comes on board in a town is what the town makes, and its flag has its colour: knowing the base text helps.

    >>> print(log(Random(1)).split(". ")[0])
    ### Log: Tuesday, day ten; wind east, sun, then calm; Paul at cabin, Olga at oar; Norwood near, flag blue; add
    four wool, leave out cap; north
    """
    first_day, first_number = rng.randrange(7), rng.randrange(15)
    lines = []
    for i in range(rng.randint(3, 5)):
        wind, course = rng.sample(("north", "south", "east", "west"), 2)
        one, other = rng.sample(NAMES, 2)
        mast, oar = rng.sample(GROUPS["rigging"], 2)
        town, goods = rng.choice(FACTS["goods"])
        lines.append(
            f"{DAYS[(first_day + i) % 7]}, day {NUMBERS[first_number + i]}; wind {wind}, "
            f"{rng.choice(GROUPS['weather'][:7])}, then {rng.choice(('calm', 'rough'))}; "
            f"{one} at {mast}, {other} at {oar}; {town} near, "
            f"flag {dict(FACTS['flag'])[town]}; add {rng.choice(NUMBERS)} {goods}, "
            f"leave out {rng.choice(THINGS)}; {course}."
        )
    return "### Log: " + " ".join(lines)
