"""What a client asks, read once: the few fields that the gateway must know. The body itself goes on as it came.

What the gateway adds is written behind the client's last field, where it wins over an earlier one of the same name;
unknown fields, long numbers and the order of keys stay untouched.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import msgspec
import orjson
from msgspec import UNSET, Raw, UnsetType

from baton_serving.errors import InvalidRequest
from baton_serving.gateway.http.downstream import Incoming
from baton_serving.gateway.snapshot import RequestFacts

BYTES_PER_TOKEN = 4  # of English text; only ever an estimate

_PASSED_ON = (b"traceparent", b"tracestate", b"accept")
_REQUEST_ID = b"x-request-id"
_TIMEOUT = b"x-request-timeout"
_GIVEN_ID = re.compile(rb"[!-~]{1,256}")  # it goes into heads and logs
_SEED_NAMES = ("seed", "sampling_seed")
_EMPTY = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}[ \t\r\n]*")


class Fields(msgspec.Struct, gc=False):
    """The fields that matter here; of any type, as it is the worker that judges them."""

    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    priority: Any = None
    user: Any = None
    rid: Any = None
    seed: Any = None
    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    input_ids: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    sampling_params: Any = None
    # Fields that steer the handoff: only the gateway writes them, whatever a client sends.
    baton_handoff: Any = UNSET
    baton_resume: Any = UNSET
    bootstrap_host: Any = UNSET
    bootstrap_port: Any = UNSET
    bootstrap_room: Any = UNSET


_STEERING = ("baton_handoff", "baton_resume", "bootstrap_host", "bootstrap_port", "bootstrap_room")
_UNSTEERED = (UNSET,) * len(_STEERING)

_fields = msgspec.json.Decoder(Fields)


class Names:
    """Ids that no other request has, anywhere: random at the front, counted behind."""

    def __init__(self) -> None:
        self._requests = secrets.token_hex(8)
        self._transfers = secrets.token_hex(10)
        self.number: Callable[[], int] = count().__next__

    def request_id(self, number: int) -> str:
        return f"{self._requests}{number:016x}"

    def transfer_id(self, number: int, attempt: int) -> str:
        """128 bits, of which clients never see any."""
        return f"{self._transfers}{(number << 8 | attempt & 255) & 0xFFFFFFFFFFFF:012x}"


class Ask:
    """One request to run on workers."""

    __slots__ = (
        "_choices",
        "body",
        "facts",
        "fields",
        "lines",
        "number",
        "path",
        "request_id",
        "rid",
        "route",
        "stream",
        "timeout",
    )

    def __init__(self, incoming: Incoming, path: str, names: Names, tenant: str = "") -> None:
        """`path` is the workers' route. Raises InvalidRequest for a body that is no JSON object."""
        headers = incoming.headers
        self.body = incoming.body
        self.path = path
        self.route = path.encode()
        self.fields = fields = _read(incoming.body)
        self.number = number = names.number()
        generated = names.request_id(number)
        given = headers.get(_REQUEST_ID)
        self.request_id = given.decode("ascii") if given and _GIVEN_ID.fullmatch(given) else generated
        self.rid = fields.rid if isinstance(fields.rid, str) and fields.rid else generated
        self.stream = bool(fields.stream)
        self.timeout = _timeout(headers.get(_TIMEOUT))
        lines = b"content-type: application/json\r\nx-request-id: %b\r\n" % self.request_id.encode("latin-1")
        for name in _PASSED_ON:
            value = headers.get(name)
            if value is not None:
                lines += b"%b: %b\r\n" % (name, value)
        self.lines = lines
        self._choices = 0
        self.facts = _facts(fields, number, headers, tenant)

    def payload(self, additions: Mapping[str, object]) -> tuple[bytes | memoryview, bytes]:
        """The body with these fields, which replace the client's own, in two pieces: what came, and what is added."""
        if not additions:
            return memoryview(self.body), b""
        tail = orjson.dumps(additions)
        if _EMPTY.fullmatch(self.body) is not None:
            return b"", tail
        return memoryview(self.body)[: self.body.rindex(b"}")], b"," + tail[1:]

    def standing_additions(self) -> dict[str, object]:
        """What every attempt adds: a name, a seed that a continuation can use, and no steering fields of a client."""
        fields = self.fields
        steering = fields.baton_handoff, fields.baton_resume, fields.bootstrap_host, fields.bootstrap_port
        additions: dict[str, object] = {}
        if (*steering, fields.bootstrap_room) != _UNSTEERED:
            additions = dict.fromkeys(_STEERING)
        if self.path == "/generate":
            if self.stream:
                additions["sampling_params"] = _seeded(fields.sampling_params, self.number)
        elif fields.seed is None and self.stream:
            additions["seed"] = secrets.randbits(53)
        return additions

    def choices(self) -> int:
        """How many answers were asked for, over all prompts. Read off the body once a stream must go on."""
        if not self._choices:
            self._choices = self._count_choices()
        return self._choices

    def movable(self) -> bool:
        """Whether a stream's pages can move: it has one choice, and its events do not say again what it measured."""
        measured = self.path == "/generate" and bool(orjson.loads(self.body).get("return_logprob"))
        return self.choices() == 1 and not measured

    def _count_choices(self) -> int:
        body: dict[str, Any] = orjson.loads(self.body)
        n = body.get("n") or 1
        if self.path == "/v1/chat/completions":
            return int(n)
        if self.path == "/v1/completions":
            return int(n) * _prompts(body.get("prompt"))
        prompts = body.get("text") if body.get("text") is not None else body.get("input_ids")
        params = body.get("sampling_params")
        if isinstance(params, list):
            return sum(int(one.get("n") or 1) for one in params)
        return int((params or {}).get("n") or 1) * _prompts(prompts)


def _read(body: bytes | bytearray) -> Fields:
    try:
        return _fields.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest("the body must be a JSON object") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error


def _facts(fields: Fields, number: int, headers: Mapping[bytes, bytes], tenant: str) -> RequestFacts:
    model = fields.model
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {type(model).__name__}", "model")
    prompt: bytes | memoryview = b""
    for raw in (fields.messages, fields.prompt, fields.text, fields.input_ids, fields.input):
        if raw is not UNSET:
            prompt = memoryview(raw)
            break
    wanted = fields.max_tokens or fields.max_completion_tokens
    session = headers.get(b"x-session-id") or (fields.user if isinstance(fields.user, str) else "")
    return RequestFacts(
        number=number,
        model=model or "",
        prompt=prompt,
        prompt_tokens=len(prompt) // BYTES_PER_TOKEN,
        max_tokens=wanted if isinstance(wanted, int) else 0,
        priority=fields.priority if isinstance(fields.priority, int) else 0,
        session=session if isinstance(session, str) else session.decode("latin-1"),
        tenant=tenant,
    )


def _timeout(value: bytes | None) -> float | None:
    """Seconds; a value that is none is the worker's to refuse."""
    try:
        seconds = 0.0 if value is None else float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e9 else None


def _seeded(params: Any, number: int) -> object:
    """Sampling parameters with a seed in each set that has none; other types are the worker's to refuse."""
    if params is None:
        return {"sampling_seed": secrets.randbits(53)}
    if isinstance(params, list):
        return [_seeded(one, number) for one in params]
    if not isinstance(params, dict) or any(name in params for name in _SEED_NAMES):
        return params
    return {**params, "sampling_seed": secrets.randbits(53)}


def _prompts(prompt: Any) -> int:
    """How many prompts one field holds: a list of texts or of token lists holds several."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1
