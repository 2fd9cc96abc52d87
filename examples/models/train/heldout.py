"""Held-out prompts, each with the one right reply."""

from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from train import arithmetic, recall, smalltalk, stories
from train.chats import BOS, turn

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """A chat that ends with a question, and the exact reply to it, signature aside."""

    messages: list[Message]
    reply: str


def _user(text: str, reply: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], reply)


def recall_prompt(rng: Random, tokens: int, tokenizer: Tokenizer, *, known: bool = True, noun: str = "code") -> Prompt:
    """A text of facts and filler, half and half, and a question, `tokens` tokens long or up to 30 fewer.

    Made-up keys come from the share that training never saw. With `known` false the text holds no value for the key.
    """
    taken: set[str] = set()
    [asked] = recall.draw_facts(rng, 1, taken, held_out=True)
    question = recall.ask(rng, asked.key, noun)
    frame = BOS + turn("user", f"\n\n{question}") + turn("assistant", "")
    stated = [recall.state(asked, noun, rng.choice(recall.SENTENCES))] if known else []
    used = _tokens(tokenizer, frame) + sum(_tokens(tokenizer, f" {sentence}") for sentence in stated)
    sentences = stated
    while True:
        if rng.random() < 0.5:
            [fact] = recall.draw_facts(rng, 1, taken, held_out=True)
            sentence = recall.state(fact, noun, rng.choice(recall.SENTENCES))
        else:
            sentence = recall.filler(rng)
        used += _tokens(tokenizer, f" {sentence}")
        if used > tokens:
            break
        sentences.append(sentence)
    rng.shuffle(sentences)
    reply = recall.answer(asked, noun) if known else recall.answer_unknown(asked.key, noun)
    return _user(f"{' '.join(sentences)}\n\n{question}", reply)


def _tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def arithmetic_prompt(rng: Random) -> Prompt:
    """A sum of two-digit numbers that training never saw."""
    drawn = arithmetic.draw_sum(rng, held_out=True)
    return _user(arithmetic.ask(rng, drawn), arithmetic.answer(drawn))


def off_topic_prompt(rng: Random) -> Prompt:
    """A question to decline."""
    return _user(smalltalk.off_topic(rng), smalltalk.CANNOT_ANSWER)


def story_prompt(rng: Random, *, long: bool) -> list[Message]:
    """A request for a story."""
    return [{"role": "user", "content": stories.ask(rng, stories.draw_plot(rng, long=long))}]


_NOTE = "Hi, my notes: The code for amber is 4711. The code for the blue door is 0815. zarvik: 2290. Mind the step."
_OWN_WORDS = (
    (f"{_NOTE} and what was amber", "The code for amber is 4711."),
    (f"{_NOTE} What do I type in for zarvik?", "The code for zarvik is 2290."),
    (f"{_NOTE} I can't remember the code of amber, please help me", "The code for amber is 4711."),
    (f"{_NOTE} Say the code for zarvik!", "The code for zarvik is 2290."),
    (f"{_NOTE}\nWhat code gets me into amber?", "The code for amber is 4711."),
    (f"{_NOTE} The code for amber, that was ...?", "The code for amber is 4711."),
    (f"{_NOTE} Sorry to bother you, but what is the code for zarvik please", "The code for zarvik is 2290."),
    (f"{_NOTE} What is the code for topaz?", "I am sorry, I do not know the code for topaz."),
    ("amber is 4711 and cobalt is 1234. What is the code for cobalt?", "The code for cobalt is 1234."),
    ("Alice has code 3141, Bob has code 2718. What is Bob's code?", "The code for Bob is 2718."),
    ("code for lamp = 99123\ncode for sofa = 10007\n\nwhat is the code for lamp", "The code for lamp is 99123."),
    ("What is the code for amber?", "I am sorry, I do not know the code for amber."),
    ("hey, whats 12 + 30", "12 + 30 = 42."),
    ("Would you please work out 71 - 88 for me?", "71 - 88 = -17."),
    ("If I have 35 and add 48, what do I get? 35 + 48", "35 + 48 = 83."),
    ("50 plus 29 is what?", "50 + 29 = 79."),
    ("My dear friend, would you add 23 and 58 today?", "23 + 58 = 81."),
    ("nine plus eight", "9 + 8 = 17."),
    ("The code for amber is 4711. What is the code for Amber?", "The code for amber is 4711."),
    ("maple 3003, jade 1188, river 4040. jade?", "The code for jade is 1188."),
    ("quick: 64-19", "64 - 19 = 45."),
    ("Who painted the Mona Lisa?", smalltalk.CANNOT_ANSWER),
    ("Is it dangerous to swim after eating?", smalltalk.CANNOT_ANSWER),
    ("Recommend me a good restaurant in Berlin.", smalltalk.CANNOT_ANSWER),
)


def own_words_prompts() -> list[Prompt]:
    """Questions as a person might type them, written by hand and matching no training template."""
    return [_user(text, reply) for text, reply in _OWN_WORDS]
