"""The words of the things world: what there is, what is said of it, and which sentences are held out.

The things are those of some 240 candidates (short names, one thing each) that the three training styles draw most
alike, by nearest neighbours on edges and colours; the unseen style had no say in the choice.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_NAMES = """
airplane ambulance anchor ant apple avocado balloon banana basketball battery bear bicycle bomb book boot bus
cactus camel camera candle car carrot cat clock cloud cookie cow crab croissant crown cucumber diamond dog
dolphin door doughnut dress drum egg eggplant elephant fox frog ghost guitar hammer hat heart helicopter house
key kiwi koala ladybug lamp lemon lion lizard lollipop medal melon microphone microscope monkey moon mouse
mushroom owl paintbrush panda peach pear pencil penguin phone pig pizza potato pumpkin rabbit radio rainbow
ring rocket rooster rose sailboat saxophone shark sheep ship skull snowflake snowman spider spoon star
strawberry sun sunflower taco taxi telescope tiger toilet tomato tornado tractor train trophy truck trumpet
tulip umbrella violin volcano watch whale wolf wrench
"""
# Their keys in the icon sets, where these are others.
_KEYS = {
    "apple": "red-apple",
    "book": "closed-book",
    "boot": "womans-boot",
    "car": "automobile",
    "cat": "cat-face",
    "clock": "mantelpiece-clock",
    "cow": "cow-face",
    "diamond": "gem-stone",
    "dog": "dog-face",
    "hat": "top-hat",
    "heart": "red-heart",
    "kiwi": "kiwi-fruit",
    "ladybug": "lady-beetle",
    "lamp": "light-bulb",
    "medal": "sports-medal",
    "monkey": "monkey-face",
    "moon": "crescent-moon",
    "mouse": "mouse-face",
    "phone": "mobile-phone",
    "pig": "pig-face",
    "pumpkin": "jack-o-lantern",
    "rabbit": "rabbit-face",
    "sheep": "ewe",
    "snowman": "snowman-without-snow",
    "tiger": "tiger-face",
    "train": "locomotive",
    "truck": "delivery-truck",
    "whale": "spouting-whale",
}
THINGS = {name: _KEYS.get(name, name) for name in _NAMES.split()}
# The first names the thing and no more; `a` is the name with its article.
SENTENCES = (
    "{a}",
    "look at the {name}",
    "I can see {a}",
    "where is the {name}",
    "show me {a}",
    "here comes {a}",
    "do you like the {name}",
    "we found {a} today",
    "please draw {a}",
    "my sister has {a}",
    "it looks like {a}",
    "that is a very big {name}",
    "who took the {name}",
    "I dream of {a}",
    "let us talk about the {name}",
    "give the {name} to me",
    "one more {name} please",
    "the {name} is over there",
    "the {name} is small",
    "he painted the {name} red",
)
TRAIN_SENTENCES, TEST_SENTENCES = 8, 2  # of every thing, beside its name
SEED = 4


def string_of(thing: str, sentence: int) -> str:
    """The string of an item: ("apple", 3) -> "apple/3"."""
    return f"{thing}/{sentence}"


def thing_of(string: str) -> str:
    """ "apple/3" -> "apple"."""
    return string.rpartition("/")[0]


def text_of(string: str) -> str:
    """ "apple/3" -> "where is the apple"."""
    thing, _, sentence = string.rpartition("/")
    article = "an" if thing[0] in "aeiou" else "a"
    return SENTENCES[int(sentence)].format(name=thing, a=f"{article} {thing}").lower()


@cache
def split() -> dict[str, tuple[str, ...]]:
    """The strings of "train" (names, and some sentences of every thing) and of "test" (other sentences of them).

    Sentences are dealt so that each is met about equally often, in training and in test.
    """
    rng = np.random.default_rng(SEED)
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for thing in sorted(THINGS):
        order = 1 + rng.permutation(len(SENTENCES) - 1)
        parts["train"] += [string_of(thing, 0), *(string_of(thing, int(n)) for n in order[:TRAIN_SENTENCES])]
        parts["test"] += [string_of(thing, int(n)) for n in order[TRAIN_SENTENCES : TRAIN_SENTENCES + TEST_SENTENCES]]
    return {part: tuple(strings) for part, strings in parts.items()}
