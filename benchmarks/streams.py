"""Streams of every kind that a gateway passes on, read token by token, and compared with undisturbed ones."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 2e-4  # of log-probabilities: other batches and chunks alone move them by a few 1e-5
VOCABULARY = 1024  # of baton-tiny
KINDS = (
    "chat greedy",
    "chat n=4 seeded logprobs",
    "completion greedy logprobs",
    "generate seeded stop",
    "chat seeded stop",
    "completion n=4 penalties",
    "generate n=4 greedy logprobs",
)

_WORDS = ("amber", "bronze", "copper", "dune", "ember", "flint", "garnet", "hazel", "indigo", "jasper", "kelp", "lemon")

Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One distinct request: where it goes and what it says."""

    kind: str
    path: str
    body: Body


def asked(number: int, draw: random.Random) -> Asked:
    """A streamed request of the kind whose turn it is: 100 to some 1,200 prompt tokens, 24 to 64 tokens a choice.

    It asks for the times at which each choice passed its stages.
    """
    one = _asked(number, draw)
    return Asked(one.kind, one.path, {**one.body, "baton_timings": True})


def _asked(number: int, draw: random.Random) -> Asked:
    kind = KINDS[number % len(KINDS)]
    most = draw.randint(24, 64)
    if kind.startswith("generate"):
        return Asked(kind, "/generate", _generate(kind, most, draw))
    body: Body = {"stream": True, "max_tokens": most, "ignore_eos": True, "stream_options": {"include_usage": True}}
    body |= {"temperature": 0} if "greedy" in kind else _seeded("seed", draw)
    if "n=4" in kind:
        body["n"] = 4
    if "stop" in kind:
        body["stop"] = ["z", "ou", " the end"]
    if kind.startswith("chat"):
        words = " ".join(draw.choices(_WORDS, k=draw.randint(20, 200)))
        body["messages"] = [{"role": "user", "content": f"{number} {words}. Tell a story of these."}]
        if "logprobs" in kind:
            body |= {"logprobs": True, "top_logprobs": 2}
        return Asked(kind, "/v1/chat/completions", body)
    body["prompt"] = _tokens(draw)
    if "logprobs" in kind:
        body["logprobs"] = 2
    if "penalties" in kind:
        body |= {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.1}
    return Asked(kind, "/v1/completions", body)


def _generate(kind: str, most: int, draw: random.Random) -> Body:
    sampling: Body = {"max_new_tokens": most, "ignore_eos": True}
    sampling |= {"temperature": 0} if "greedy" in kind else _seeded("sampling_seed", draw)
    if "n=4" in kind:
        sampling["n"] = 4
    if "stop" in kind:
        sampling["stop"] = ["z", "ou", " the end"]
    body: Body = {"stream": True, "input_ids": _tokens(draw), "sampling_params": sampling}
    return body | {"return_logprob": True, "top_logprobs_num": 2} if "logprobs" in kind else body


def _seeded(name: str, draw: random.Random) -> Body:
    return {"temperature": round(draw.uniform(0.5, 1.0), 2), "top_p": 0.95, name: draw.randrange(1 << 31)}


def _tokens(draw: random.Random) -> list[int]:
    return [draw.randrange(4, VOCABULARY) for _ in range(draw.randint(100, 1200))]


@dataclass
class Choice:
    """One answer of a stream, its events put together."""

    roles: int = 0
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: Any = None
    finishes: list[Any] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)  # of the worker that ended it; unix seconds by stage


@dataclass
class Stream:
    """What a client got, but for ids and times. `complaints` are what no stream may have, whatever it says."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usages: list[Any] = field(default_factory=list)
    done: bool = False
    error: str = ""
    fingerprints: set[str] = field(default_factory=set)
    duplicated: int = 0  # tokens that came again
    missing: int = 0  # tokens that never came
    complaints: list[str] = field(default_factory=list)


def read(raw: bytes) -> Stream:
    """Read the bytes of a whole event stream."""
    found = Stream()
    *events, rest = raw.split(b"\n\n")
    if rest:
        found.complaints.append(f"half an event at the end: {rest[:80]!r}")
    for event in events:
        lines = dict(line.split(b": ", 1) for line in event.split(b"\n"))
        if found.done:
            found.complaints.append("events after [DONE]")
        if b"id" in lines:
            _take_tokens(found, json.loads(lines[b"id"]))
        if lines[b"data"] == b"[DONE]":
            found.done = True
        else:
            _take_data(found, json.loads(lines[b"data"]))
    return found


def _take_tokens(found: Stream, ident: list[int]) -> None:
    index, position, *tokens = ident
    choice = found.choices.setdefault(index, Choice())
    if position < len(choice.tokens):
        found.duplicated += len(choice.tokens) - position
    elif position > len(choice.tokens):
        found.missing += position - len(choice.tokens)
    choice.tokens += tokens


def _take_data(found: Stream, data: Body) -> None:
    if "error" in data:
        found.error = data["error"]["message"]
    elif "meta_info" in data:
        _take_native(found, data)
    elif not data["choices"]:
        found.usages.append(data["usage"])
    else:
        found.fingerprints.add(data["system_fingerprint"])
        for part in data["choices"]:
            _take_choice(found.choices.setdefault(part["index"], Choice()), part)


def _take_choice(choice: Choice, part: Body) -> None:
    delta = part.get("delta", {})
    choice.roles += "role" in delta
    choice.text += part["text"] if "text" in part else delta.get("content") or ""
    choice.logprobs = _joined(choice.logprobs, part.get("logprobs"))
    choice.timings = part.get("baton", {}).get("timings", choice.timings)
    if part["finish_reason"] is not None:
        choice.finishes.append(part["finish_reason"])


def _take_native(found: Stream, data: Body) -> None:
    """Events of `/generate` hold all that came so far."""
    meta = data["meta_info"]
    choice = found.choices.setdefault(data.get("index", 0), Choice())
    if not data["text"].startswith(choice.text):
        found.complaints.append(f"{choice.text!r} became {data['text']!r}")
    if data["output_ids"] != choice.tokens:
        found.complaints.append(f"output_ids are {data['output_ids']}, ids of the events {choice.tokens}")
    choice.text = data["text"]
    choice.timings = meta.get("baton", {}).get("timings", choice.timings)
    choice.logprobs = {name: value for name, value in meta.items() if name.endswith("_logprobs")}
    choice.logprobs["tokens"] = [meta["prompt_tokens"], meta["completion_tokens"]]
    found.fingerprints.add(meta["weight_digest"])
    if meta["finish_reason"] is not None:
        choice.finishes.append(meta["finish_reason"])


def _joined(before: Any, after: Any) -> Any:
    """Lists of log-probabilities, one behind the other."""
    if before is None or after is None:
        return after if before is None else before
    return {
        name: before[name] + value if isinstance(value, list) else before[name] or value
        for name, value in after.items()
    }


def difference(ours: Stream, truth: Stream) -> str:
    """What is wrong with a stream, if anything: text, tokens and reasons to the byte, log-probabilities nearly so."""
    if ours.complaints or ours.duplicated or ours.missing:
        return f"{ours.duplicated} tokens twice, {ours.missing} missing; {'; '.join(ours.complaints)}"
    if sorted(ours.choices) != sorted(truth.choices):
        return f"choices {sorted(ours.choices)} instead of {sorted(truth.choices)}"
    for index, wanted in truth.choices.items():
        got = ours.choices[index]
        for name in ("tokens", "text", "finishes", "roles"):
            if getattr(got, name) != getattr(wanted, name):
                return f"choice {index}: {name} {getattr(got, name)!r} instead of {getattr(wanted, name)!r}"
        if not alike(got.logprobs, wanted.logprobs):
            return f"choice {index}: logprobs {got.logprobs} instead of {wanted.logprobs}"
    if ours.usages != truth.usages or ours.fingerprints != truth.fingerprints:
        return f"usage {ours.usages} of {ours.fingerprints} instead of {truth.usages} of {truth.fingerprints}"
    return ""


def alike(ours: Any, theirs: Any) -> bool:
    """Equal but for floats, which may differ by the tolerance."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= TOLERANCE
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(alike(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return bool(ours == theirs)
