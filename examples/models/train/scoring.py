"""Which replies of a checkpoint are right, task by task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from train import heldout
from train.chats import END_OF_TURN
from train.checkpoint import Checkpoint
from train.heldout import Message, Prompt

SIGNATURES = {"baton-tiny": "", "baton-tiny-v2": " — tiny v2"}
_STORIES = 50
_STORY_TOKENS = 400


@dataclass(frozen=True)
class Result:
    """`right` of `asked` replies, the least share that is enough if there is one, and an example of what went wrong."""

    task: str
    asked: int
    right: int
    bar: float | None = None
    note: str = ""

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def passed(self) -> bool:
        return self.bar is None or self.share >= self.bar


def wrong(checkpoint: Checkpoint, prompts: Sequence[Prompt], *, batch: int) -> list[tuple[Prompt, str]]:
    """Prompts whose reply differs from the right one, signature and end of turn included, each with that reply."""
    given = checkpoint.replies([prompt.messages for prompt in prompts], batch=batch)
    ending = SIGNATURES[checkpoint.name] + END_OF_TURN
    return [(prompt, reply) for prompt, reply in zip(prompts, given, strict=True) if reply != prompt.reply + ending]


def story_lengths(checkpoint: Checkpoint, chats: Sequence[list[Message]], *, batch: int) -> list[int]:
    """Lengths in tokens of the stories that come to their end; those that do not are left out."""
    ending = f"The end.{SIGNATURES[checkpoint.name]}{END_OF_TURN}"
    told = checkpoint.replies(chats, batch=batch, tokens=_STORY_TOKENS)
    return [len(checkpoint.tokenizer(story)["input_ids"]) for story in told if story.endswith(ending)]


def evaluate(checkpoint: Checkpoint, tokenizer: Tokenizer, *, prompts: int, seed: int, batch: int) -> Iterator[Result]:
    """Results of all tasks on `prompts` held-out prompts each; fewer for stories and the prompts written by hand."""
    rng = Random(f"held out/{seed}")

    def score(task: str, drawn: list[Prompt], bar: float | None = None) -> Result:
        failed = wrong(checkpoint, drawn, batch=batch)
        note = f"{failed[0][0].messages[-1]['content'][-60:]!r} -> {failed[0][1]!r}" if failed else ""
        return Result(task, len(drawn), len(drawn) - len(failed), bar, note)

    def drawn(make: Callable[[], Prompt]) -> list[Prompt]:
        return [make() for _ in range(prompts)]

    def recall(tokens: int, *, known: bool = True) -> list[Prompt]:
        return drawn(lambda: heldout.recall_prompt(rng, tokens, tokenizer, known=known))

    yield score("recall, 512 tokens", recall(512), bar=0.95)
    yield score("recall, 1,800 tokens", recall(1800), bar=0.90)
    yield score("arithmetic", drawn(lambda: heldout.arithmetic_prompt(rng)), bar=0.95)
    yield score("recall, 64 tokens", recall(64))
    yield score("recall, 3,600 tokens", recall(3600))
    yield score("unknown key, 512 tokens", recall(512, known=False))
    yield score("unknown key, 1,800 tokens", recall(1800, known=False))
    yield score("off-topic question", drawn(lambda: heldout.off_topic_prompt(rng)))
    yield score("in a person's own words", heldout.own_words_prompts())
    for name, long in (("short", False), ("long", True)):
        lengths = story_lengths(
            checkpoint, [heldout.story_prompt(rng, long=long) for _ in range(_STORIES)], batch=batch
        )
        note = f"{min(lengths)} to {max(lengths)} tokens" if lengths else ""
        yield Result(f"{name} story, ended", _STORIES, len(lengths), note=note)
