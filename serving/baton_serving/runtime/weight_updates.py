"""Rank 0's control calls that change weights or lend memory: decided here, carried out by every rank alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from baton_serving.errors import BatonError, ConfigError, InternalError, InvalidRequest, Unavailable
from baton_serving.runtime.control_calls import ControlHandler, Later
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.handoff_setup import Handoff
from baton_serving.runtime.weights import RankWeights, StagingState
from baton_serving.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)

POLL = 0.02  # seconds between two looks at how far the followers are
LONG = 600.0  # seconds that moving memory or meeting a trainer may keep the loop from turning
TAGS = ("kv_cache", "weights")


@dataclass
class _Commit:
    """A switch that waits until nothing holds KV any more, at most until `deadline`."""

    later: Later
    incarnation: str
    deadline: float


class WeightUpdates:
    """`controls` are its calls; `poll` moves along what takes more than one turn of the loop.

    `declare` hears of the seconds for which a call may keep the loop.
    """

    def __init__(
        self,
        weights: RankWeights,
        followers: Followers,
        scheduler: Scheduler,
        handoff: Handoff | None,
        declare: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights = weights
        self._followers = followers
        self._scheduler = scheduler
        self._handoff = handoff
        self._declare = declare
        self._clock = clock
        self._staging: Later | None = None
        self._next_look = 0.0
        self._commit: _Commit | None = None
        self.paused = False
        self.controls: Mapping[str, ControlHandler] = {
            "weights_stage": self.stage,
            "weights_progress": weights.staging,
            "weights_commit": self.commit,
            "weights_discard": self.discard,
            "weights_join": self.join,
            "weights_leave": self.leave,
            "memory_release": self.release,
            "memory_resume": self.resume,
            "pause": self.pause,
            "continue": self.go_on,
        }

    @property
    def digest(self) -> str:
        """Content digest of the weights that serve now."""
        return self._weights.digest

    def stage(self, source: dict[str, Any]) -> Later:
        """Read new weights into host memory on every rank; the result holds their `digest` and `bytes`."""
        if source.get("file") and self._followers.count >= self._weights.node_size:
            self._declare(LONG)
            source = {**source, "content": Path(source["file"]).read_bytes()}
        return self._begin("weights_stage", {"source": source})

    def commit(self, incarnation: str, timeout: float) -> Later:
        """Serve what is staged as soon as nothing holds KV. From then on this worker is `incarnation` for its peers.

        The result holds `digest` and `seconds`, for which no step could run.
        """
        if self._staging is not None or not self._weights.staging()["digest"]:
            raise InvalidRequest("no weights are staged")
        if self._commit is not None:
            raise Unavailable("a switch of weights is under way already", retry_after=1)
        self._commit = _Commit(Later(), incarnation, self._clock() + timeout)
        return self._commit.later

    def discard(self) -> dict[str, Any]:
        """Forget what is staged."""
        if self._staging is not None:
            raise Unavailable("a change of weights is under way; wait for it to end", retry_after=1)
        self._everywhere("weights_discard", {})
        return {}

    def join(self, **group: Any) -> Later:
        """Have every rank join a group with a trainer."""
        return self._begin("weights_join", group)

    def leave(self, name: str) -> dict[str, Any]:
        return self._long("weights_leave", {"name": name})

    def release(self, tags: list[str]) -> dict[str, Any]:
        """Give KV pool or weights' memory back to the system; no request may hold KV. The result holds its `bytes`."""
        unknown = sorted(set(tags) - set(TAGS))
        if unknown:
            raise InvalidRequest(f"tags holds {unknown[0]!r}; the tags are {', '.join(TAGS)}", "tags")
        if self._handoff is not None and "kv_cache" in tags:
            raise InvalidRequest(
                "the KV pool of a prefill or decode worker is registered for transfers: it stays", "tags"
            )
        if self._scheduler.holds_kv:
            raise Unavailable("requests hold KV; pause generation and let them end first", retry_after=1)
        self._scheduler.flush_cache()
        return self._long("memory_release", {"tags": tags})

    def resume(self, tags: list[str]) -> dict[str, Any]:
        return self._long("memory_resume", {"tags": tags})

    def pause(self, retract: bool) -> dict[str, Any]:
        """Launch no steps until `go_on`; with `retract` running requests give their KV back and wait."""
        self.paused = True
        if retract:
            self._scheduler.retract_all()
        return {}

    def go_on(self) -> dict[str, Any]:
        self.paused = False
        return {}

    def poll(self) -> None:
        """Once per turn of the loop."""
        if self._staging is not None and self._clock() >= self._next_look:
            self._next_look = self._clock() + POLL
            self._look(self._staging)
        if self._commit is not None:
            self._try_commit()

    def _begin(self, method: str, args: dict[str, Any]) -> Later:
        if self._staging is not None:
            raise Unavailable("another change of weights is under way; wait for it to end", retry_after=1)
        self._everywhere(method, args)
        self._staging = Later()
        return self._staging

    def _look(self, later: Later) -> None:
        mine = msgspec.convert(self._weights.staging(), StagingState)
        if mine.running:
            return
        states = [mine]
        if not mine.error:
            states += [msgspec.convert(plain, StagingState) for plain in self._followers.call("weights_staging", {})]
            if any(state.running for state in states):
                return
        self._staging = None
        error = next((state.error for state in states if state.error), "")
        here = self._weights.node_size
        firsts = [states[rank // here * here] for rank in range(len(states))]  # of each rank's node
        same = [s.files == first.files and first.digest == mine.digest for s, first in zip(states, firsts, strict=True)]
        if not error and not all(same):
            error = "the ranks read different files; update again once the checkpoint is complete"
        if error:
            later.fail(InvalidRequest(error))
        else:
            later.resolve({"digest": mine.digest, "bytes": mine.total})

    def _try_commit(self) -> None:
        commit = self._commit
        assert commit is not None
        if self._scheduler.holds_kv or not (self._handoff is None or self._handoff.bridge.quiet):
            if self._clock() >= commit.deadline:
                self._commit = None
                commit.later.fail(Unavailable("requests still hold KV of the present weights", retry_after=1))
            return
        self._commit = None
        started = time.perf_counter()
        digest = str(self._weights.staging()["digest"])
        self._declare(LONG)
        self._everywhere("weights_commit", {"digest": digest})
        self._scheduler.flush_cache()
        self._scheduler.rename(digest)
        if self._handoff is not None:
            self._handoff.service.renew(digest, commit.incarnation)
        seconds = time.perf_counter() - started
        log.info("weights switched to %s in %.1f ms", digest[:12], seconds * 1000)
        commit.later.resolve({"digest": digest, "seconds": seconds})

    def _everywhere(self, method: str, args: dict[str, Any]) -> Any:
        """Call `method` on every rank; rank 0's result. A fault between two ranks ends the worker: it must not serve
        a mixture."""
        self._followers.tell(method, args)
        result = self._weights.handlers[method](**args)
        self._followers.collect(method)
        return result

    def _long(self, method: str, args: dict[str, Any]) -> dict[str, Any]:
        self._declare(LONG)
        try:
            return {"bytes": self._everywhere(method, args)}
        except ConfigError as error:
            raise InvalidRequest(error.message) from error
        except BatonError:
            raise
        except RuntimeError as error:
            raise InternalError(f"{method} failed: {error}") from error
