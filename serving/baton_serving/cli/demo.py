"""`baton demo`: run the quickstart, ask it a few questions through the OpenAI client, show where the time went."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import openai
from rich.console import Console

from baton_serving.cli.demo_questions import Question, recall_questions, sum_question
from baton_serving.cli.timeline import stages, timeline_lines
from baton_serving.errors import ConfigError, InternalError
from baton_serving.local import LocalService
from baton_serving.runtime.messages import Timings

MANIFEST = Path(__file__).parents[3] / "examples" / "quickstart.yaml"
MAX_TOKENS = 48
WITH_TIMINGS = {"baton_timings": True}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, default=MANIFEST, help="manifest to run")
    parser.add_argument("--undivided", action="store_true", help="one worker that does prefill and decode itself")
    parser.add_argument("--verbose", action="store_true", help="show the log lines of all processes")


def run(args: Namespace) -> int:
    """Exit status 1 when an answer is wrong or the service does not come up."""
    if not args.file.exists():
        raise ConfigError(f"there is no {args.file}; run the demo from a checkout, or name a manifest with --file")
    console = Console(highlight=False, soft_wrap=True)
    try:
        return 0 if _demo(args, console) else 1
    except InternalError as error:
        console.print(error.message, markup=False)
        return 1


def _demo(args: Namespace, console: Console) -> bool:
    def on_line(name: str, line: str) -> None:
        if args.verbose:
            console.print(f"{name}: {line}", markup=False)

    service = LocalService(args.file, undivided=args.undivided, restart=False, on_line=on_line)
    names = ", ".join(spec.name for spec in service.plan.processes)
    began = time.monotonic()
    with console.status(f"starting {names}"):
        service.start()
    try:
        console.print(
            f"[bold]{service.plan.model}[/] at {service.url}, up in {time.monotonic() - began:.1f} s: {names}"
        )
        asker = _Asker(service.url, service.plan.model, console)
        first, second = recall_questions(2)
        right = [
            asker.ask(first, stream=True, timeline=True),
            asker.ask(second, stream=False),
            asker.ask(sum_question(47, 38), stream=True),
            asker.ask(sum_question(23, 58), stream=False),
        ]
    finally:
        with console.status("stopping"):
            service.stop()
    console.print(f"{sum(right)} of {len(right)} answers right")
    return all(right)


@dataclass(frozen=True)
class _Answer:
    text: str
    prompt_tokens: int
    timings: Timings | None


class _Asker:
    """Asks through the OpenAI client and prints each answer as it arrives."""

    def __init__(self, url: str, model: str, console: Console) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self._model = model
        self._console = console

    def ask(self, question: Question, *, stream: bool, timeline: bool = False) -> bool:
        """Whether the answer is right."""
        length = f" [dim](after a text of {len(question.prompt):,} characters)[/]" if question.long else ""
        self._console.print(f"\n[bold]Question[/] {question.about}{length}")
        self._console.print("[bold]Answer[/]   ", end="")
        sent = time.time()
        answer = self._streamed(question) if stream else self._whole(question)
        ended = time.time()
        right = answer.text == question.answer
        verdict = "[green]right[/]" if right else f"[red]wrong[/], it is: {question.answer}"
        how = "streamed" if stream else "in one piece"
        self._console.print(f"  {verdict} [dim]({how}, {answer.prompt_tokens:,} prompt tokens)[/]")
        if timeline and answer.timings is not None:
            self._console.print()
            for line in timeline_lines(stages(sent, ended, answer.timings)):
                self._console.print(line, markup=False)
        return right

    def _streamed(self, question: Question) -> _Answer:
        text, prompt_tokens, timings = "", 0, None
        with self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question.prompt}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=WITH_TIMINGS,
        ) as chunks:
            for chunk in chunks:
                prompt_tokens = chunk.usage.prompt_tokens if chunk.usage else prompt_tokens
                for choice in chunk.choices:
                    piece = choice.delta.content or ""
                    text += piece
                    self._console.print(piece, end="", markup=False)
                    timings = _timings(choice.model_extra) or timings
        return _Answer(text, prompt_tokens, timings)

    def _whole(self, question: Question) -> _Answer:
        answer = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question.prompt}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            extra_body=WITH_TIMINGS,
        )
        choice = answer.choices[0]
        text = choice.message.content or ""
        self._console.print(text, end="", markup=False)
        return _Answer(text, answer.usage.prompt_tokens if answer.usage else 0, _timings(choice.model_extra))


def _timings(extra: Mapping[str, object] | None) -> Timings | None:
    """What a choice carries under `baton` on request."""
    found = (extra or {}).get("baton")
    return msgspec.convert(found["timings"], Timings) if isinstance(found, dict) else None
