"""What a call of the C library came to, as exceptions.

Each carries the library's one-line message unchanged: what failed, where, and what is allowed.
"""

from __future__ import annotations


class Error(Exception):
    """Any failure told by libparamd.

    Attributes:
        status: number of ``enum paramd_status`` in ``paramd.h``.
    """

    status: int

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class LibraryNotFoundError(Error, ImportError):
    """The C library cannot be loaded; the message lists the places that were tried."""


class OutOfMemoryError(Error, MemoryError):
    """An allocation failed, here or in the daemon."""


class InvalidError(Error, ValueError):
    """An argument that is not allowed, or a call that is not allowed yet."""


class ModelError(Error, ValueError):
    """The tensors disagree with the model the daemon has; the first that differs is named."""


class StepError(Error, ValueError):
    """A step from the past or the future."""


class IdentityError(Error):
    """Evicted, the name is taken, or the daemon was restarted: join again with a new client."""


class DrainingError(Error):
    """The daemon is stopping: no further step will close."""


class DeadlineError(Error, TimeoutError):
    """The deadline passed. The call may be repeated with the same arguments."""


class ConnectionFailedError(Error, ConnectionError):
    """No connection could be made. The call may be repeated with the same arguments."""


class RefusedError(Error):
    """Understood, but not offered in this state, configuration or version."""


class InterruptedCallError(Error):
    """The call was ended from outside. It may be repeated with the same arguments."""


INTERRUPTED = 100

_BY_STATUS: dict[int, type[Error]] = {
    1: OutOfMemoryError,
    6: InvalidError,
    7: ModelError,
    8: StepError,
    9: IdentityError,
    10: DrainingError,
    11: DeadlineError,
    12: ConnectionFailedError,
    13: RefusedError,
    15: RefusedError,
    INTERRUPTED: InterruptedCallError,
}


def from_status(status: int, message: str) -> Error:
    """The exception for a status of the library; :class:`Error` itself for the rarer ones."""
    return _BY_STATUS.get(status, Error)(message, status)
