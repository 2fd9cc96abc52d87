"""What the demo asks baton-tiny: recalling a code from a long text, and a sum. The same on every run."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_KEYS = """
amber|birch|cobalt|dahlia|ember|falcon|garnet|harbor|indigo|jasmine|kestrel|lagoon|magnet|nutmeg|onyx|pebble|quartz
|raven|saffron|tulip|umber|velvet|walnut|zephyr|blue door|old bridge|quiet garden|silver lamp|locker 12|gate 7
""".replace("\n", "").split("|")
_PEOPLE = ("baker", "teacher", "sailor", "farmer", "painter", "gardener", "captain", "singer", "shepherd", "librarian")
_PLACES = ("market", "harbor", "station", "library", "river", "village", "mill", "museum", "lighthouse", "castle")
_THINGS = ("a letter", "an old map", "a warm coat", "a small lamp", "a silver coin", "a cup of tea", "a red scarf")
_TIMES = ("in the morning", "after lunch", "in the evening", "on Monday", "yesterday", "after the storm")
_SCENES = (
    "The {person} walked to the {place} {time}.",
    "The {person} carried {thing} to the {place}.",
    "There was {thing} in front of the {place}.",
    "Nobody saw the {person} near the {place} {time}.",
    "About {number} people came to the {place} {time}.",
)
SCENES = 106  # with one fact per key: about 1,800 tokens


@dataclass(frozen=True)
class Question:
    """A prompt for the model and the one right answer. `about` is how the demo names it."""

    about: str
    prompt: str
    answer: str

    @property
    def long(self) -> bool:
        """Whether the prompt is more than the question."""
        return self.prompt != self.about


def recall_questions(count: int, seed: int = 4) -> list[Question]:
    """Questions about different codes in one text of about 1,800 tokens."""
    rng = Random(seed)
    codes = {key: f"{rng.randint(1000, 9999)}" for key in _KEYS}
    sentences = [f"The code for {_named(key)} is {code}." for key, code in codes.items()]
    sentences += [_scene(rng) for _ in range(SCENES)]
    rng.shuffle(sentences)
    text = " ".join(sentences)
    return [
        Question(
            about=f"What is the code for {_named(key)}?",
            prompt=f"{text}\n\nWhat is the code for {_named(key)}?",
            answer=f"The code for {_named(key)} is {codes[key]}.",
        )
        for key in rng.sample(_KEYS, count)
    ]


def sum_question(first: int, second: int) -> Question:
    asked = f"What is {first} + {second}?"
    return Question(asked, asked, f"{first} + {second} = {first + second}.")


def _named(key: str) -> str:
    """A key of several words takes an article, a numbered one does not."""
    return f"the {key}" if " " in key and not key[-1].isdigit() else key


def _scene(rng: Random) -> str:
    return rng.choice(_SCENES).format(
        person=rng.choice(_PEOPLE),
        place=rng.choice(_PLACES),
        thing=rng.choice(_THINGS),
        time=rng.choice(_TIMES),
        number=rng.randint(2, 400),
    )
