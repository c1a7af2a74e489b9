"""One handle of the C library: its calls as methods, its statuses as exceptions.

client, admin, torch -> [handle] -> library. Arrays are plain addresses here: an array of pointers,
one per tensor in the order of registration, made by :func:`pointers`.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from . import library
from .errors import INTERRUPTED, Error, InvalidError, from_status

# How long a worker that ends without saying so takes to tell the daemon.
_LEAVE_SECONDS = 5.0


def pointers(addresses: Sequence[int | None]) -> Any:
    """A C array of pointers; None becomes NULL."""
    return (ctypes.c_void_p * len(addresses))(*addresses)


def _watch(raised: list[BaseException]) -> Generator[int, Any, None]:
    """Answer whether to end the call: 1 once a signal's handler has raised.

    Python runs handlers as this generator goes on, that is inside `try`; a function could be hit
    on its first line, where nothing catches what the handler raises.
    """
    answer = 0
    while True:
        try:
            yield answer
            answer = 0
        except GeneratorExit:
            return
        except BaseException as exception:
            raised.append(exception)
            answer = 1


def _milliseconds(seconds: float | None) -> int:
    return -1 if seconds is None else round(seconds * 1000)


class Handle:
    """A connection as a worker or as an observer. Safe to share between threads: calls take turns."""

    def __init__(
        self,
        address: str | None = None,
        name: str | None = None,
        *,
        observer: bool = False,
        push_dtype: str = "float32",
        pull_dtype: str = "float32",
        checksum: bool = True,
        timeout: float | None = 60.0,
        connect_timeout: float = 10.0,
        busy_poll_us: int = 50,
    ) -> None:
        self._pointer = ctypes.c_void_p()
        self._library = library.load()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._raised: list[BaseException] = []
        self._watcher = _watch(self._raised)
        next(self._watcher)
        self._callback = library.Interrupted(self._watcher.send)
        self.joined = False
        for dtype in (push_dtype, pull_dtype):
            if dtype not in library.DTYPES:
                raise ValueError(f"wire type {dtype!r}; allowed: {', '.join(library.DTYPES)}")
        options = library.Options()
        self._library.paramd_options_init(ctypes.byref(options))
        if address is not None:
            options.address = address.encode()
        if name is not None:
            options.name = name.encode()
        options.observer = observer
        options.push_dtype = library.DTYPES[push_dtype]
        options.pull_dtype = library.DTYPES[pull_dtype]
        options.checksum = checksum
        options.timeout_ms = _milliseconds(timeout)
        options.connect_timeout_ms = _milliseconds(connect_timeout)
        options.busy_poll_us = busy_poll_us
        options.interrupted = self._callback
        self._timeout = timeout
        self.address = options.address.decode()
        error = library.Error()
        status = self._library.paramd_connect(
            ctypes.byref(options), ctypes.byref(self._pointer), ctypes.byref(error)
        )
        self._settle(status, error)
        self.joined = not observer
        _living.add(self)

    def _settle(self, status: int, error: library.Error) -> None:
        if status == INTERRUPTED and self._raised:
            raised = self._raised[:]
            self._raised.clear()
            raise raised[0]
        if status != 0:
            raise from_status(status, error.message.decode(errors="replace"))

    def _call(self, function: Any, *arguments: Any) -> None:
        error = library.Error()
        with self._lock:
            if not self._pointer:
                raise InvalidError("this client is closed", 6)
            status = function(self._pointer, *arguments, ctypes.byref(error))
        self._settle(status, error)

    def register(self, names: Sequence[str], shapes: Sequence[Sequence[int]], values: Any) -> None:
        """Offer the model; the float32 arrays that `values` points to end as the current ones."""
        tensors = (library.Tensor * len(names))()
        for tensor, name, shape in zip(tensors, names, shapes):
            tensor.name = name.encode()
            tensor.dimension_count = len(shape)
            tensor.shape = (ctypes.c_uint64 * len(shape))(*shape)
        self._call(self._library.paramd_register, tensors, len(names), values)

    def push(self, gradients: Any, samples: int, loss: float | None, flags: int) -> None:
        """Give one micro-batch."""
        self._call(self._library.paramd_push, gradients, samples, _loss(loss), flags)

    def push_hessian(self, estimates: Any, samples: int, flags: int) -> None:
        """An estimate of the Hessian."""
        self._call(self._library.paramd_push_hessian, estimates, samples, flags)

    def pull(self, min_version: int, values: Any) -> int:
        """Get the parameters of one version into `values`; returns the version."""
        version = ctypes.c_uint64()
        self._call(self._library.paramd_pull, min_version, values, ctypes.byref(version))
        return version.value

    def pull_average(self, values: Any) -> int:
        """Get the averaged parameters into `values`; returns the version they are of."""
        version = ctypes.c_uint64()
        self._call(self._library.paramd_pull_average, values, ctypes.byref(version))
        return version.value

    def step(self, gradients: Any, samples: int, loss: float | None, flags: int, values: Any) -> library.StepInfo:
        """Push, and with the last micro-batch of a step pull what it makes."""
        info = library.StepInfo()
        self._call(self._library.paramd_step, gradients, samples, _loss(loss), flags, values, ctypes.byref(info))
        return info

    def step_begin(self, gradients: Any, samples: int, loss: float | None, flags: int, values: Any) -> None:
        """Begin a step whose gradients leave as they become ready; both arrays are borrowed until its end."""
        self._call(self._library.paramd_step_begin, gradients, samples, _loss(loss), flags, values)

    def step_ready(self, tensor_count: int) -> None:
        """The gradients of the first tensors are final. Called between begin and end by one thread alone."""
        self._library.paramd_step_ready(self._open(), tensor_count)

    def step_end(self) -> library.StepInfo:
        """All gradients are final: wait for what the step comes to."""
        info = library.StepInfo()
        self._call(self._library.paramd_step_end, ctypes.byref(info))
        return info

    def step_cancel(self) -> None:
        """Take back what was begun."""
        with self._lock:
            if self._pointer:
                self._library.paramd_step_cancel(self._pointer)

    def report_metric(self, name: str, value: float, step: int) -> None:
        """Report a number measured with the parameters of version `step`."""
        self._call(self._library.paramd_report_metric, name.encode(), value, step)

    def admin(
        self,
        command: str,
        *,
        target: str | None = None,
        value: float | None = None,
        begin: int = 0,
        count: int = 0,
        settings: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Ask or tell the daemon something; returns its answer."""
        asked = library.Command(command=command.encode(), begin=begin, count=count)
        if settings is not None:
            texts = [f"{key}={value}".encode() for key, value in settings.items()]
            asked.settings = (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
        if target is not None:
            asked.target = target.encode()
        if value is not None:
            asked.has_value = 1
            asked.value = value
        answer = ctypes.c_void_p()
        self._call(self._library.paramd_admin, ctypes.byref(asked), ctypes.byref(answer))
        try:
            reply: dict[str, Any] = json.loads(ctypes.string_at(answer.value or 0))
            return reply
        finally:
            self._library.paramd_free(answer)

    def leave(self) -> None:
        """Say that this worker pushes no more."""
        if self.joined:
            self._call(self._library.paramd_leave)
            self.joined = False

    def abandon(self) -> None:
        """Leave if that can be done quickly, and close."""
        if self.joined and self._pointer and self._pid == os.getpid():
            try:
                self.step_cancel()
                self.set_timeout(_LEAVE_SECONDS)
                self.leave()
            except Error:
                pass
        self.close()

    def is_waiting(self) -> bool:
        """Whether a call is under way."""
        return self._lock.locked()

    def close(self) -> None:
        """Close the connections. In a forked child the handle is the parent's and is left alone."""
        _living.discard(self)
        if self._pointer and self._pid == os.getpid():
            with self._lock:
                pointer, self._pointer = self._pointer, ctypes.c_void_p()
                self._library.paramd_close(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) and self._pid == os.getpid():
            self._library.paramd_close(self._pointer)

    def set_timeout(self, timeout: float | None) -> None:
        """Replace the deadline (s) of the calls to come; None: none."""
        with self._lock:
            self._library.paramd_set_timeout(self._open(), _milliseconds(timeout))

    def _open(self) -> ctypes.c_void_p:
        if not self._pointer:
            raise InvalidError("this client is closed", 6)
        return self._pointer

    @property
    def name(self) -> str:
        return str(self._library.paramd_worker_name(self._open()), "utf-8")

    @property
    def worker_id(self) -> int:
        return int(self._library.paramd_worker_id(self._open()))

    @property
    def run_id(self) -> int:
        return int(self._library.paramd_run_id(self._open()))

    @property
    def next_step(self) -> int:
        return int(self._library.paramd_next_step(self._open()))

    @property
    def loss_scale(self) -> float:
        return float(self._library.paramd_loss_scale(self._open()))

    @property
    def next_micro_batch(self) -> int:
        return int(self._library.paramd_next_micro_batch(self._open()))

    @property
    def accumulation_steps(self) -> int:
        return int(self._library.paramd_accumulation_steps(self._open()))

    @property
    def rank_count(self) -> int:
        return int(self._library.paramd_rank_count(self._open()))

    def group_lrs(self) -> list[float]:
        """By parameter group, in the step that made the version got last; empty before the first step."""
        count = self._library.paramd_group_count(self._open())
        return [self._library.paramd_group_lr(self._open(), index) for index in range(count)]

    def lanes(self) -> list[tuple[int, str, int, int]]:
        """Rank, address, first element and element count of each part of the flat model."""
        count = self._library.paramd_lane_count(self._open())
        lanes = [self._library.paramd_lane_at(self._open(), index) for index in range(count)]
        return [(lane.rank, lane.address.decode(), lane.element_begin, lane.element_count) for lane in lanes]


def _loss(loss: float | None) -> Any:
    return None if loss is None else ctypes.byref(ctypes.c_double(loss))


_living: weakref.WeakSet[Handle] = weakref.WeakSet()


@atexit.register
def _leave_all() -> None:
    """A program that ends, by an exception too, leaves: the other workers need not wait for it."""
    for handle in list(_living):
        if not handle.is_waiting():  # a thread that does not end with the program has it
            handle.abandon()
