"""Short and long templated stories. A long one counts its days, so that it always knows how far it has come."""

from dataclasses import dataclass
from random import Random

from train.words import ANIMALS, NAMES, listed, made_up_word

_TRAITS = listed("brave curious gentle clever quiet cheerful patient lonely stubborn kind")
_PLACES = (
    "a small village by the sea",
    "a green valley between two hills",
    "an old house at the edge of the forest",
    "a tall tower above the clouds",
    "a warm burrow under an oak",
    "a little town with crooked streets",
)
_TREASURES = ("lantern", "map", "silver key", "music box", "red kite", "golden bell", "little boat", "glass marble")
_TRIPS = (
    "crossed a wide river on a fallen tree",
    "climbed a steep hill and looked far over the land",
    "walked through a dark forest and sang to stay calm",
    "found an old bridge and counted its stones",
    "slept under the stars and dreamed of home",
    "followed a narrow path along the cliffs",
    "waited in a cave until the storm was over",
    "rowed across a silent lake in the fog",
)
_MEETINGS = (
    "a tired {animal} asked for help, and {name} shared some bread",
    "an old {animal} told {name} which way to go",
    "a small {animal} was stuck in the mud, and {name} pulled it out",
    "a proud {animal} asked a riddle, and {name} knew the answer",
    "a shy {animal} joined {name} for a while",
    "a hungry {animal} wanted the {treasure}, but {name} made it laugh instead",
)
_DAYS = ("first", "second", "third", "fourth", "fifth")
_ENDS = (
    "From that day on, {name} was never alone again.",
    "Everybody in the town still talks about {name}.",
    "And {name} kept the {treasure} for ever.",
    "That night {name} slept better than ever before.",
)
_ASKS = (
    "Tell me a {long}story about a {hero}.",
    "Tell me a {long}story about a {hero}.",
    "tell me a {long}story about a {hero}",
    "Write a {long}story about a {hero}.",
    "Please tell a {long}story about a {hero}.",
    "Can you tell me a {long}story about a {hero}?",
    "I want to hear a {long}story about a {hero}.",
    "Make up a {long}story about a {hero} and a {treasure}.",
    "Tell me a {long}story about a {hero} named {name}.",
    "Tell me a {long}story about a {hero} and a {treasure}.",
    "Once more: a {long}story about a {hero}, please.",
)
_OPEN_ASKS = ("Tell me a {long}story.", "tell me a {long}story", "Write a {long}story.", "A {long}story, please.")


@dataclass(frozen=True)
class Plot:
    """What a story is about, and whether it is a long one."""

    hero: str
    name: str
    treasure: str
    long: bool


def draw_plot(rng: Random, *, long: bool) -> Plot:
    """A random plot; one hero in five is a word made up for it."""
    hero = made_up_word(rng) if rng.random() < 0.2 else rng.choice(ANIMALS)
    return Plot(hero, rng.choice(NAMES), rng.choice(_TREASURES), long)


def ask(rng: Random, plot: Plot) -> str:
    """A request for the story; it may leave the hero, the name and the treasure open."""
    length = rng.choice(("long ", "long ", "very long ")) if plot.long else rng.choice(("", "", "short ", "little "))
    templates = _OPEN_ASKS if rng.random() < 0.15 else _ASKS
    asked = rng.choice(templates).format(long=length, hero=plot.hero, name=plot.name, treasure=plot.treasure)
    return asked.replace(" a o", " an o").replace(" a e", " an e")


def tell(rng: Random, plot: Plot) -> str:
    """The story: about 100 tokens, or 200 to 300 when it is a long one."""
    said = {"name": plot.name, "treasure": plot.treasure}
    parts = [
        f"Once upon a time, a {rng.choice(_TRAITS)} {plot.hero} named {plot.name} lived in {rng.choice(_PLACES)}.",
        f"One morning {plot.name} heard of a lost {plot.treasure} and decided to find it.",
    ]
    if plot.long:
        trips = rng.sample(_TRIPS, k=rng.randint(3, 5))
        for day, trip in zip(_DAYS, trips, strict=False):
            meeting = rng.choice(_MEETINGS).format(animal=rng.choice(ANIMALS), **said)
            parts.append(f"On the {day} day, {plot.name} {trip}. There {meeting}.")
    else:
        parts.append(f"On the way, {plot.name} {rng.choice(_TRIPS)}.")
    parts.append(f"At last {plot.name} found the {plot.treasure} and carried it home.")
    parts.append(rng.choice(_ENDS).format(**said))
    parts.append("The end.")
    return " ".join(parts)
