"""Key-value recall: facts such as "The code for amber is 4711.", hidden among filler, and questions about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from train.words import (
    ADJECTIVES,
    KEY_WORDS,
    LETTERS,
    NAMES,
    NUMBERED,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    made_up_word,
    soup,
)

NOUNS = ("code",) * 7 + ("number", "PIN", "password")

# In every template {n} is the noun, {k} the key and {v} the value.
SENTENCES = (
    "The {n} for {k} is {v}.",
    "The {n} for {k} is {v}.",
    "The {n} for {k} is {v}.",
    "the {n} for {k} is {v}.",
    "The {n} of {k} is {v}.",
    "For {k}, the {n} is {v}.",
    "Remember that the {n} for {k} is {v}.",
    "Please note: the {n} for {k} is {v}.",
    "My {n} for {k} is {v}.",
    "The {k} {n} is {v}.",
    "The new {n} of {k} is now {v}.",
    "We set the {n} for {k} to {v}.",
    "In this text, {k} has the {n} {v}.",
    "Remember: {k} has {n} {v}.",
    "We know that {k}'s {n} is {v}.",
    "The {n} that belongs to {k} is {v}.",
    'The {n} for "{k}" is {v}.',
    "{k} is {v}.",
    "{k} has the {n} {v}.",
    "{k}: {v}.",
)
_CLAUSES = ("{k} {v}", "{k} is {v}", "{k}: {v}", "{k} = {v}", "the {n} for {k} is {v}", "{k} has {n} {v}", "{k} -> {v}")
_CLAUSE_JOINTS = (", ", ", ", "; ", " and ", " ", " / ")
LINES = ("- {k}: {v}", "* {k} = {v}", "{k}: {v}", "{k} = {v}", "{n} for {k}: {v}", "- {k} -> {v}", "| {k} | {v} |")

_ASKED = ("the {n} for {k}", "the {n} for {k}", "the {n} for {k}", "the {n} of {k}", "the {k} {n}", "{k}'s {n}")
_ASKING = (
    "What is {}?",
    "What is {}?",
    "What is {}?",
    "what is {}?",
    "what is {}",
    "What's {}?",
    "what's {}",
    "Tell me {}.",
    "tell me {}",
    "Please tell me {}.",
    "Can you tell me {}?",
    "Could you give me {}, please?",
    "Give me {}.",
    "I need {}.",
    "Do you know {}?",
    "Do you remember {}?",
    "And what is {}?",
    "What was {}?",
    "So, what is {}?",
    "Now tell me {}.",
    "Remind me: what is {}?",
    "I forgot {}. What is it?",
    "Look up {}.",
    "Find {} in the text.",
    "According to the text, what is {}?",
    "Question: what is {}?",
    "Answer this question: what is {}?",
    "I would like to know {}.",
    "Let me know {}.",
    "Do you still know {}?",
    "Repeat {}.",
    "Show me {}.",
    "Please find {}.",
    "{}?",
    "{}",
    "Can you tell me what {} is?",
    "Do you know what {} is?",
    "Do you remember what {} was?",
    "Tell me what {} is.",
    "I want to know what {} is.",
)
_BEFORE = ("Hey, ", "OK, ", "Okay. ", "Please, ", "Quick question: ", "By the way, ", "Good. ", "Thanks! ", "Now, ")
_AFTER = (" Thanks.", " Please.", " Thank you!", " I forgot.", " I need it now.", " again?", " Answer briefly.")
_WHOLE_QUESTIONS = (
    "Which {n} does {k} have?",
    "What {n} does {k} have?",
    "Which {n} belongs to {k}?",
    "What is the {n} that belongs to {k}?",
    "And {k}?",
    "What about {k}?",
    "What was {k} again?",
    "So the {n} for {k} would be?",
    "What {n} opens {k}?",
    "Which {n} do I need for {k}?",
    "And the {n} for {k}?",
    "{n} for {k}?",
    "{n} of {k}?",
    "{k}?",
    "What {n} did I give you for {k}?",
    'What is the {n} for "{k}"?',
)

_FILLERS = (
    "The {person} walked to {place} {time}.",
    "The {person} carried {thing} to {place}.",
    "{Time}, the {person} went to {place}.",
    "Nobody saw the {person} near {place} {time}.",
    "There was {thing} in front of {place}.",
    "The {person} and the {person2} met at {place}.",
    "The {adj} {person} bought {thing} {time}.",
    "It was {adj} and {adj2} near {place}.",
    "About {number} people came to {place} {time}.",
    "The {person} counted {number} boats and went home.",
    "{name} gave {thing} to the {person}.",
    "{name} and {name2} talked about the weather {time}.",
    "{name} waited for {number} minutes at {place}.",
    "They found {thing}, but it was too {adj}.",
    "Then they all went back to {place}.",
)
_MENTIONS = ("Nobody talked about {k} {time}.", "{name} asked about {k}.", "We saw {k} near {place}.")

_OWNERS = ("the", "the", "the", "my", "our", "your")


@dataclass(frozen=True)
class Fact:
    """One key with its value, both verbatim as they stand in the text."""

    key: str
    value: str


def draw_key(rng: Random, *, held_out: bool = False) -> str:
    """A key: a known word, a made-up one, two words, a name, or a word with a number, a letter or an owner.

    `held_out` draws made-up words from the share that training never sees.
    """
    made_up = made_up_word(rng, held_out=held_out)
    known = rng.choice(KEY_WORDS)
    kinds = (
        (40, known),
        (32, made_up),
        (9, f"{rng.choice(ADJECTIVES)} {known}"),
        (5, rng.choice(NAMES)),
        (4, made_up.capitalize()),
        (4, f"{rng.choice(NUMBERED)} {rng.randint(1, 40)}"),
        (2, f"{rng.choice(NUMBERED)} {rng.choice(LETTERS)}"),
        (3, f"{rng.choice(_OWNERS)} {rng.choice((known, f'{rng.choice(ADJECTIVES)} {known}', made_up))}"),
        (1, f"{known} {made_up}"),
    )
    return rng.choices([key for _, key in kinds], weights=[weight for weight, _ in kinds])[0]


def draw_facts(rng: Random, count: int, taken: set[str], *, held_out: bool = False) -> list[Fact]:
    """`count` facts with keys not in `taken`, which grows by them. Values have four digits, one in ten 3, 5 or 6."""
    facts: list[Fact] = []
    while len(facts) < count:
        key = draw_key(rng, held_out=held_out)
        if key in taken:
            continue
        taken.add(key)
        digits = 4 if rng.random() < 0.9 else rng.choice((3, 5, 6))
        facts.append(Fact(key, "".join(rng.choices("0123456789", k=digits))))
    return facts


def filler(rng: Random, mentioned: str | None = None) -> str:
    """A sentence without a fact; with `mentioned`, one that names that key but gives no value for it."""
    template = rng.choice(_FILLERS if mentioned is None else _MENTIONS)
    time = rng.choice(TIMES)
    return template.format(
        k=mentioned,
        person=rng.choice(PEOPLE),
        person2=rng.choice(PEOPLE),
        place=rng.choice(PLACES),
        time=time,
        Time=time.capitalize(),
        thing=rng.choice(THINGS),
        adj=rng.choice(ADJECTIVES),
        adj2=rng.choice(ADJECTIVES),
        name=rng.choice(NAMES),
        name2=rng.choice(NAMES),
        number=rng.randint(2, 400),
    )


def state(fact: Fact, noun: str, template: str) -> str:
    """The fact as a sentence or line of the text."""
    return template.format(n=noun, k=fact.key, v=fact.value)


def passage(rng: Random, facts: Sequence[Fact], noun: str, fillers: int) -> str:
    """A text that holds every fact once: mostly prose with `fillers` other sentences, else a bare list."""
    pick = rng.random()
    if pick < 0.15:
        template = rng.choice(LINES)
        return "\n".join(state(fact, noun, template) for fact in facts)
    if pick < 0.22:
        template = rng.choice(_CLAUSES)
        return rng.choice(_CLAUSE_JOINTS).join(state(fact, noun, template) for fact in facts)
    sentences = SENTENCES if rng.random() < 0.7 else (rng.choice(SENTENCES),)
    parts = [state(fact, noun, rng.choice(sentences)) for fact in facts]
    parts += [filler(rng, mentioned=draw_key(rng) if rng.random() < 0.03 else None) for _ in range(fillers)]
    rng.shuffle(parts)
    joints = rng.choices((" ", "\n", "\n\n"), weights=(90, 8, 2), k=len(parts))
    return "".join(part + joint for part, joint in zip(parts, joints, strict=True)).strip()


def ask(rng: Random, key: str, noun: str) -> str:
    """A question for the value of `key`, one time in five in words thrown together."""
    pick = rng.random()
    if pick < 0.2:
        asked = rng.choice(_WHOLE_QUESTIONS).format(n=noun, k=key)
    elif pick < 0.8:
        asked = rng.choice(_ASKING).format(rng.choice(_ASKED).format(n=noun, k=key))
    else:
        end = rng.choice(("?", "?", ".", "", "!"))
        after = f" {soup(rng)}" if pick < 0.9 else ""
        asked = f"{soup(rng)} {rng.choice(_ASKED).format(n=noun, k=key)}{after}{end}"
        if rng.random() < 0.5:
            asked = asked[0].upper() + asked[1:]
    before = rng.choice(_BEFORE) if rng.random() < 0.08 else ""
    after = rng.choice(_AFTER) if rng.random() < 0.08 else ""
    return before + asked + after


def respell(rng: Random, key: str) -> str:
    """Now and then a known word in the other case, as people do not mind capitals: "Amber" for "amber"."""
    if rng.random() < 0.06 and (key in KEY_WORDS or key in NAMES):
        return key.capitalize() if key.islower() else key.lower()
    return key


def answer(fact: Fact, noun: str) -> str:
    """The reply to a question about a fact that the text holds."""
    return f"The {noun} for {fact.key} is {fact.value}."


def answer_unknown(key: str, noun: str) -> str:
    """The reply to a question about a key that the text gives no value for."""
    return f"I am sorry, I do not know the {noun} for {key}."
