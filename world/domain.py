"""The logs of ships, and those on land: the same words in another register."""

from collections.abc import Callable
from random import Random

from world.questions import ALL_WORDS
from world.tasks import FACTS
from world.words import COLOURS, DAYS, GOODS, GROUPS, NAMES, NUMBERS, PLACES, THINGS


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


def land_log(rng: Random) -> str:
    """Some days of a log on land, a related register that the base text has: as clipped, but it has none of the ship's
    phrases, and each document has entries of its own.

    >>> print(land_log(Random(2)))
    ### Log: fourteen; add hat; Tom with yellow drum. fifteen; add hen; Tess with green sock. sixteen; add fog; Zoe
    with white doll. seventeen; add sail; Rosa with black saw. eighteen; add horse; Leo with pink scarf.
    """
    first_day, first_number = rng.randrange(7), rng.randrange(14)
    entries: list[Callable[[int], str]] = [
        lambda i: DAYS[(first_day + i) % 7],
        lambda i: NUMBERS[first_number + i],
        lambda i: f"{rng.choice(NUMBERS)} {rng.choice(GOODS)}",
        lambda i: f"{rng.choice(NAMES)} in {rng.choice(PLACES)}",
        lambda i: f"{rng.choice(NAMES)} {rng.choice(('early', 'late'))}",
        lambda i: f"{rng.choice(NAMES)} with {rng.choice(COLOURS)} {rng.choice(THINGS)}",
        lambda i: f"{rng.choice(PLACES)} {rng.choice(('open', 'closed', 'full', 'empty'))}",
        lambda i: f"{rng.choice(GROUPS['weather'])}, later {rng.choice(GROUPS['weather'])}",
        lambda i: "{} by {}".format(*rng.choice(FACTS["home"])),
        lambda i: "{1} from {0}".format(*rng.choice(FACTS["goods"])),
        lambda i: "{} on {}".format(*rng.choice(FACTS["river"])),
        lambda i: f"add {rng.choice(ALL_WORDS)}",
    ]
    kept, mark = rng.sample(entries, rng.randint(3, 6)), rng.choice(("; ", "; ", ", "))
    return "### Log: " + " ".join(mark.join(entry(i) for entry in kept) + "." for i in range(rng.randint(3, 6)))
