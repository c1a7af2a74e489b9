"""An operator's view of a daemon: what ``paramctl`` does, from Python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .errors import Error, RefusedError
from .handle import Handle

_POLL_SECONDS = 0.1
_REFUSED = 15  # enum paramd_status


class Admin:
    """An observer of a daemon: asks and tells it things, pushes nothing.

    Each method returns the daemon's answer, the object that ``paramctl --json`` prints. Of those that
    change something, "step" is the first with the change, and "text" says it in words.

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
        """All there is to know at a glance.

        Among others: state, step, version, lr, groups [{name, lr, weight_decay, ...}], workers [{id, name, state, step,
        samples, ...}], shards, effective_batch, loss, grad_norm, clip_scale, loss_scale, skipped_steps,
        last_skip_reason, waiting (for whom, if anybody waits), uptime_s. What is not known yet is None.
        """
        return self._handle.admin("status")

    def lr(self) -> dict[str, Any]:
        """The learning rate of each parameter group in the step to come: step, lr, groups [{name, lr, ...}]."""
        return self._handle.admin("lr")

    def step(self) -> dict[str, Any]:
        """Where the training is: step, version (of the parameters), skipped_steps."""
        return self._handle.admin("step")

    def history(self, begin: int = 0, count: int = 0) -> dict[str, Any]:
        """What `count` steps from `begin` on came to; without `begin`, the last ones.

        Returns:
            "rows", each with step, lr, grad_norm, clipped_norm, loss, effective_batch, skipped and
            metrics {name: value}; "kept", how many steps there are to ask for.
        """
        return self._handle.admin("history", begin=begin, count=count)

    def schedule(self, begin: int = 0, count: int = 0) -> dict[str, Any]:
        """The learning rates from step `begin` on; 0: from the next step, as many as the daemon chooses.

        Returns:
            begin, groups (their names), and by step a list with a number for each group: lrs, momenta.
        """
        return self._handle.admin("schedule", begin=begin, count=count)

    def workers(self) -> dict[str, Any]:
        """Who trains: workers [{id, name, state, step, samples, ...}]."""
        return self._handle.admin("workers")

    def tensors(self) -> dict[str, Any]:
        """The model, in the order of registration: tensors [{name, shape, elements, group, shards, ...}].

        ``paramd.torch.Optimizer`` registers the last parameter first.
        """
        return self._handle.admin("tensors")

    def set_lr(self, lr: float | None, group: str | None = None) -> dict[str, Any]:
        """Set the learning rate of a group, or of all; None: return to the schedule.

        Raises:
            InvalidError: there is no such group, or such a rate is not allowed.
        """
        return self._handle.admin("set-lr", target=group, value=lr)

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_iter: int = 100,
        *,
        group: str | None = None,
        smooth_f: float = 0.05,
        diverge_th: float = 4.0,
        skip_start: int = 10,
        skip_end: int = 5,
        debias: bool = False,
        exclude_end: bool = False,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Try `num_iter` learning rates with the workers' own steps, and wait until that is over.

        The loss is smoothed, and a diverging one ends it; then the daemon has its state of before again,
        to the bit. An exception here, such as KeyboardInterrupt, ends it as well.

        Args:
            group: sweep this parameter group alone; None: all, in the ratio they are configured in.
            smooth_f: weight of the last loss in the smoothed one.
            diverge_th: multiple of the least smoothed loss that ends it.
            skip_start, skip_end: points at the ends that are not suggested.
            debias: smooth from 0 and make up for it, as fastai does with a beta of 1 - smooth_f.
            exclude_end: stay one factor below `end_lr`.
            progress: called with each point as it comes: {"lr", "loss", "smoothed"}.

        Returns:
            The answer to :meth:`lr_curve`: the points in "rows", and "suggestion", the rate at which the
            loss falls fastest; None if it does not fall.

        Raises:
            RefusedError: no worker trains, or gives a loss; no memory for the state; or it was cancelled.
            InvalidError: an argument that is not allowed.
        """
        settings = {
            "start": float(start_lr),
            "end": float(end_lr),
            "steps": num_iter,
            "smooth_f": float(smooth_f),
            "diverge_th": float(diverge_th),
            "skip_start": skip_start,
            "skip_end": skip_end,
            "debias": str(bool(debias)).lower(),
            "exclude_end": str(bool(exclude_end)).lower(),
        }
        self._handle.admin("lr-find", target=group, settings=settings)
        try:
            self._follow(progress)
        except BaseException:
            with contextlib.suppress(Error):  # it may be over
                self.lr_cancel()
            raise
        curve = self.lr_curve()
        if curve["end"] not in ("finished", "diverged"):
            raise RefusedError(f"lr-find {curve['end']}: {curve['reason']}", _REFUSED)
        return curve

    def _follow(self, progress: Callable[[dict[str, Any]], None] | None) -> None:
        begin = 0
        while True:
            curve = self.lr_curve(begin)
            begin += len(curve["rows"])
            for point in curve["rows"]:
                if progress is not None:
                    progress(point)
            if curve["over"]:
                return
            time.sleep(_POLL_SECONDS)

    def lr_curve(self, begin: int = 0) -> dict[str, Any]:
        """What the last :meth:`lr_find` came to, or so far, with the points from `begin` on."""
        return self._handle.admin("lr-curve", begin=begin)

    def lr_cancel(self) -> dict[str, Any]:
        """End a search, whoever began it."""
        return self._handle.admin("lr-cancel")

    def pause(self) -> dict[str, Any]:
        """Close no further step until :meth:`resume`."""
        return self._handle.admin("pause")

    def resume(self) -> dict[str, Any]:
        """Go on after :meth:`pause`."""
        return self._handle.admin("resume")

    def checkpoint(self) -> dict[str, Any]:
        """Write the state to disk."""
        return self._handle.admin("checkpoint")

    def report_metric(self, name: str, value: float, step: int) -> None:
        """Report a number, such as a validation loss, measured with the parameters of version `step`.

        Plateau schedules and early stopping go by it; for a program that evaluates and trains nothing.

        Raises:
            StepError: that version does not exist yet.
        """
        self._handle.report_metric(name, value, step)

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
