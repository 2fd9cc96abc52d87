from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
    ROLE_BOTH: _ClassVar[Role]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_STARTING: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_DRAINING: _ClassVar[State]
    STATE_STALLED: _ClassVar[State]

class Departure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPARTURE_UNSPECIFIED: _ClassVar[Departure]
    DEPARTURE_LEFT: _ClassVar[Departure]
    DEPARTURE_BROKEN: _ClassVar[Departure]
    DEPARTURE_EXPIRED: _ClassVar[Departure]

class Goal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GOAL_UNSPECIFIED: _ClassVar[Goal]
    GOAL_SERVE: _ClassVar[Goal]
    GOAL_STAGE: _ClassVar[Goal]
    GOAL_SWITCH: _ClassVar[Goal]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_SERVING: _ClassVar[Phase]
    PHASE_STAGING: _ClassVar[Phase]
    PHASE_STAGED: _ClassVar[Phase]
    PHASE_HOLDING: _ClassVar[Phase]
    PHASE_SWITCHING: _ClassVar[Phase]
    PHASE_FAILED: _ClassVar[Phase]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
ROLE_BOTH: Role
STATE_UNSPECIFIED: State
STATE_STARTING: State
STATE_READY: State
STATE_DRAINING: State
STATE_STALLED: State
DEPARTURE_UNSPECIFIED: Departure
DEPARTURE_LEFT: Departure
DEPARTURE_BROKEN: Departure
DEPARTURE_EXPIRED: Departure
GOAL_UNSPECIFIED: Goal
GOAL_SERVE: Goal
GOAL_STAGE: Goal
GOAL_SWITCH: Goal
PHASE_UNSPECIFIED: Phase
PHASE_SERVING: Phase
PHASE_STAGING: Phase
PHASE_STAGED: Phase
PHASE_HOLDING: Phase
PHASE_SWITCHING: Phase
PHASE_FAILED: Phase

class Worker(_message.Message):
    __slots__ = ("id", "incarnation", "epoch", "role", "http_url", "grpc_url", "control", "keys", "model", "weight_digest", "engine_digest", "tp_size", "pp_size", "page_size", "dtype", "max_total_tokens", "detail", "process", "control_key")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HTTP_URL_FIELD_NUMBER: _ClassVar[int]
    GRPC_URL_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PP_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_KEY_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: str
    epoch: int
    role: Role
    http_url: str
    grpc_url: str
    control: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    model: str
    weight_digest: str
    engine_digest: str
    tp_size: int
    pp_size: int
    page_size: int
    dtype: str
    max_total_tokens: int
    detail: bytes
    process: str
    control_key: str
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., http_url: _Optional[str] = ..., grpc_url: _Optional[str] = ..., control: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., weight_digest: _Optional[str] = ..., engine_digest: _Optional[str] = ..., tp_size: _Optional[int] = ..., pp_size: _Optional[int] = ..., page_size: _Optional[int] = ..., dtype: _Optional[str] = ..., max_total_tokens: _Optional[int] = ..., detail: _Optional[bytes] = ..., process: _Optional[str] = ..., control_key: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "queued_tokens", "free_pages", "total_pages", "prompt_tokens", "prompt_seconds", "answer_tokens", "answer_seconds")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    running: int
    queued_tokens: int
    free_pages: int
    total_pages: int
    prompt_tokens: int
    prompt_seconds: float
    answer_tokens: int
    answer_seconds: float
    def __init__(self, running: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., free_pages: _Optional[int] = ..., total_pages: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., prompt_seconds: _Optional[float] = ..., answer_tokens: _Optional[int] = ..., answer_seconds: _Optional[float] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("state", "load", "progress", "share")
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    state: State
    load: Load
    progress: Progress
    share: int
    def __init__(self, state: _Optional[_Union[State, str]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., share: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("revision", "model", "model_revision", "digest", "goal", "whole", "share", "role")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    revision: str
    model: str
    model_revision: str
    digest: str
    goal: Goal
    whole: bool
    share: int
    role: Role
    def __init__(self, revision: _Optional[str] = ..., model: _Optional[str] = ..., model_revision: _Optional[str] = ..., digest: _Optional[str] = ..., goal: _Optional[_Union[Goal, str]] = ..., whole: _Optional[bool] = ..., share: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("revision", "phase", "digest", "done", "total", "error", "gap_seconds")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    GAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    revision: str
    phase: Phase
    digest: str
    done: int
    total: int
    error: str
    gap_seconds: float
    def __init__(self, revision: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., digest: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., error: _Optional[str] = ..., gap_seconds: _Optional[float] = ...) -> None: ...

class AssignRequest(_message.Message):
    __slots__ = ("assignments",)
    class AssignmentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Assignment
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Assignment, _Mapping]] = ...) -> None: ...
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    assignments: _containers.MessageMap[str, Assignment]
    def __init__(self, assignments: _Optional[_Mapping[str, Assignment]] = ...) -> None: ...

class AssignReply(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class WaitingRequest(_message.Message):
    __slots__ = ("gateway", "requests")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    requests: int
    def __init__(self, gateway: _Optional[str] = ..., requests: _Optional[int] = ...) -> None: ...

class WaitingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AssignedRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class AssignedReply(_message.Message):
    __slots__ = ("assignment",)
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("state", "load", "tick", "busy_seconds", "progress", "links")
    class LinksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    state: State
    load: Load
    tick: int
    busy_seconds: float
    progress: Progress
    links: _containers.ScalarMap[str, float]
    def __init__(self, state: _Optional[_Union[State, str]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., tick: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., links: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("hello", "beat", "leave")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    beat: Beat
    leave: Leave
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker", "beat")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    beat: Beat
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("accepted", "ack")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    ack: BeatAck
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., ack: _Optional[_Union[BeatAck, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("instance", "lease_seconds", "beat_seconds")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    lease_seconds: float
    beat_seconds: float
    def __init__(self, instance: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., beat_seconds: _Optional[float] = ...) -> None: ...

class BeatAck(_message.Message):
    __slots__ = ("assignment",)
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchEvent(_message.Message):
    __slots__ = ("snapshot", "delta")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    delta: Delta
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("worker", "status")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    status: Status
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("instance", "revision", "warming", "quiet_seconds", "entries")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WARMING_FIELD_NUMBER: _ClassVar[int]
    QUIET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    instance: str
    revision: int
    warming: bool
    quiet_seconds: float
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, instance: _Optional[str] = ..., revision: _Optional[int] = ..., warming: _Optional[bool] = ..., quiet_seconds: _Optional[float] = ..., entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("base", "revision", "warming", "joined", "changed", "removed")
    BASE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WARMING_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    base: int
    revision: int
    warming: bool
    joined: _containers.RepeatedCompositeFieldContainer[Entry]
    changed: _containers.RepeatedCompositeFieldContainer[StatusChange]
    removed: _containers.RepeatedCompositeFieldContainer[Removal]
    def __init__(self, base: _Optional[int] = ..., revision: _Optional[int] = ..., warming: _Optional[bool] = ..., joined: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., changed: _Optional[_Iterable[_Union[StatusChange, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[Removal, _Mapping]]] = ...) -> None: ...

class StatusChange(_message.Message):
    __slots__ = ("id", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: Status
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: Departure
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[_Union[Departure, str]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("entries", "warming")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    WARMING_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    warming: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., warming: _Optional[bool] = ...) -> None: ...
