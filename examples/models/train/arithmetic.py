"""Addition and subtraction of numbers up to 99, negative results included."""

from dataclasses import dataclass
from random import Random

from train.words import is_held_out, listed, soup

_SUMS = (
    "What is {a} {s} {b}?",
    "What is {a} {s} {b}?",
    "what is {a} {s} {b}",
    "What's {a} {s} {b}?",
    "{a} {s} {b}",
    "{a}{s}{b}",
    "{a}{s}{b}=",
    "{a} {s} {b} =",
    "{a} {s} {b} = ?",
    "{a} {s} {b}?",
    "What is {a}{s}{b}?",
    "Calculate {a} {s} {b}.",
    "calculate {a}{s}{b}",
    "Compute {a} {s} {b}.",
    "How much is {a} {s} {b}?",
    "Please calculate {a} {s} {b}.",
    "Can you tell me what {a} {s} {b} is?",
    "And {a} {s} {b}?",
    "Tell me {a} {s} {b}.",
    "Solve {a} {s} {b}.",
    "What do you get for {a} {s} {b}?",
    "What does {a} {s} {b} equal?",
    "What is the result of {a} {s} {b}?",
)
_ADDITIONS = (
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "What do you get when you add {a} and {b}?",
    "Please add {a} and {b}.",
)
_SUBTRACTIONS = (
    "Subtract {b} from {a}.",
    "Take {b} away from {a}.",
    "What is the difference of {a} and {b}?",
    "What is left when you take {b} from {a}?",
)

_SMALL = listed("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
""")
_TENS = listed("twenty thirty forty fifty sixty seventy eighty ninety")


@dataclass(frozen=True)
class Sum:
    """`a + b` or `a - b`."""

    a: int
    b: int
    sign: str

    @property
    def text(self) -> str:
        return f"{self.a} {self.sign} {self.b}"

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b


def draw_sum(rng: Random, *, held_out: bool = False) -> Sum:
    """A sum of numbers from 0 to 99, from the training share; with `held_out`, one of two-digit numbers from the other.

    Sums of one-digit numbers are few and drawn often, so training sees them all.
    """
    while True:
        pick = 1.0 if held_out else rng.random()
        if pick < 0.1:
            return Sum(rng.randint(0, 9), rng.randint(0, 9), rng.choice("+-"))
        low = 0 if pick < 0.25 else 10
        drawn = Sum(rng.randint(low, 99), rng.randint(low, 99), rng.choice("+-"))
        if is_held_out(drawn.text) == held_out:
            return drawn


def ask(rng: Random, drawn: Sum) -> str:
    """The sum as a question, in signs or in words, now and then amid words thrown together."""
    if rng.random() < 0.12:
        return rng.choice(_ADDITIONS if drawn.sign == "+" else _SUBTRACTIONS).format(a=drawn.a, b=drawn.b)
    spoken = "plus" if drawn.sign == "+" else "minus"
    if rng.random() < 0.06:
        return ask_about(rng, in_words(drawn.a), spoken, in_words(drawn.b))
    return ask_about(rng, str(drawn.a), spoken if rng.random() < 0.2 else drawn.sign, str(drawn.b))


def ask_about(rng: Random, a: str, sign: str, b: str) -> str:
    """A question for the value of any two operands with a sign, or a word for one, between them."""
    # Without spaces around it, a sign in words would glue to the operands.
    templates = [template for template in _SUMS if "{a}{s}" not in template] if len(sign) > 1 else _SUMS
    asked = rng.choice(templates).format(a=a, s=sign, b=b)
    if rng.random() < 0.15:
        joint = rng.choice((" ", ": ", ", "))
        asked = f"{soup(rng)}{joint}{a} {sign} {b}" if rng.random() < 0.5 else f"{soup(rng)}{joint}{asked}"
    if rng.random() < 0.08:
        asked = f"{asked.rstrip('?.=')} {soup(rng)}{rng.choice('?.!')}"
    return asked[0].upper() + asked[1:] if rng.random() < 0.3 else asked


def in_words(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < len(_SMALL):
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")


def answer(drawn: Sum) -> str:
    """The reply, which repeats the sum: "17 + 25 = 42."."""
    return f"{drawn.text} = {drawn.result}."
