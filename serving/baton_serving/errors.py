"""The errors of a worker and a gateway. The class decides the HTTP status and whether a retry can help.

BatonError
├── RequestError               the caller must change the request; never retried
│   ├── InvalidRequest         400  a field is wrong: names the field and the remedy
│   ├── NotFound               404  unknown model or route
│   ├── Unauthorized           401
│   ├── TooLarge               413  the body is over the limit
│   └── Cancelled              499  the client went away or asked for the abort
├── CapacityError              the same request may succeed later or elsewhere
│   ├── QueueFull              429
│   ├── Unavailable            503  draining, paused, no worker, peer lost
│   └── DeadlineExceeded       504
├── InternalError              500  a fault of ours; retried elsewhere at most once
└── ConfigError                start-up only: one line that says what to do, exit code 2
"""

from __future__ import annotations

from typing import ClassVar


class BatonError(Exception):
    """Root of the tree. `status` is the HTTP status, `code` the machine-readable reason."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(BatonError):
    """The caller must change the request."""

    status = 400
    code = "invalid_request_error"


class InvalidRequest(RequestError):
    """A field is wrong; `param` names it as the client wrote it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotFound(RequestError):
    status = 404
    code = "not_found"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"


class TooLarge(RequestError):
    status = 413
    code = "request_too_large"


class Cancelled(RequestError):
    status = 499
    code = "cancelled"


class CapacityError(BatonError):
    """The same request may succeed later or on another worker; `retry_after` is in seconds."""

    status = 503
    code = "unavailable"
    retryable = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(CapacityError):
    status = 429
    code = "queue_full"


class Unavailable(CapacityError):
    status = 503
    code = "unavailable"


class DeadlineExceeded(CapacityError):
    status = 504
    code = "deadline_exceeded"


class InternalError(BatonError):
    """A fault of ours."""

    retryable = True


class ConfigError(BatonError):
    """Start-up cannot go on; the message is one line that says what to do."""


ERRORS_BY_CODE: dict[str, type[BatonError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        NotFound,
        Unauthorized,
        TooLarge,
        Cancelled,
        QueueFull,
        Unavailable,
        DeadlineExceeded,
        InternalError,
    )
}


def error_from_code(code: str, message: str, param: str | None = None) -> BatonError:
    """The error that another process described by its code; an unknown code is a fault of ours."""
    cls = ERRORS_BY_CODE.get(code, InternalError)
    return InvalidRequest(message, param) if cls is InvalidRequest else cls(message)
