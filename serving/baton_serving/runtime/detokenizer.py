"""The detokenizer: tokens of running requests into text, stop strings found on the way.

One process between scheduler and API. `DetokenizerState` is pure; `Detokenizer` is its rim of sockets.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from baton_serving import logs
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.messages import (
    ApiInput,
    DetokenizerInput,
    Finish,
    SchedulerInput,
    StopFound,
    StreamState,
    TextBatch,
    TextOutput,
    TokenBatch,
    TokenOutput,
)
from baton_serving.runtime.outputs import is_terminal, merge
from baton_serving.runtime.process import Reporter
from baton_serving.runtime.stop_matcher import StopMatcher
from baton_serving.runtime.tokenizer import TokenizerSource, load_tokenizer
from baton_serving.runtime.vocabulary import NO_VOCABULARY, Vocabulary
from baton_serving.sampling.params import SamplingParams

PROMPT_TAIL: Final = 8  # prompt tokens that may hold the bytes of a character the answer goes on with


class AnswerText:
    """The text of one answer: decodes tokens, finds stop strings, and says what may be shown.

    Text and tokens may be handed in piece by piece in any cut: what was shown after k tokens depends on those k tokens
    alone. That is why a resumed stream can replay what another worker sent and continue exactly there.
    """

    def __init__(self, vocabulary: Vocabulary, state: StreamState) -> None:
        params = state.params
        self._decoder = vocabulary.decoder(state.prompt_tail, skip_special_tokens=params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop) if params.stop else None
        self._keep_stop = params.no_stop_trim
        self._stops_from = params.min_new_tokens
        self.tokens = 0
        self.stop: str | None = None

    @property
    def holding(self) -> bool:
        """Whether shown text lags behind the tokens."""
        return self._decoder.pending or (self._matcher is not None and bool(self._matcher.held))

    def feed(self, token_id: int) -> str:
        """The text to show once this token is there; sets `stop` when it completed a stop string."""
        self.tokens += 1
        text = self._decoder.feed(token_id)
        if self._matcher is None or self.tokens < self._stops_from:
            return text
        shown, self.stop = self._matcher.feed(text)
        return shown + self.stop if self.stop is not None and self._keep_stop else shown

    def flush(self) -> str:
        """What was held back as a possible stop string, once it is clear that the answer is whole.

        Bytes of an unfinished character are never shown.
        """
        return self._matcher.flush() if self._matcher is not None else ""


def replayed_text(
    vocabulary: Vocabulary, prompt: Sequence[int], params: SamplingParams, output_ids: Sequence[int]
) -> str:
    """The text that a client has been shown once it was sent `output_ids`, the first tokens of its answer."""
    tail = list(prompt[-PROMPT_TAIL:])
    text = AnswerText(vocabulary, StreamState(rid="", prompt_tail=tail, params=params, stream=True))
    shown: list[str] = []
    for token_id in output_ids:
        shown.append(text.feed(token_id))
        if text.stop is not None:
            break
    return "".join(shown)


class _Stream:
    """One open request: its text, and what has not been sent on yet."""

    def __init__(self, vocabulary: Vocabulary, state: StreamState, interval: int) -> None:
        self._text = AnswerText(vocabulary, state)
        self._keep_stop = state.params.no_stop_trim
        self._every = interval if state.stream else 0
        self._due = 0
        self._pending_text: list[str] = []
        self._pending: TokenOutput | None = None

    def replay(self, output_ids: list[int]) -> StopFound | None:
        """Count tokens that the client has already seen; they may have completed a stop string unnoticed."""
        for token_id in output_ids:
            self._text.feed(token_id)
            if self._text.stop is not None:
                return StopFound(rid="", completion_tokens=self._text.tokens)
        return None

    @property
    def stop(self) -> str | None:
        return self._text.stop

    def take(self, output: TokenOutput) -> None:
        """Decode the output's tokens; cut it behind the token that completes a stop string."""
        for index, token_id in enumerate(self._shown_tokens(output)):
            self._pending_text.append(self._text.feed(token_id))
            if self._text.stop is not None:
                _cut(output, index + 1, self._text.stop)
                break
        if output.finish is not None and self._text.stop is None:
            self._pending_text.append(self._text.flush())
        self._pending = output if self._pending is None else merge(self._pending, output)

    def _shown_tokens(self, output: TokenOutput) -> list[int]:
        """The tokens that may give text: not a last one that ended the answer, unless the client keeps stops."""
        ended_by_token = output.finish is not None and isinstance(output.finish.matched, int)
        return output.token_ids[:-1] if ended_by_token and not self._keep_stop else output.token_ids

    def due(self) -> TextOutput | None:
        """What goes to the API now: at once when terminal, else every `interval` tokens and not while text is held."""
        output = self._pending
        if output is None:
            return None
        if not is_terminal(output):
            if not self._every or output.completion_tokens < self._due:
                return None
            if self._text.holding and not any(self._pending_text):
                return None
            self._due = output.completion_tokens + self._every
        text = "".join(self._pending_text)
        self._pending_text.clear()
        self._pending = None
        return TextOutput(rid=output.rid, text=text, tokens=output)


def _cut(output: TokenOutput, keep: int, stop: str) -> None:
    """End `output` behind its first `keep` tokens because they completed `stop`."""
    output.completion_tokens -= len(output.token_ids) - keep
    del output.token_ids[keep:]
    del output.logprobs[keep:]
    output.finish = Finish("stop", stop)
    output.failure = None


class DetokenizerState:
    """All open requests. `stream_interval` is the number of tokens between two outputs of a stream."""

    def __init__(self, vocabulary: Vocabulary, stream_interval: int = 1) -> None:
        self._vocabulary = vocabulary
        self._interval = stream_interval
        self._streams: dict[str, _Stream] = {}

    @property
    def open_requests(self) -> int:
        return len(self._streams)

    def process(self, batch: TokenBatch) -> tuple[list[TextOutput], list[StopFound]]:
        """Outputs for the API and stops for the scheduler.

        What the scheduler says of a request before it hears that it has stopped is dropped. The failure of a request
        that never began is passed on.
        """
        outputs: list[TextOutput] = []
        stops: list[StopFound] = []
        for state in batch.opened:
            self._open(state, outputs, stops)
        for output in batch.outputs:
            stream = self._streams.get(output.rid)
            if stream is None:
                if output.failure is not None:
                    outputs.append(TextOutput(rid=output.rid, text="", tokens=output))
                continue
            finished_by_scheduler = is_terminal(output)
            stream.take(output)
            if is_terminal(output):
                del self._streams[output.rid]
                if not finished_by_scheduler:
                    stops.append(StopFound(rid=output.rid, completion_tokens=output.completion_tokens))
            due = stream.due()
            if due is not None:
                outputs.append(due)
        return outputs, stops

    def _open(self, state: StreamState, outputs: list[TextOutput], stops: list[StopFound]) -> None:
        stream = _Stream(self._vocabulary, state, self._interval)
        stopped = stream.replay(state.output_ids)
        if stopped is None:
            self._streams[state.rid] = stream
            return
        stops.append(StopFound(rid=state.rid, completion_tokens=stopped.completion_tokens))
        finish = Finish("stop", stream.stop)
        tokens = TokenOutput(rid=state.rid, completion_tokens=stopped.completion_tokens, finish=finish)
        outputs.append(TextOutput(rid=state.rid, text="", tokens=tokens))


class Detokenizer:
    """The rim: reads what the scheduler sends, writes text to the API and stops back to the scheduler."""

    def __init__(
        self,
        state: DetokenizerState,
        inbox: Pull[DetokenizerInput],
        to_api: Push[ApiInput],
        to_scheduler: Push[SchedulerInput],
    ) -> None:
        self._state = state
        self._inbox = inbox
        self._to_api = to_api
        self._to_scheduler = to_scheduler

    def run(self, running: Callable[[], bool] = lambda: True) -> None:
        """Serve until `running()` is false, which is asked at least five times a second."""
        while running():
            if self._inbox.socket.poll(200):
                for message in self._inbox.drain():
                    self.handle(message)

    def handle(self, message: DetokenizerInput) -> None:
        outputs, stops = self._state.process(message)
        for stop in stops:
            self._to_scheduler.send(stop)
        if outputs:
            self._to_api.send(TextBatch(outputs=outputs))


def detokenizer_main(
    log_level: str, addresses: Addresses, source: TokenizerSource | None, stream_interval: int, reporter: Reporter
) -> None:
    """Entry point of the detokenizer process. Without a tokenizer (`source` None) answers are token ids, text empty."""
    logs.configure("detokenizer", log_level)
    vocabulary = NO_VOCABULARY if source is None else load_tokenizer(source).vocabulary
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox: Pull[DetokenizerInput] = Pull(context, addresses.detokenizer, DetokenizerInput)
    to_api: Push[ApiInput] = Push(context, addresses.api)
    to_scheduler: Push[SchedulerInput] = Push(context, addresses.scheduler)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    reporter.ready({})
    Detokenizer(DetokenizerState(vocabulary, stream_interval), inbox, to_api, to_scheduler).run(
        lambda: not stopping.is_set()
    )
    to_api.close(linger_ms=200)
    to_scheduler.close(linger_ms=200)
    inbox.close()
    context.term()
