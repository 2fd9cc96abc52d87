"""A worker as the simulation knows it: what its steps cost, what its cache holds, and what runs on it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from baton_serving.gateway.policies.prefix_keys import CUTS
from baton_serving.gateway.simulate.trace import BYTES_PER_TOKEN, TraceRequest


class Costs(msgspec.Struct, frozen=True):
    """Seconds, and tokens of KV. The defaults are an 8B model on one H200 as `benchmarks/README.md` has it."""

    prefill_step: float = 0.004
    prefill_token: float = 26.5e-6
    decode_step: float = 0.0041
    decode_row: float = 2e-6
    decode_context_token: float = 48e-9
    transfer: float = 0.002
    transfer_token: float = 3e-6
    kv_tokens: int = 257_000
    prefill_batch_tokens: int = 8192
    page_size: int = 64


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. Times in seconds; `decoded` counts tokens after the first."""

    number: int
    request: TraceRequest
    keys: Sequence[int]
    arrived: float
    prefill: SimWorker | None = None
    decode: SimWorker | None = None
    believed: int = 0  # prompt tokens that the gateway took for cached
    cached: int = 0  # prompt tokens that were
    first_token: float = 0.0
    ended: float = 0.0
    refused: bool = False
    decoded: int = 0

    @property
    def context(self) -> int:
        return self.request.prompt_tokens + 1 + self.decoded


Tell = Callable[["SimWorker", Sequence[int], Sequence[int]], None]


class BlockCache:
    """Blocks of prompts, the least recently used go first; what enters and leaves is told by the prompts' keys."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._blocks: OrderedDict[int, list[int]] = OrderedDict()  # block → keys whose beginning ends in it

    @property
    def tokens(self) -> int:
        return len(self._blocks) * self._block_tokens

    def match(self, blocks: Sequence[int]) -> int:
        """Tokens of the longest beginning that is held; marks it as used."""
        count = 0
        for block in blocks:
            if block not in self._blocks:
                break
            count += 1
        for block in reversed(blocks[:count]):  # the deepest goes first: it is of use to nobody without the others
            self._blocks.move_to_end(block)
        return count * self._block_tokens

    def insert(self, blocks: Sequence[int], keys: Sequence[int]) -> list[int]:
        """Hold the blocks, in which the prompt's keys end; returns all keys that are held now."""
        for block in reversed(blocks):
            self._blocks.setdefault(block, [])
            self._blocks.move_to_end(block)
        held: list[int] = []
        for key, cut in zip(keys, CUTS, strict=False):
            index = cut // (self._block_tokens * BYTES_PER_TOKEN) - 1
            if 0 <= index < len(blocks):
                names = self._blocks[blocks[index]]
                if key not in names:
                    names.append(key)
                held.append(key)
        return held

    def shrink(self, tokens: int) -> list[int]:
        """Hold at most so many tokens; returns the keys that are no longer held."""
        gone: list[int] = []
        while self._blocks and self.tokens > tokens:
            _, keys = self._blocks.popitem(last=False)
            gone.extend(keys)
        return gone


@dataclass(eq=False)
class SimWorker:
    """A `Candidate` of the policies. Prefill goes before decode; between changes of the batch all steps cost alike."""

    id: str
    costs: Costs
    cache: BlockCache
    incarnation: str = "1"
    weight_digest: str = "w"
    running: int = 0
    queued_tokens: int = 0
    speed: float = 1.0  # a worker of speed 2 takes half of all times
    waiting: deque[Job] = field(default_factory=deque)
    batch: dict[int, Job] = field(default_factory=dict)
    prefilling: list[Job] = field(default_factory=list)
    version: int = 0  # of the batch: a finish that was planned for an earlier one is void
    used_tokens: int = 0
    busy: float = 0.0
    prompt_tokens: int = 0  # this and the next as in `baton_bootstrap.records.Load`
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    _since: float = 0.0
    _step: float = 0.0

    # Prefill

    def take_prefill_batch(self) -> float | None:
        """Start on the prompts that wait, as many as fit one batch; returns the seconds it takes, None: none waits."""
        if self.prefilling or not self.waiting:
            return None
        tokens = 0
        while self.waiting:
            job = self.waiting[0]
            job.cached = min(self.cache.match(job.request.blocks), job.request.prompt_tokens - 1)
            new = job.request.prompt_tokens - job.cached
            if self.prefilling and tokens + new > self.costs.prefill_batch_tokens:
                break
            self.prefilling.append(self.waiting.popleft())
            tokens += new
        seconds = (self.costs.prefill_step + tokens * self.costs.prefill_token) / self.speed
        self.busy += seconds
        self.prompt_tokens += tokens
        self.prompt_seconds += seconds
        return seconds

    def computed(self, job: Job, tell: Tell) -> None:
        """The job's prompt is in the cache, as far as there is room beside what runs."""
        stored = self.cache.insert(job.request.blocks, job.keys)
        gone = self.cache.shrink(max(0, self.costs.kv_tokens - self.used_tokens))
        left = set(gone)
        tell(self, [key for key in stored if key not in left], gone)

    # Decode

    def join(self, job: Job, now: float, tell: Tell) -> None:
        """The job's first token is there; its further ones come with the batch."""
        self.progress(now)
        self.batch[job.number] = job
        self.used_tokens += job.request.prompt_tokens + job.request.output_tokens
        gone = self.cache.shrink(max(0, self.costs.kv_tokens - self.used_tokens))
        if gone:
            tell(self, [], gone)
        self._restart(now)

    def progress(self, now: float) -> list[Job]:
        """Take note of the steps made since the last call; returns the jobs that ended."""
        if not self.batch or self.prefilling:
            self._since = now
            return []
        steps = int((now - self._since) / self._step + 1e-6)
        self._since += steps * self._step
        self.busy += steps * self._step
        self.answer_tokens += steps * len(self.batch)
        self.answer_seconds += steps * self._step * len(self.batch)
        ended: list[Job] = []
        for job in self.batch.values():
            job.decoded += steps
            if job.decoded >= job.request.output_tokens - 1:
                ended.append(job)
        for job in ended:
            del self.batch[job.number]
            self.used_tokens -= job.request.prompt_tokens + job.request.output_tokens
        return ended

    def next_end(self) -> float | None:
        """When the next job of the batch ends, if nothing changes until then."""
        if not self.batch or self.prefilling:
            return None
        left = min(job.request.output_tokens - 1 - job.decoded for job in self.batch.values())
        return self._since + max(1, left) * self._step

    def restart(self, now: float) -> None:
        """The batch, or whether it may run, has changed."""
        self._since = now
        self._restart(now)

    def _restart(self, now: float) -> None:
        self.version += 1
        context = sum(job.context for job in self.batch.values())
        costs = self.costs
        rows = len(self.batch)
        self._step = (costs.decode_step + rows * costs.decode_row + context * costs.decode_context_token) / self.speed
