"""One rank's weights: what serves, what is being staged beside it, and memory that is lent out meanwhile.

Staging runs on a thread of its own; everything else happens between two steps, when rank 0 says so.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from baton_serving.errors import ConfigError, InternalError, InvalidRequest
from baton_serving.model.checkpoint import SafetensorsCheckpoint, open_checkpoint
from baton_serving.model.lent import LentWeights
from baton_serving.model.staged import StagedWeights, put_in_place, stage_checkpoint, stage_tensors
from baton_serving.model.weight_group import WeightGroup
from baton_serving.runtime.locate import local_checkpoint
from baton_serving.runtime.rank import Rank
from baton_serving.runtime.weight_source import WeightSource


class StagingState(msgspec.Struct, kw_only=True):
    """How far a rank is. `digest` is that of a node's first rank alone; `error` says why nothing is staged."""

    running: bool = False
    done: int = 0
    total: int = 0
    digest: str = ""
    files: list[tuple[str, int, int, int]] = []
    error: str = ""


class RankWeights:
    """`handlers` are the calls that rank 0 makes on every rank; each returns plain values."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._loaded = rank.loaded
        self._options = rank.options
        self._state = StagingState()
        self._staged: StagedWeights | None = None
        self._groups: dict[str, WeightGroup] = {}
        self._lent: dict[str, Callable[[], None]] = {}  # by tag, how to take it back
        self.handlers: Mapping[str, Callable[..., Any]] = {
            "weights_stage": self.stage,
            "weights_staging": self.staging,
            "weights_commit": self.commit,
            "weights_discard": self.discard,
            "weights_join": self.join,
            "weights_leave": self.leave,
            "memory_release": self.release,
            "memory_resume": self.resume,
        }

    @property
    def digest(self) -> str:
        """Content digest of what serves."""
        return self._loaded.digest

    @property
    def node_size(self) -> int:
        """Ranks on each node."""
        return self._rank.parallel.node_size or self._rank.parallel.tp_size

    def stage(self, source: dict[str, Any]) -> None:
        """Begin to stage; `staging` tells how it goes. What was staged before is dropped."""
        wanted = msgspec.convert(source, WeightSource)
        self._staged = None
        self._begin(lambda state: self._stage(wanted, state))

    def join(self, name: str, address: str, rank: int, world_size: int, backend: str, timeout: float) -> None:
        """Begin to join a group that weights come from; tensor parallel ranks follow each other from `rank` on."""
        member = rank + self._rank.parallel.tp_rank
        device = self._rank.pool.device

        def meet(state: StagingState) -> None:
            if name in self._groups:
                raise InvalidRequest(f"this worker is in a group {name!r} already", "group_name")
            self._groups[name] = WeightGroup(name, address, member, world_size, backend, device, timeout)

        self._begin(meet)

    def staging(self) -> dict[str, Any]:
        """A `StagingState`."""
        plain: dict[str, Any] = msgspec.to_builtins(self._state)
        return plain

    def commit(self, digest: str) -> None:
        """Serve what is staged, whose digest is `digest`. No step may be under way and nothing may hold KV."""
        staged = self._staged
        if staged is None:
            raise InternalError("no weights are staged")
        if "weights" in self._lent:
            raise InternalError("the weights' memory is released")
        put_in_place(self._loaded, staged)
        leaves = staged.leaves or self._loaded.leaves
        self._loaded = replace(self._loaded, digest=digest, leaves=leaves)
        self.discard()

    def discard(self) -> None:
        """Drop what is staged."""
        self._staged = None
        self._state = StagingState()

    def leave(self, name: str) -> None:
        group = self._groups.pop(name, None)
        if group is not None:
            group.close()

    def release(self, tags: list[str]) -> int:
        """Give memory back to the system until `resume`; returns its bytes. The KV in it is lost."""
        self._rank.executor.drop_graphs()
        freed = 0
        for tag in tags:
            if tag not in self._lent:
                held = self._rank.pool if tag == "kv_cache" else LentWeights(self._loaded.model)
                freed += held.size_bytes
                held.release()
                self._lent[tag] = held.restore
        return freed

    def resume(self, tags: list[str]) -> None:
        for tag in tags:
            restore = self._lent.pop(tag, None)
            if restore is not None:
                restore()
        if not self._lent:
            self._rank.executor.capture_again()

    def close(self) -> None:
        for name in list(self._groups):
            self.leave(name)

    def _begin(self, work: Callable[[StagingState], None]) -> None:
        """Do `work` on a thread of its own; one at a time."""
        if self._state.running:
            raise InternalError("another change of weights is under way")
        state = self._state = StagingState(running=True)
        threading.Thread(target=self._run, args=(work, state), name="staging", daemon=True).start()

    def _run(self, work: Callable[[StagingState], None], state: StagingState) -> None:
        try:
            work(state)
        except (ConfigError, InvalidRequest) as error:
            state.error = error.message
        except (RuntimeError, ValueError, KeyError, OSError, MemoryError) as error:
            state.error = f"{type(error).__name__}: {error}"
        finally:
            state.running = False

    def _stage(self, source: WeightSource, state: StagingState) -> None:
        def progress(done: int, total: int) -> None:
            state.done, state.total = done, total

        staged = self._read(source, progress)
        self._staged = staged
        state.files, state.digest = list(staged.files), staged.digest

    def _read(self, source: WeightSource, progress: Callable[[int, int], None]) -> StagedWeights:
        if source.group:
            group = self._groups.get(source.group)
            if group is None:
                raise InvalidRequest(
                    f"this worker is in no group {source.group!r}: call /init_weights_update_group first"
                )
            received = group.receive([(tensor.name, tensor.dtype, tensor.shape) for tensor in source.tensors])
            return stage_tensors(self._loaded, self._options, received, progress)
        if source.content:
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
                copy.write(source.content)
                copy.flush()
                return self._read(WeightSource(file=copy.name), progress)
        if source.file:
            sent = SafetensorsCheckpoint([Path(source.file)], use_mmap=False)
            return stage_tensors(self._loaded, self._options, sent, progress)
        path = local_checkpoint(source.path, source.revision)
        # Read, not mapped: a file that is truncated under a mapping kills the process.
        found = open_checkpoint(path, source.load_format, use_mmap=False)
        return stage_checkpoint(self._loaded, self._options, found, path, progress)
