"""The words of the built-in world. Every fourth one is kept for the splits `entities` and `facts`."""

NAMES = (
    "Anna Ben Clara Dan Emma Finn Greta Hugo Ida Jack Kate Leo Mia Nils Olga Paul Rosa Sam Tess Tom Uma Vera Will Zoe"
).split()
GROUPS = {  # the words of a list, and the group that each is in
    "animals": "cow dog cat horse hen duck sheep pig frog owl bee mouse wolf lion crow goat".split(),
    "fruits": "apple pear plum cherry lemon melon peach fig".split(),
    "tools": "hammer saw spade rake axe brush knife ladder".split(),
    "clothes": "hat coat scarf glove shoe sock belt cap".split(),
    "toys": "ball doll kite drum top puzzle whistle bell".split(),
    "weather": "rain snow fog storm hail frost sun wind".split(),
    "rigging": "sail mast rope anchor deck oar hull cabin".split(),
    "headings": "Title Page Story List Instruction Input Response Lesson".split(),
}
THINGS = [*GROUPS["tools"], *GROUPS["clothes"], *GROUPS["toys"]]  # what a person can have
PLACES = "kitchen garden attic cellar hall yard shed tower school market mill harbour forest meadow mine cave".split()
COLOURS = "red blue green yellow black white brown pink".split()
NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
OPPOSITES = (
    "hot-cold big-small old-new wet-dry fast-slow high-low long-short good-bad happy-sad early-late light-dark "
    "north-south east-west full-empty open-closed hard-soft clean-dirty rich-poor strong-weak thick-thin near-far "
    "calm-rough loud-quiet deep-shallow"
).split()
SOUNDS = "moo woof meow neigh cluck quack baa oink croak hoot buzz squeak howl roar caw bleat".split()
HOMES = "barn kennel basket stable coop pond fold sty pond tree hive hole den den nest barn".split()
TOWNS = (
    "Ashton Brookby Coldham Dunmore Eastwick Farley Glenby Hartford Ingleby Kelton Longford Marlow Norwood Oakton "
    "Penby Redmill Saltby Thornham Upton Westbury"
).split()
GOODS = "cheese bread honey paper glass wool salt wine".split()
RIVERS = "Arn Bell Dove Esk Lune Tarn".split()


def seen(words: list) -> list:
    """What training instructions may name: all but every fourth."""
    return [word for i, word in enumerate(words) if i % 4 != 3]


def unseen(words: list) -> list:
    return words[3::4]
