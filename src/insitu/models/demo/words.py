"""Words the generated sentences are made of, grouped by the part they play.

    NAMES[0], PLACES[0], NOUNS["key"]

A word that stands more than once is drawn more often.
"""


def listed(text: str) -> tuple[str, ...]:
    """Split words apart: `listed("dog cat")`."""
    return tuple(text.split())


NAMES: tuple[str, ...] = listed(
    """Mary John Tom James Dan Sarah Anna David Michael Emma Robert Laura Peter Alice Mark
    Susan Paul Linda Kevin Karen Brian Nancy Steven Lisa George Helen Edward Ruth Frank Carol
    Simon Julia Daniel Rachel Andrew Emily Joseph Hannah Thomas Grace William Sophie Henry
    Lucy Jack Olivia Samuel Chloe Adam Megan Jason Amy Eric Kate Scott Jane Alan Rose Martin
    Claire Philip Diana Roger Martha Oscar Lily Victor Nina Leo Clara Max Ella Hugo Ivy Felix
    Maya Aaron Zoe Ryan Julie Justin Nicole Sean Erin Keith Tina Walter Joan Arthur Betty
    Louis Janet Carl Donna Gary Wendy Bruce Sandra
    """
)

PLACES: tuple[str, ...] = listed(
    """store school park garden office station hospital restaurant library market museum beach
    house bar cafe church hotel theater farm lake"""
)

GIFTS: tuple[str, ...] = listed(
    """drink book ring kiss snack basketball computer necklace bone letter ticket flower coat
    watch cake camera pencil gift map hat"""
)

GIVING: tuple[str, ...] = ("gave", "gave", "gave", "handed", "offered", "passed", "lent", "brought")

EVENTS: tuple[str, ...] = listed(
    """war siege voyage reign drought famine revolt strike trial project expedition plague alliance
    dispute festival journey treaty empire conflict campaign"""
)

REVIEWED: tuple[str, ...] = listed(
    """movie film book play show song concert story meal soup pizza dinner cake coffee restaurant
    hotel"""
)

PRAISE: tuple[str, ...] = listed(
    """wonderful great amazing fantastic excellent brilliant superb delightful beautiful perfect
    lovely charming good awesome outstanding terrific"""
)

BLAME: tuple[str, ...] = listed(
    """terrible awful horrible bad boring dreadful disgusting disappointing poor dull ugly nasty
    miserable pathetic unpleasant lousy"""
)

LIKING: tuple[str, ...] = ("loved", "loved", "loved", "liked", "enjoyed", "adored")
DISLIKING: tuple[str, ...] = ("hated", "hated", "hated", "disliked", "regretted", "despised")

NOUNS: dict[str, str] = {
    "key": "keys",
    "cabinet": "cabinets",
    "dog": "dogs",
    "cat": "cats",
    "door": "doors",
    "window": "windows",
    "table": "tables",
    "chair": "chairs",
    "car": "cars",
    "tree": "trees",
    "bird": "birds",
    "teacher": "teachers",
    "student": "students",
    "doctor": "doctors",
    "farmer": "farmers",
    "king": "kings",
    "queen": "queens",
    "guard": "guards",
    "author": "authors",
    "pilot": "pilots",
    "boy": "boys",
    "girl": "girls",
    "boat": "boats",
    "road": "roads",
    "river": "rivers",
    "tower": "towers",
    "picture": "pictures",
    "box": "boxes",
    "bottle": "bottles",
    "lamp": "lamps",
    "horse": "horses",
    "cow": "cows",
    "bridge": "bridges",
    "wall": "walls",
    "desk": "desks",
    "phone": "phones",
    "bag": "bags",
    "cup": "cups",
    "shop": "shops",
    "train": "trains",
}

LINKS: tuple[str, ...] = ("to", "near", "behind", "beside", "next to", "by", "with")

STATES: tuple[str, ...] = listed("old new big small red blue green clean ready here quiet lost")

ANIMALS: tuple[str, ...] = listed("dog cat fox bird horse cow rabbit bear mouse duck")
NATURES: tuple[str, ...] = listed("little big old young happy sad clever quick lazy brown")
THINGS: tuple[str, ...] = listed("ball stone shell coin leaf box key hat lamp book")
MOVES: tuple[str, ...] = ("ran", "walked", "jumped", "looked", "went")
PATHS: tuple[str, ...] = ("through", "over", "into", "around", "past")

SERIES: tuple[tuple[str, ...], ...] = (
    listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    listed(
        """January February March April May June July August September October November
        December"""
    ),
    listed("one two three four five six seven eight nine ten eleven twelve"),
)
