"""A worker with numpy arrays: give gradients, get parameters.

    with paramd.Client("127.0.0.1:7070") as client:
        parameters = client.register({"w": w, "b": b})
        for images, labels in batches:
            loss, gradients = compute(parameters, images, labels)
            parameters = client.step(gradients, samples=len(images), loss=loss, out=parameters)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import library
from .errors import InvalidError
from .handle import Handle, pointers

Arrays = dict[str, NDArray[np.float32]]

NEXT = -1
"""For ``min_version``: one more than the version this client got last."""


class Client:
    """A worker connected to a daemon.

    Gradients and parameters are dictionaries from tensor name to array. On the wire they have the
    type `wire_dtype`; in memory they are float32. A C-contiguous float32 array is read, or as `out`
    filled, where it is: it is not copied. Others are converted first.

    Every call blocks until it is done, its deadline passes (:class:`DeadlineError`) or a signal's
    handler raises, such as Ctrl-C; the GIL is released meanwhile. A lost connection is made again
    within the deadline and no gradient counts twice. Calls from several threads take turns.

    As a context manager it leaves at the end, also after an exception, so that the other workers go
    on. So does a program that ends without calling :meth:`leave`.

    Args:
        address: "host:port" of any rank; default $PARAMD_SERVER or "127.0.0.1:7070".
        name: unique among live workers, orders the sum; None: the daemon chooses.
        wire_dtype: "float32", "bfloat16" or "float16": gradients on the wire.
        pull_dtype: of parameters on the wire; None: as `wire_dtype`.
        checksum: sum payloads at both ends.
        timeout: deadline of each call (s); None: none.
        connect_timeout: how long an address that nobody answers at is tried (s).
        busy_poll_us: how long a call may look for its answer before it sleeps (microseconds), which makes
            steps of small models faster; done as long as answers come in time. 0: not at all.

    Raises:
        ConnectionFailedError, DeadlineError: nobody answers there.
        IdentityError: the name is taken.
        DrainingError: the daemon is stopping.
        LibraryNotFoundError: the C library cannot be loaded.
    """

    def __init__(
        self,
        address: str | None = None,
        name: str | None = None,
        wire_dtype: str = "float32",
        *,
        pull_dtype: str | None = None,
        checksum: bool = True,
        timeout: float | None = 60.0,
        connect_timeout: float = 10.0,
        busy_poll_us: int = 50,
    ) -> None:
        self._handle = Handle(
            address,
            name,
            push_dtype=wire_dtype,
            pull_dtype=pull_dtype or wire_dtype,
            checksum=checksum,
            timeout=timeout,
            connect_timeout=connect_timeout,
            busy_poll_us=busy_poll_us,
        )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._version = 0
        self._lr = 0.0
        self._skipped_steps = 0
        self._stop_advised = False

    # ---- Training ----

    def register(self, arrays: Mapping[str, Any], out: Arrays | None = None) -> Arrays:
        """Offer the model and get the current parameters.

        The first worker's offer makes the model, and its values the initial parameters; every other
        must agree in names, shapes and order. Once per client.

        Args:
            arrays: initial values by name, of any shape of at most 8 dimensions, converted to float32.
            out: float32 arrays to fill; None: new ones.

        Returns:
            The current parameters, float32, in the order of registration.

        Raises:
            ModelError: names the first tensor that differs from the model the daemon has.
            TypeError, ValueError: an array that is not allowed.
        """
        if self._shapes:
            raise InvalidError("register: done already with this client", 6)
        shapes = {name: np.shape(array) for name, array in arrays.items()}
        filled = {name: np.empty(shape, np.float32) for name, shape in shapes.items()} if out is None else out
        values = self._targets(shapes, filled)
        for name, array in arrays.items():
            if filled[name] is not array:
                np.copyto(filled[name], array, casting="same_kind")
        self._handle.register(list(shapes), list(shapes.values()), values)
        self._shapes = shapes
        self._version = self._handle.next_step
        return {name: filled[name] for name in shapes}

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        samples: int,
        loss: float | None = None,
        last: bool = False,
        scaled: bool = False,
    ) -> None:
        """Give the gradient of one micro-batch: the mean over its samples.

        The client counts micro-batches; the ``accumulation_steps``-th of a step closes the
        contribution. The next push belongs to the next step, whose parameters must be pulled first.

        Args:
            gradients: by name, of the registered shapes. A name left out, or None, has no gradient: a
                tensor that no worker has one for is left alone by the step.
            samples: the weight in the average over the workers.
            loss: the mean over the samples, for the daemon's status.
            last: close the contribution with this micro-batch, though more were expected.
            scaled: the gradients are those of the loss times :attr:`loss_scale`; the daemon divides them.

        Raises:
            StepError, IdentityError, DrainingError, DeadlineError, ConnectionFailedError.
            TypeError, ValueError: an array that is not allowed.
        """
        sources, _kept = self._sources(gradients)
        self._handle.push(sources, _count(samples), loss, _flags(last, scaled))

    def push_hessian(
        self, estimates: Mapping[str, Any], *, samples: int, last: bool = False, scaled: bool = False
    ) -> None:
        """Give one micro-batch of an estimate of the Hessian with the next step, for ``sophia_g``.

        Call it every few steps, before the step's last :meth:`push` or :meth:`step`. The step takes the
        average over the workers that give one; a step without estimates goes on with the last one.

        Args:
            estimates: by name: for ``sophia_g`` the gradients of the loss at labels drawn from the model's own
                predictions, the mean over the samples; the daemon squares their average. A name left out, or
                None, leaves the tensor's estimate as it is.
            samples: the weight in the average over the workers.
            last: close the estimate with this micro-batch, though more were expected.
            scaled: the gradients are those of the loss times :attr:`loss_scale`; the daemon divides them.

        Raises:
            RefusedError: the optimizer uses no such estimate.
            StepError: the estimate, or the gradient, of this step is complete.
            Those of :meth:`push`.
        """
        sources, _kept = self._sources(estimates)
        self._handle.push_hessian(sources, _count(samples), _flags(last, scaled))

    def pull(self, out: Arrays | None = None, min_version: int | None = None) -> Arrays:
        """Get the parameters of one whole version.

        Args:
            out: float32 arrays to fill; None: new ones.
            min_version: wait until this version exists; :data:`NEXT`: one more than the last one got;
                None: whatever is served now.

        Returns:
            The parameters; :attr:`version` says of which version.

        Raises:
            StepError: min_version is more than one beyond what exists.
            DrainingError, DeadlineError, ConnectionFailedError.
        """
        filled = self._outputs(out)
        values = self._targets(self._shapes, filled)
        wanted = library.CURRENT if min_version is None else library.NEXT if min_version == NEXT else min_version
        self._version = self._handle.pull(wanted, values)
        return filled

    def step(
        self,
        gradients: Mapping[str, Any],
        *,
        samples: int,
        loss: float | None = None,
        out: Arrays | None = None,
        last: bool = False,
        scaled: bool = False,
    ) -> Arrays | None:
        """Push, and with the last micro-batch of a step wait for the new parameters, in one round trip.

        Args:
            gradients, samples, loss, last, scaled: as in :meth:`push`.
            out: float32 arrays to fill; None: new ones. Untouched when None is returned.

        Returns:
            The new parameters, or None while more micro-batches of this step are to come.

        Raises:
            Those of :meth:`push` and :meth:`pull`.
        """
        sources, _kept = self._sources(gradients)
        filled = self._outputs(out)
        values = self._targets(self._shapes, filled)
        info = self._handle.step(sources, _count(samples), loss, _flags(last, scaled), values)
        self._version = info.version
        self._lr = info.lr
        self._skipped_steps = info.skipped_steps
        self._stop_advised = bool(info.stop)
        return filled if info.pulled else None

    def pull_average(self, out: Arrays | None = None) -> Arrays:
        """Get the averaged parameters (ema or swa of the configuration) of the version served now.

        The next step is not affected, nor is :attr:`version`.

        Args:
            out: float32 arrays to fill; None: new ones.

        Raises:
            RefusedError: the daemon keeps no average.
        """
        filled = self._outputs(out)
        self._handle.pull_average(self._targets(self._shapes, filled))
        return filled

    # ---- Asking and ending ----

    def status(self) -> dict[str, Any]:
        """The daemon's status, as ``paramctl status --json`` prints it."""
        return self._handle.admin("status")

    def report_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Report a number such as a validation loss, which plateau schedules and early stopping go by.

        Args:
            name: what it is; one worker reports each name.
            value: the number.
            step: the version of the parameters it was measured with; None: the last one got.

        Raises:
            StepError: that version does not exist yet.
        """
        self._handle.report_metric(name, value, self._version if step is None else step)

    def leave(self) -> None:
        """Say that this worker pushes no more. What was pushed still counts; the others go on."""
        self._handle.leave()

    def close(self) -> None:
        """Close the connections. A worker that did not leave is evicted after the configured time."""
        self._handle.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._handle.abandon()
            return
        try:
            self.leave()
        finally:
            self.close()

    # ---- What is known without asking ----

    @property
    def version(self) -> int:
        """Of the parameters got last: steps closed until then."""
        return self._version

    @property
    def lr(self) -> float:
        """Learning rate of the first group in the last :meth:`step`."""
        return self._lr

    @property
    def skipped_steps(self) -> int:
        """Steps that left the parameters alone, as of the last :meth:`step`."""
        return self._skipped_steps

    @property
    def stop_advised(self) -> bool:
        """Whether the daemon's early_stop advised to end the training, with the last :meth:`step`."""
        return self._stop_advised

    @property
    def loss_scale(self) -> float:
        """What to multiply the loss by before its gradients are pushed with ``scaled=True``; 1 without scaling."""
        return self._handle.loss_scale

    @property
    def name(self) -> str:
        """Of this worker."""
        return self._handle.name

    @property
    def worker_id(self) -> int:
        """Number of this worker; never used again in this run."""
        return self._handle.worker_id

    @property
    def run_id(self) -> int:
        """Names this launch of the daemon."""
        return self._handle.run_id

    @property
    def next_step(self) -> int:
        """The step that the next push is for."""
        return self._handle.next_step

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one contribution, at least 1."""
        return self._handle.accumulation_steps

    @property
    def shards(self) -> int:
        """Ranks of the daemon."""
        return self._handle.rank_count

    # ---- Arrays ----

    def _sources(self, gradients: Mapping[str, Any]) -> tuple[Any, list[NDArray[np.float32]]]:
        """Pointers in the order of registration, and the arrays they point into."""
        unknown = [name for name in gradients if name not in self._shapes]
        if unknown:
            raise ValueError(f"no tensor is registered as {unknown[0]!r}")
        kept: list[NDArray[np.float32]] = []
        addresses: list[int | None] = []
        for name, shape in self._shapes.items():
            gradient = gradients.get(name)
            if gradient is None:
                addresses.append(None)
                continue
            array = np.require(gradient, np.float32, ["C", "A"])
            if np.shape(gradient) != shape:
                raise ValueError(f"gradient of {name!r} has shape {np.shape(gradient)}, registered was {shape}")
            kept.append(array)
            addresses.append(array.ctypes.data)
        return pointers(addresses), kept

    def _outputs(self, out: Arrays | None) -> Arrays:
        if out is not None:
            return out
        return {name: np.empty(shape, np.float32) for name, shape in self._shapes.items()}

    @staticmethod
    def _targets(shapes: Mapping[str, tuple[int, ...]], out: Arrays) -> Any:
        """Pointers to arrays that can be filled where they are."""
        if out.keys() != shapes.keys():
            odd = sorted(out.keys() ^ shapes.keys())
            raise ValueError(f"out must hold an array for each tensor and no others; see {odd[0]!r}")
        for name, shape in shapes.items():
            array = out[name]
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                raise TypeError(f"out[{name!r}] is not a numpy array of float32")
            if array.shape != shape:
                raise ValueError(f"out[{name!r}] has shape {array.shape}, registered was {shape}")
            if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
                raise ValueError(f"out[{name!r}] is not contiguous, aligned and writeable")
        return pointers([out[name].ctypes.data for name in shapes])


def _flags(last: bool, scaled: bool) -> int:
    return library.LAST * last | library.SCALED * scaled


def _count(samples: int) -> int:
    if samples < 0:
        raise ValueError(f"samples {samples}; allowed: 0 or more")
    return int(samples)
