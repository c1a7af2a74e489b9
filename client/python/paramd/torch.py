"""A torch optimizer whose steps a daemon takes, for all workers together.

    optimizer = paramd.torch.Optimizer(model, "127.0.0.1:7070", samples_per_step=32)
    for images, labels in batches:
        optimizer.zero_grad()
        loss_function(model(images), labels).backward()
        optimizer.step()

Every worker runs this loop on its own part of the data; all have the same parameters after each
step. The rule, the learning rate and its schedule, clipping and accumulation are the daemon's.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch

from . import library
from .errors import InvalidError
from .handle import Handle, pointers

# Steps begun in vain before gradients are sent after backward() only.
_MISSES_MAX = 3


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the C library can read or fill the tensor where it is."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )


class _Slot:
    """One tensor of the model: a parameter, and what of its gradient has been handed out.

    Parameters and gradients that are not plain float32 pass through buffers that are.
    """

    def __init__(self, name: str, parameter: torch.nn.Parameter) -> None:
        self.name = name
        self.parameter = parameter
        self.value_buffer: torch.Tensor | None = None
        self.gradient_buffer: torch.Tensor | None = None
        self.arrivals = 0  # times that backward() has added to the gradient since the last step
        self.expected: int | None = None  # the same in the step before; None: it had no gradient
        self.sent: torch.Tensor | None = None  # the gradient as it was handed out, kept alive
        self.sent_version = 0

    def _buffer(self) -> torch.Tensor:
        return torch.empty(self.parameter.shape, dtype=torch.float32)

    def value_address(self, fill: bool) -> int:
        """Where the C library puts the value; with `fill`, it is there already."""
        value = self.parameter.detach()
        if _is_plain(value):
            self.value_buffer = None
            return value.data_ptr()
        if self.value_buffer is None:
            self.value_buffer = self._buffer()
        if fill:
            self.value_buffer.copy_(value)
        return self.value_buffer.data_ptr()

    def gradient_address(self) -> int | None:
        """Where the C library reads the gradient; None: there is none."""
        gradient = self.parameter.grad
        self.sent = gradient
        if gradient is None:
            return None
        self.sent_version = gradient._version
        gradient = gradient.detach()
        if _is_plain(gradient):
            return gradient.data_ptr()
        if self.gradient_buffer is None:
            self.gradient_buffer = self._buffer()
        self.gradient_buffer.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
        return self.gradient_buffer.data_ptr()

    def is_as_sent(self) -> bool:
        gradient = self.parameter.grad
        return gradient is self.sent and (gradient is None or gradient._version == self.sent_version)


class Optimizer(torch.optim.Optimizer):
    """Push gradients to a daemon, and put the parameters that it makes of them into the model.

    Gradients leave during ``backward()``, as they become ready, once a first step has shown which
    parameters get one; what changes between ``backward()`` and :meth:`step` is noticed, and sent again
    whole (but not a change through ``.grad.data``: see `overlap`).

    A parameter shared by several modules is one tensor. Parameters that need no gradient when this is
    made are not registered and stay what they are, also when they need one later. A parameter whose ``.grad`` is None in every worker
    is left alone by a step. Sparse gradients are made dense. The daemon keeps float32 values:
    parameters of other types or devices get them converted.

    ``param_groups`` show the daemon's groups and their learning rates in the step just taken (before the
    first, in the one to come). Setting them here has no effect.

    A ``GradScaler`` works as usual, except that a step with non-finite gradients is not left out here
    alone: the daemon skips it, for all workers. Its own loss scaling needs no GradScaler, see
    :meth:`scale`.

    Args:
        model: a module, or pairs of name and parameter, such as ``module.named_parameters()``. Names and
            shapes must agree among the workers. The first worker's values are the initial ones.
        address: "host:port" of any rank; default $PARAMD_SERVER or "127.0.0.1:7070".
        samples_per_step: samples in one :meth:`step` of this worker, the weight of its gradient, which is
            their mean; :meth:`describe` gives others.
        name: unique among live workers, orders the sum; None: the daemon chooses.
        wire_dtype: "float32", "bfloat16" or "float16": gradients on the wire.
        pull_dtype: of parameters on the wire; None: as `wire_dtype`.
        overlap: send during ``backward()``; False: in :meth:`step`. Needed when ``.grad.data`` is changed
            in between.
        bucket_bytes: gradients are handed out once so much of them is ready.
        checksum, timeout, connect_timeout, busy_poll_us: as in :class:`paramd.Client`.

    Raises:
        ValueError: no parameter needs a gradient, or one is not of floating point.
        Those of :class:`paramd.Client` and its ``register``.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves the decision to skip to step()

    def __init__(
        self,
        model: torch.nn.Module | Iterable[tuple[str, torch.nn.Parameter]],
        address: str | None = None,
        *,
        samples_per_step: int,
        name: str | None = None,
        wire_dtype: str = "float32",
        pull_dtype: str | None = None,
        overlap: bool = True,
        bucket_bytes: int = 1 << 20,
        checksum: bool = True,
        timeout: float | None = 60.0,
        connect_timeout: float = 10.0,
        busy_poll_us: int = 50,
    ) -> None:
        self._registered = False
        self._slots, self._frozen = _slots_of(model)
        self._samples_per_step = samples_per_step
        self._bucket_bytes = bucket_bytes
        self._handle = handle = Handle(
            address,
            name,
            push_dtype=wire_dtype,
            pull_dtype=pull_dtype or wire_dtype,
            checksum=checksum,
            timeout=timeout,
            connect_timeout=connect_timeout,
            busy_poll_us=busy_poll_us,
        )
        try:
            self._register()
            super().__init__(self._groups(), {"lr": 0.0, "weight_decay": 0.0})
        except BaseException:
            handle.abandon()
            raise
        self._registered = True
        self._shown = [group["lr"] for group in self.param_groups]
        self._version = handle.next_step
        self._skipped_steps = 0
        self._warned: set[str] = set()
        self._updated = False
        self._estimating = False
        self._stop_advised = False
        self._samples = samples_per_step
        self._loss: float | None = None
        self._flags = 0
        # Of the step that was begun during backward().
        self._lock = threading.Lock()
        self._overlap = overlap
        self._learned = False
        self._misses = 0
        self._begun = False
        self._ready = 0
        self._unsent_bytes = 0
        self._gradients: Any = None
        self._hooks = _watch_gradients([slot.parameter for slot in self._slots], self._arrived)

    # ---- The model ----

    def _register(self) -> None:
        values = pointers([slot.value_address(fill=True) for slot in self._slots])
        shapes = [tuple(slot.parameter.shape) for slot in self._slots]
        self._handle.register([slot.name for slot in self._slots], shapes, values)
        self._take_values()

    def _take_values(self) -> None:
        """Values that came into buffers go to their parameters; of the others autograd is told."""
        changed = []
        with torch.no_grad():
            for slot in self._slots:
                if slot.value_buffer is not None:
                    slot.parameter.copy_(slot.value_buffer)
                else:
                    changed.append(slot.parameter.detach().view(-1)[:0])
            if changed:
                torch._foreach_zero_(changed)

    def _groups(self) -> list[dict[str, Any]]:
        """The daemon's parameter groups, parameters in the order of the model."""
        parameters = {slot.name: slot.parameter for slot in self._slots}
        members: dict[str, list[torch.nn.Parameter]] = {}
        for tensor in reversed(self._handle.admin("tensors")["tensors"]):
            members.setdefault(tensor["group"], []).append(parameters[tensor["name"]])
        groups = enumerate(self._handle.admin("lr")["groups"])
        shown = [(index, group) for index, group in groups if group["name"] in members]
        self._group_indices = [index for index, _ in shown]
        return [
            {"params": members[group["name"]], **{key: group[key] for key in ("name", "lr", "weight_decay")}}
            for _, group in shown
        ]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not after registration: a daemon's model does not grow."""
        if self._registered:
            raise InvalidError("the model is registered: groups are in the daemon's configuration", 6)
        super().add_param_group(param_group)

    # ---- During backward() ----

    def _arrived(self, index: int) -> None:
        """A gradient has been added to."""
        if not self._overlap or self._estimating:
            return
        with self._lock:
            slot = self._slots[index]
            slot.arrivals += 1
            if self._learned and slot.arrivals == slot.expected:
                self._hand_out(index)

    def _hand_out(self, index: int) -> None:
        """This gradient is final if all is as in the step before."""
        if self._gradients is None:
            self._gradients = self._gradients_to_come()
            self._values = pointers([slot.value_address(fill=False) for slot in self._slots])
        self._gradients[index] = self._slots[index].gradient_address()
        first = self._ready
        while self._ready < len(self._slots) and self._is_handed_out(self._slots[self._ready]):
            self._unsent_bytes += self._slots[self._ready].parameter.numel() * 4
            self._ready += 1
        if self._ready == first or (self._unsent_bytes < self._bucket_bytes and self._ready < len(self._slots)):
            return
        if not self._begun:
            self._begin()
        self._unsent_bytes = 0
        self._handle.step_ready(self._ready)

    @staticmethod
    def _is_handed_out(slot: _Slot) -> bool:
        return slot.expected is None or slot.expected == 0 or slot.sent is not None

    def _gradients_to_come(self) -> Any:
        """Gradients there are, but that backward() does not touch, are final from the beginning."""
        addresses: list[int | None] = []
        for slot in self._slots:
            if slot.expected == 0:
                addresses.append(slot.gradient_address())
            else:  # NULL for good if there is none; else any address until the gradient is ready
                addresses.append(None if slot.expected is None else 1)
        return pointers(addresses)

    def _begin(self) -> None:
        self._begun = True  # first, for Ctrl-C may come in between: what has not begun can be taken back, too
        self._handle.step_begin(self._gradients, self._samples, self._loss, self._flags, self._values)

    def _is_as_begun(self) -> bool:
        """Hand out what has not been; whether all that has been is still so."""
        for index, slot in enumerate(self._slots):
            gradient = slot.parameter.grad
            if (gradient is None) != (slot.expected is None):
                return False
            if slot.sent is None and gradient is not None:
                self._gradients[index] = slot.gradient_address()
            elif not slot.is_as_sent():
                return False
        return True

    def _forget(self) -> None:
        """Take back what has been begun for the next step."""
        if self._begun:
            self._handle.step_cancel()
        self._begun = False
        self._ready = 0
        self._unsent_bytes = 0
        self._gradients = None
        for slot in self._slots:
            slot.sent = None
            slot.arrivals = 0

    def _learn(self) -> None:
        """What this step had gradients for, the next one will have, too."""
        for slot in self._slots:
            slot.expected = None if slot.parameter.grad is None else slot.arrivals
        self._learned = True

    def _missed(self) -> None:
        self._misses += 1
        self._warn(
            "missed",
            "gradients were changed, or others came, after they had left: they are sent again in step(). "
            "Clipping belongs into the daemon's configuration; overlap=False sends in step() only",
        )
        if self._misses >= _MISSES_MAX:
            self._overlap = False

    # ---- A step ----

    def describe(self, *, samples: int | None = None, loss: float | None = None) -> None:
        """Say more of the next push: how many samples it has, and their mean loss for the daemon's status.

        Call it before ``backward()``: it leaves with the first gradients.
        """
        if self._begun:
            raise InvalidError("describe: gradients have left already; call it before backward()", 6)
        if samples is not None:
            self._samples = int(samples)
        if loss is not None:
            self._loss = float(loss)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the daemon's loss scale, to call ``backward()`` on; the daemon divides again.

        The loss itself is not reported; see :meth:`describe`.
        """
        self._flags = library.SCALED
        return loss * self.loss_scale

    def _reset_description(self) -> None:
        self._samples = self._samples_per_step
        self._loss = None
        self._flags = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; gradients that have left without a :meth:`step` are taken back."""
        with self._lock:
            self._forget()
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None, **scaling: Any) -> Any:
        """Push the gradients as one micro-batch, and get the new parameters when they are due.

        They are due with the last micro-batch of a step: with ``accumulation_steps`` K in the daemon's
        configuration, every K-th call. :attr:`updated` says whether the last call brought them. To have
        torch add up gradients instead, call ``backward()`` several times before this.

        Args:
            closure: computes gradients and returns the loss; called once.
            scaling: what a GradScaler hands over.

        Returns:
            What the closure returned.

        Raises:
            DrainingError: the daemon is stopping.
            IdentityError: this worker was evicted, or the daemon restarted.
            DeadlineError, ConnectionFailedError: step may be called again.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._unscale(scaling.pop("grad_scaler", None))
        if scaling:
            raise TypeError(f"step() got an unexpected argument {next(iter(scaling))!r}")
        self._check_rates()
        self._check_frozen()
        with self._lock:
            info = self._push()
        if info.pulled:
            self._take_values()
        self._version = info.version
        self._updated = bool(info.pulled)
        self._skipped_steps = info.skipped_steps
        self._stop_advised = bool(info.stop)
        self._reset_description()
        self._show_rates()
        return result

    def update_hessian(self, closure: Callable[[], Any] | None = None, *, samples: int | None = None) -> Any:
        """Push gradients as an estimate of the Hessian, which comes with the next :meth:`step`; for ``sophia_g``.

        The loss is to be that at labels drawn from the model's own predictions::

            def closure():
                logits = model(images)
                labels = torch.distributions.Categorical(logits=logits).sample()
                torch.nn.functional.cross_entropy(logits, labels).backward()

            if optimizer.version % 10 == 0:
                optimizer.update_hessian(closure)

        With ``accumulation_steps`` K in the daemon's configuration, every K-th call completes an estimate.
        The parameters' gradients are gone afterwards.

        Args:
            closure: computes the gradients, from none; called once. Without it those there are get pushed; what
                ``backward()`` has sent of them as the step's is taken back first.
            samples: that the loss is the mean of; None: ``samples_per_step``.

        Returns:
            What the closure returned.

        Raises:
            RefusedError: the daemon's optimizer uses no such estimate.
            Those of :meth:`step`.
        """
        result = None
        flags = self._flags
        with self._lock:
            self._forget()
        if closure is not None:
            super().zero_grad(set_to_none=True)
            self._estimating = True
            try:
                with torch.enable_grad():
                    result = closure()
            finally:
                self._estimating = False
        with self._lock:
            estimates = pointers([slot.gradient_address() for slot in self._slots])
            samples = self._samples_per_step if samples is None else int(samples)
            self._handle.push_hessian(estimates, samples, self._flags)
            self._forget()
        self._flags = 0 if closure is None else flags
        super().zero_grad(set_to_none=True)
        return result

    def _push(self) -> library.StepInfo:
        if self._begun:
            if self._is_as_begun():
                self._begun = False
                info = self._handle.step_end()
                self._learn()
                self._forget()
                return info
            self._missed()
        if any(slot.parameter.grad is not None and slot.parameter.grad.is_sparse for slot in self._slots):
            self._warn("sparse", "sparse gradients are made dense before they are sent")
        learned = [slot.arrivals for slot in self._slots]
        self._forget()
        gradients = pointers([slot.gradient_address() for slot in self._slots])
        values = pointers([slot.value_address(fill=False) for slot in self._slots])
        info = self._handle.step(gradients, self._samples, self._loss, self._flags, values)
        for slot, arrivals in zip(self._slots, learned):
            slot.arrivals = arrivals
        self._learn()
        self._forget()
        return info

    def _unscale(self, scaler: Any) -> None:
        """Undo a GradScaler's scale, by what its version of torch hands over."""
        scale = getattr(self, "grad_scale", None)
        if scaler is None and scale is None and getattr(self, "found_inf", None) is None:
            return
        self._overlap = False
        if scaler is not None:
            try:
                scaler.unscale_(self)
            except RuntimeError as fault:
                if "already been called" not in str(fault):
                    raise
        elif scale is not None:
            for slot in self._slots:
                if slot.parameter.grad is not None:
                    slot.parameter.grad.detach().div_(scale.to(slot.parameter.grad.device))

    # ---- What is shown ----

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"paramd: {text}", stacklevel=4)

    def _check_rates(self) -> None:
        if [group["lr"] for group in self.param_groups] != self._shown:
            self._warn(
                "lr",
                "a learning rate set here has no effect: the daemon's configuration has a schedule, and "
                "paramd.Admin.set_lr changes it",
            )

    def _check_frozen(self) -> None:
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                self._warn(
                    "frozen",
                    f"parameter {name!r} was frozen when this optimizer was made, so no step changes it; make "
                    "the optimizer first, or freeze a group in the daemon's configuration",
                )

    def _show_rates(self) -> None:
        rates = self._handle.group_lrs()
        if rates:
            for group, index in zip(self.param_groups, self._group_indices):
                group["lr"] = rates[index]
        self._shown = [group["lr"] for group in self.param_groups]

    @property
    def updated(self) -> bool:
        """Whether the last :meth:`step` brought new parameters."""
        return self._updated

    @property
    def version(self) -> int:
        """Of the parameters: steps the daemon has closed until them."""
        return self._version

    @property
    def skipped_steps(self) -> int:
        """Of these, the ones that left the parameters alone for a non-finite gradient."""
        return self._skipped_steps

    @property
    def stop_advised(self) -> bool:
        """Whether the daemon's early_stop advised to end the training, with the last :meth:`step`."""
        return self._stop_advised

    @property
    def loss_scale(self) -> float:
        """What :meth:`scale` multiplies the next loss by; 1 without loss scaling."""
        return self._handle.loss_scale

    @property
    def overlapping(self) -> bool:
        """Whether gradients leave during ``backward()``."""
        return self._overlap

    @property
    def worker_name(self) -> str:
        """Of this worker."""
        return self._handle.name

    def report_metric(self, name: str, value: float) -> None:
        """Report a number measured with these parameters: as :meth:`paramd.Client.report_metric`."""
        self._handle.report_metric(name, float(value), self._version)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged parameters (ema or swa of the configuration), for evaluation.

        Raises:
            RefusedError: the daemon keeps no average.
        """
        kept = [slot.parameter.detach().clone() for slot in self._slots]
        try:
            self._handle.pull_average(pointers([slot.value_address(fill=False) for slot in self._slots]))
            self._take_values()
            yield
        finally:
            with torch.no_grad():
                for slot, value in zip(self._slots, kept):
                    slot.parameter.copy_(value)

    def status(self) -> dict[str, Any]:
        """The daemon's status; not between ``backward()`` and :meth:`step`."""
        return self._handle.admin("status")

    def state_dict(self) -> dict[str, Any]:
        """Groups as torch has them, and under "paramd" the step and which daemon it is of.

        The optimizer's state proper (momentum and the like) is in the daemon and in its checkpoints.
        """
        server = {
            "step": self._version,
            "skipped_steps": self._skipped_steps,
            "run_id": self._handle.run_id,
            "address": self._handle.address,
            "worker": self._handle.name,
        }
        return {**super().state_dict(), "paramd": server}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a state fits, and warn if it is of another run or step; the daemon's state stays."""
        state = dict(state_dict)
        server = state.pop("paramd", {})
        super().load_state_dict(state)
        for group, lr in zip(self.param_groups, self._shown):
            group["lr"] = lr
        if (server.get("run_id"), server.get("step")) != (self._handle.run_id, self._version):
            self._warn(
                "state",
                f"the state is of step {server.get('step')} of run {server.get('run_id')}, the daemon is at step "
                f"{self._version} of run {self._handle.run_id}: parameters and optimizer state stay the daemon's",
            )

    # ---- Ending ----

    def leave(self) -> None:
        """Say that this worker pushes no more; the others go on. A program that ends does so by itself."""
        self._forget()
        self._handle.leave()

    def close(self) -> None:
        """Close the connections."""
        for hook in self._hooks:
            hook.remove()
        self._handle.close()

    def __enter__(self) -> Optimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.leave()
            else:
                self._handle.abandon()
        finally:
            self.close()


def _slots_of(
    model: torch.nn.Module | Iterable[tuple[str, torch.nn.Parameter]],
) -> tuple[list[_Slot], dict[str, torch.nn.Parameter]]:
    """Each parameter that needs a gradient once, the last first: the order in which they become ready.

    And by name those that need none.
    """
    named = model.named_parameters() if isinstance(model, torch.nn.Module) else model
    slots: dict[int, _Slot] = {}
    frozen: dict[str, torch.nn.Parameter] = {}
    for pair in named:
        if isinstance(pair, (torch.Tensor, dict)):
            raise TypeError("pairs of name and parameter are needed, such as module.named_parameters()")
        name, parameter = pair
        if not parameter.requires_grad:
            frozen[name] = parameter
            continue
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {name!r} is of {parameter.dtype}; allowed: types of floating point")
        slots.setdefault(id(parameter), _Slot(name, parameter))
    if not slots:
        raise ValueError("no parameter needs a gradient")
    return list(reversed(slots.values())), frozen


def _watch_gradients(parameters: list[torch.nn.Parameter], arrived: Callable[[int], None]) -> list[Any]:
    """Call arrived(index) whenever backward() has added to a gradient; returns handles to remove that."""
    hooks = []
    for index, parameter in enumerate(parameters):
        if hasattr(parameter, "register_post_accumulate_grad_hook"):
            hooks.append(parameter.register_post_accumulate_grad_hook(lambda _, index=index: arrived(index)))
            continue
        with torch.enable_grad():
            accumulator = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
        hook = accumulator.register_hook(lambda *_, index=index: arrived(index))
        hook.accumulator = accumulator  # a parameter does not keep it alive
        hooks.append(hook)
    return hooks
