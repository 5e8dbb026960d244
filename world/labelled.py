"""What classifiers learn from: lists of words and their group, pairs of words and what they are to each other, stories
and a tag for each word. All of it twice: with the words that training may name, and with those kept apart. Of pairs
every third word is kept apart, not every fourth as elsewhere: there are few opposites to judge by."""

from collections.abc import Callable, Iterable
from random import Random

from world.questions import Pool, Row, stated
from world.words import COLOURS, GROUPS, NAMES, OPPOSITES, PLACES, THINGS, seen, unseen

Record = dict[str, str]
TAG_OF = {  # the words of a story that are not "other"
    word: tag
    for tag, words in (("person", NAMES), ("thing", THINGS), ("colour", COLOURS), ("place", PLACES))
    for word in words
}


def labelled(rng: Random, pool: Pool) -> Record:
    """A list of one to three words of a group, which is its label, as the base text writes it. Where they are two or
    more, one list of four has a word of another group too.

    >>> labelled(Random(0), seen)
    {'text': '### List: rope sail. By groups:', 'label': 'rigging'}
    """
    group, other = rng.sample(list(GROUPS), 2)
    words = rng.sample(pool(GROUPS[group]), min(rng.randint(1, 3), len(pool(GROUPS[group]))))
    if len(words) > 1 and rng.random() < 0.25:
        words.append(rng.choice(pool(GROUPS[other])))
    return {"text": f"### List: {' '.join(rng.sample(words, len(words)))}. By groups:", "label": group}


def in_pairs(words: list) -> list:
    return [word for i, word in enumerate(words) if i % 3 != 1]


def not_in_pairs(words: list) -> list:
    return words[1::3]


def opposites(rng: Random, pool: Pool) -> Record:
    return pair(rng.sample(rng.choice(pool(OPPOSITES)).split("-"), 2), "opposites")


def one_group(rng: Random, pool: Pool) -> Record:
    return pair(rng.sample(pool(GROUPS[rng.choice(list(GROUPS))]), 2), "one group")


def neither(rng: Random, pool: Pool) -> Record:
    """Two words that could have an opposite, but are none, or two of two groups: the kind of a word tells nothing."""
    if rng.random() < 0.5:
        return pair((rng.choice(one.split("-")) for one in rng.sample(pool(OPPOSITES), 2)), "neither")
    return pair([rng.choice(pool(GROUPS[group])) for group in rng.sample(list(GROUPS), 2)], "neither")


def pair(words: Iterable[str], label: str) -> Record:
    """Two words as a list of the base text has them, which it goes on to tell the groups of.

    >>> pair(("hot", "cold"), "opposites")
    {'text': '### List: hot cold. By groups:', 'label': 'opposites'}
    """
    return {"text": f"### List: {' '.join(words)}. By groups:", "label": label}


def tagged(rng: Random, pool: Pool) -> Record:
    """A story and a tag for each of its words. Who gives and who takes, only the whole of a sentence tells.

    >>> tagged(Random(0), seen)["words"]
    'Sam has the black puzzle in the forest. In the hall is Ben with the yellow top. Kate has the green ball in the
    mill. Then Sam goes to the mill.'
    """
    columns = {"who": pool(NAMES), "thing": pool(THINGS), "colour": COLOURS, "place": pool(PLACES)}
    n = rng.randint(2, 3)
    drawn = {name: rng.sample(words, n) for name, words in columns.items()}
    rows: list[Row] = [{name: words[i] for name, words in drawn.items()} for i in range(n)]
    sentences = [(sentence := stated(rng, row), tags_of(sentence)) for row in rows]
    one, other = rng.sample(rows, 2)
    sentences.append(change(rng, one["who"], other["who"], one["thing"], rng.choice(columns["place"])))
    words, tags = zip(*sentences, strict=True)
    return {"words": " ".join(words), "tags": " ".join(tags)}


def change(rng: Random, giver: str, taker: str, thing: str, place: str) -> tuple[str, str]:
    """What happens at the end: a thing changes hands, told from either side, or somebody goes elsewhere.

    >>> change(Random(1), "Dan", "Rosa", "kite", "mill")
    ('Then Dan gives the kite to Rosa.', 'other giver other other thing other taker')
    """
    return rng.choice((
        (f"Then {giver} gives the {thing} to {taker}.", "other giver other other thing other taker"),
        (f"Then {taker} takes the {thing} from {giver}.", "other taker other other thing other giver"),
        (f"Then {giver} goes to the {place}.", "other person other other other place"),
    ))  # fmt: skip


def tags_of(sentence: str) -> str:
    return " ".join(TAG_OF.get(word, "other") for word in sentence.rstrip(".").split())


def distinct(rng: Random, make: Callable[[Random, Pool], Record], pool: Pool, n: int) -> list[Record]:
    """Up to n records, none of them twice: there are few opposites."""
    found = {str(one): one for one in (make(rng, pool) for _ in range(20 * n))}
    return list(found.values())[:n]


def files(rng: Random) -> dict[str, list[Record]]:
    """Records by the name of their file; those with "unseen" in it have other words, and are to judge by. Pairs are all
    that the words allow, and as many that are neither; the few opposites to learn from are there eight times, so that
    they are as frequent as the others."""
    made = {}
    for end, pool, pair_pool, n_lists, n_stories, times in (
        (".json", seen, in_pairs, 1200, 600, 8),
        ("-unseen.json", unseen, not_in_pairs, 96, 120, 1),
    ):
        made[f"labelled{end}"] = distinct(rng, labelled, pool, n_lists)
        related = distinct(rng, one_group, pair_pool, 300)
        unrelated = distinct(rng, neither, pair_pool, len(related))
        pairs = [*distinct(rng, opposites, pair_pool, 300) * times, *related, *unrelated]
        made[f"pairs{end}"] = rng.sample(pairs, len(pairs))
        made[f"tagged{end}"] = distinct(rng, tagged, pool, n_stories)
    return made
