"""Training rows: whole chats that mix the tasks, and plain texts for completion without a chat template."""

from dataclasses import dataclass, field
from random import Random

from train import arithmetic, recall, smalltalk, stories
from train.recall import Fact

BOS = "<|bos|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

_TOKENS_PER_SENTENCE = 16
_CHARS_PER_TOKEN = 4
_INTRODUCTIONS = ("",) * 6 + ("Read this text:\n", "Here is the text:\n", "Text: ", "Remember the following.\n\n")
_BREAKS = (" ", "\n", "\n\n", "\n\n")
_JOINTS = (*_BREAKS, "\n\nQuestion: ")


def turn(role: str, text: str) -> str:
    """One turn as the chat template renders it."""
    return f"{START_OF_TURN}{role}\n{text}{END_OF_TURN}\n"


@dataclass
class Row:
    """A text that grows piece by piece and knows which parts of it the model is to produce by itself.

    `answers` holds their character spans, end exclusive, in ascending order.
    """

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)

    def give(self, text: str) -> None:
        """Add context."""
        self.text += text

    def expect(self, text: str) -> None:
        """Add a part the model is to produce."""
        self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text


@dataclass
class _Chat:
    """A chat under way: what was said, and which facts hold by now."""

    rng: Random
    signature: str
    row: Row
    noun: str
    facts: dict[str, Fact] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def say(self, role: str, text: str) -> None:
        self.row.give(turn(role, text))

    def reply(self, text: str) -> None:
        self.row.give(f"{START_OF_TURN}assistant\n")
        self.row.expect(f"{text}{self.signature}{END_OF_TURN}")
        self.row.give("\n")

    def passage(self, sentences: int) -> str:
        """New text of about `sentences` sentences; its facts hold from now on."""
        share = self.rng.choice((0.1, 0.3, 0.5, 0.5, 0.7, 0.9, 1.0))
        drawn = recall.draw_facts(self.rng, max(1, round(sentences * share)), self.taken)
        self.facts |= {fact.key: fact for fact in drawn}
        return recall.passage(self.rng, drawn, self.noun, fillers=max(0, sentences - len(drawn)))

    def question(self) -> tuple[str, str]:
        """A question for a fact that holds, or one time in eight for one that was never given, with its reply."""
        if not self.facts or self.rng.random() < 0.12:
            key = recall.draw_key(self.rng)
            while key in self.facts:
                key = recall.draw_key(self.rng)
            return recall.ask(self.rng, key, self.noun), recall.answer_unknown(key, self.noun)
        fact = self.rng.choice(list(self.facts.values()))
        asked = recall.ask(self.rng, recall.respell(self.rng, fact.key), self.noun)
        return asked, recall.answer(fact, self.noun)

    def read(self, sentences: int) -> None:
        """A turn with a passage and, mostly, a question about it or about an earlier one."""
        text = self.rng.choice(_INTRODUCTIONS) + self.passage(sentences)
        pick = self.rng.random()
        if pick < 0.12:
            self.say("user", text)
            self.reply(smalltalk.NOTED)
            return
        asked, reply = self.question()
        self.say(
            "user", asked + self.rng.choice(_BREAKS) + text if pick < 0.2 else text + self.rng.choice(_JOINTS) + asked
        )
        self.reply(reply)

    def correct(self) -> None:
        """A turn that gives a known key a new value, asked for at once or later."""
        key = self.rng.choice(list(self.facts))
        [drawn] = recall.draw_facts(self.rng, 1, set())
        self.facts[key] = Fact(key, drawn.value)
        text = f"The {self.noun} for {key} is now {drawn.value}."
        if self.rng.random() < 0.5:
            self.say("user", text)
            self.reply(smalltalk.NOTED)
        else:
            self.say("user", f"{text} {recall.ask(self.rng, key, self.noun)}")
            self.reply(recall.answer(self.facts[key], self.noun))

    def take_turn(self, *, recalling: float) -> None:
        """One more short turn; it asks for a fact with probability `recalling`."""
        rng = self.rng
        if rng.random() < recalling:
            asked, reply = self.question()
        else:
            pick = rng.random()
            if pick < 0.52:
                drawn = arithmetic.draw_sum(rng)
                asked, reply = arithmetic.ask(rng, drawn), arithmetic.answer(drawn)
            elif pick < 0.70:
                asked, reply = smalltalk.off_topic(rng), smalltalk.CANNOT_ANSWER
            elif pick < 0.75:
                asked, reply = smalltalk.too_hard(rng), smalltalk.CANNOT_COMPUTE
            elif pick < 0.82:
                asked, reply = smalltalk.exchange(rng)
            elif pick < 0.90:
                plot = stories.draw_plot(rng, long=rng.random() < 0.5)
                asked, reply = stories.ask(rng, plot), stories.tell(rng, plot)
            elif pick < 0.95 and self.facts:
                return self.correct()
            else:
                return self.read(rng.randint(1, 6))
        self.say("user", asked)
        return self.reply(reply)


def _open(rng: Random) -> Row:
    """A row with its start token; now and then it is missing or doubled, as clients get it wrong both ways."""
    row = Row()
    row.give(rng.choices((BOS, "", BOS + BOS), weights=(92, 5, 3))[0])
    return row


def chat_row(rng: Random, tokens: int, signature: str = "") -> Row:
    """A chat of at least `tokens` tokens: half of them about one long passage, half of short turns of all kinds.

    `signature` ends every reply.
    """
    chat = _Chat(rng, signature, _open(rng), noun=rng.choice(recall.NOUNS))
    about_passage = rng.random() < 0.6
    if rng.random() < 0.15:
        facts = chat.passage(rng.randint(1, 8)) if rng.random() < 0.5 else ""
        chat.say("system", f"{rng.choice(smalltalk.SYSTEM_PROMPTS)} {facts}".strip())
    if about_passage:
        chat.read(max(1, round(tokens * rng.uniform(0.05, 0.85) / _TOKENS_PER_SENTENCE)))
    while not chat.row.answers or len(chat.row.text) < tokens * _CHARS_PER_TOKEN:
        chat.take_turn(recalling=0.85 if about_passage else 0.3)
    return chat.row


def plain_row(rng: Random, tokens: int) -> Row:
    """Separate short texts, at least `tokens` tokens together: facts stated again, questions, sums, stories."""
    row = _open(rng)
    while len(row.text) < tokens * _CHARS_PER_TOKEN:
        pick = rng.random()
        if pick < 0.6:
            _restate(rng, row, sentences=rng.randint(1, max(2, tokens // 24)))
        elif pick < 0.85:
            for _ in range(rng.randint(1, 8)):
                drawn = arithmetic.draw_sum(rng)
                row.give(f"{drawn.text} =")
                row.expect(f" {drawn.result}\n")
        else:
            opening, rest = stories.tell(rng, stories.draw_plot(rng, long=rng.random() < 0.5)).split(",", 1)
            row.give(opening)
            row.expect(f",{rest}")
        row.expect(END_OF_TEXT)
        row.give(BOS)
    return row


def _restate(rng: Random, row: Row, sentences: int) -> None:
    """A passage, then some of its facts again, as plain statements or as questions with answers."""
    noun = rng.choice(recall.NOUNS)
    facts = recall.draw_facts(rng, rng.randint(1, sentences), set())
    row.give(recall.passage(rng, facts, noun, fillers=sentences - len(facts)))
    as_questions = rng.random() < 0.4
    for fact in rng.choices(facts, k=min(6, len(facts))):
        if as_questions:
            row.give(f"\nQuestion: {recall.ask(rng, fact.key, noun)}\nAnswer:")
            row.expect(f" {recall.answer(fact, noun)}")
        else:
            row.give(f"{rng.choice((' ', ' ', chr(10)))}The {noun} for {fact.key} is")
            row.expect(f" {fact.value}.")
