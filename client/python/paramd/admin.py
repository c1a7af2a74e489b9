"""An operator's view of a daemon: what ``paramctl`` does, from Python."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .handle import Handle


class Admin:
    """An observer of a daemon: asks and tells it things, pushes nothing.

    Each method returns the daemon's answer, the object that ``paramctl --json`` prints.

    Args:
        address: "host:port" of any rank; default $PARAMD_SERVER or "127.0.0.1:7070".
        timeout: deadline of each call (s); None: none.
        connect_timeout: how long an address that nobody answers at is tried (s).

    Raises:
        ConnectionFailedError, DeadlineError: nobody answers there.
        RefusedError: understood, but not offered (by the methods).
    """

    def __init__(
        self, address: str | None = None, *, timeout: float | None = 10.0, connect_timeout: float = 10.0
    ) -> None:
        self._handle = Handle(address, observer=True, timeout=timeout, connect_timeout=connect_timeout)

    def status(self) -> dict[str, Any]:
        """State, step, learning rates, workers, norms and more."""
        return self._handle.admin("status")

    def lr(self) -> dict[str, Any]:
        """The learning rate of each parameter group in the step to come."""
        return self._handle.admin("lr")

    def step(self) -> dict[str, Any]:
        """The step, the version of the parameters and the steps skipped."""
        return self._handle.admin("step")

    def history(self, begin: int = 0, count: int = 0) -> dict[str, Any]:
        """What `count` steps from `begin` on came to; without `begin`, the last ones."""
        return self._handle.admin("history", begin=begin, count=count)

    def schedule(self, begin: int = 0, count: int = 0) -> dict[str, Any]:
        """The learning rates from step `begin` on; 0: from the next step, as many as the daemon chooses."""
        return self._handle.admin("schedule", begin=begin, count=count)

    def workers(self) -> dict[str, Any]:
        """Who is connected."""
        return self._handle.admin("workers")

    def tensors(self) -> dict[str, Any]:
        """The model, the group of each tensor and the shards that hold it."""
        return self._handle.admin("tensors")

    def set_lr(self, lr: float | None, group: str | None = None) -> dict[str, Any]:
        """Set the learning rate of a group, or of all; None: return to the schedule."""
        return self._handle.admin("set-lr", target=group, value=lr)

    def pause(self) -> dict[str, Any]:
        """Close no further step until :meth:`resume`."""
        return self._handle.admin("pause")

    def resume(self) -> dict[str, Any]:
        """Go on after :meth:`pause`."""
        return self._handle.admin("resume")

    def checkpoint(self) -> dict[str, Any]:
        """Write the state to disk."""
        return self._handle.admin("checkpoint")

    def evict(self, worker: str | int) -> dict[str, Any]:
        """Go on without a worker, given by its name or number."""
        return self._handle.admin("evict", target=str(worker))

    def drain(self) -> dict[str, Any]:
        """End the running step and stop."""
        return self._handle.admin("drain")

    def stop(self) -> dict[str, Any]:
        """Stop at once."""
        return self._handle.admin("stop")

    def close(self) -> None:
        """Close the connection."""
        self._handle.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
