"""paramd.torch.Optimizer with the models and habits that training loops have."""

import copy
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings

import paramd
import paramd.torch
import pytest
import torch
from torch.nn import functional

torch.set_num_threads(1)
SGD = {"optimizer": {"name": "sgd", "lr": 0.5}}
RATE = 0.5


@pytest.fixture
def optimize(start):
    """An optimizer of a model and a daemon of its own."""
    made = []

    def make(model, config=None, ranks=1, **options):
        options.setdefault("samples_per_step", 4)
        made.append(paramd.torch.Optimizer(model, start(config or SGD, ranks).address, **options))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def mlp(width=20):
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh(),
        torch.nn.Linear(width, 1),
    )  # fmt: skip


def backward(model, seed=0):
    inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    loss = model(inputs.to(next(model.parameters()).dtype)).square().mean()
    loss.backward()
    return loss


def twin(model):
    """A copy and torch's optimizer for it."""
    other = copy.deepcopy(model)
    return other, torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=RATE)


def assert_equal(model, other, **tolerance):
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(mine, theirs, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# ---- Overlap ----


class Proxy:
    """Hands bytes on to a daemon of one rank, counting those that go there."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.sent = 0
        self.changed = threading.Condition()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client, socket.create_connection(self.target) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client:
                        with self.changed:
                            self.sent += len(data)
                            self.changed.notify_all()

    def wait_for(self, total, timeout):
        with self.changed:
            return self.changed.wait_for(lambda: self.sent >= total, timeout)


class Watch(torch.autograd.Function):
    """Passes values on, and calls a function when the gradient comes by."""

    @staticmethod
    def forward(context, values, function):
        context.function = function
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        context.function()
        return gradient, None


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_gradients_leave_while_backward_still_runs(start, wire):
    proxy = Proxy(start(SGD).address)
    first, rest = torch.nn.Linear(4, 100), torch.nn.Sequential(torch.nn.Linear(100, 2000), torch.nn.Linear(2000, 1))
    model = torch.nn.Sequential(first, rest)
    rest_bytes = sum(p.numel() for p in rest.parameters()) * (4 if wire == "float32" else 2)
    with paramd.torch.Optimizer(
        model, proxy.address, samples_per_step=4, wire_dtype=wire, bucket_bytes=100_000
    ) as optimizer:
        seen = []
        for step in range(3):
            before = proxy.sent

            def watch(before=before, step=step):
                seen.append(proxy.wait_for(before + 0.9 * rest_bytes, 5 if step else 0.2))

            optimizer.zero_grad()
            rest(Watch.apply(first(torch.randn(4, 4)), watch)).sum().backward()
            optimizer.step()
    assert seen == [False, True, True]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("bucket_bytes", [1, 1000, 1 << 20])
def test_steps_are_torch_s(optimize, overlap, bucket_bytes):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, ranks=2, overlap=overlap, bucket_bytes=bucket_bytes)
    for step in range(5):
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            backward(trained, step)
            rule.step()
    assert_equal(model, other)
    assert optimizer.version == 5
    assert optimizer._misses == 0


def clip(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def again(model):
    backward(model, 99)


def replace(model):
    model[0].weight.grad = torch.ones_like(model[0].weight)


def drop(model):
    model[4].bias.grad = None


@pytest.mark.parametrize("change", [clip, again, replace, drop])
def test_gradients_changed_after_backward_are_sent_as_they_are_at_step(optimize, change):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(8):
            for trained, rule in ((model, optimizer), (other, plain)):
                rule.zero_grad()
                backward(trained, step)
                if step % 2:
                    change(trained)
                rule.step()
    assert_equal(model, other)
    said = [str(warning.message) for warning in caught]
    assert len([text for text in said if "sent again in step()" in text]) == 1
    assert not optimizer.overlapping


def test_local_accumulation_overlaps_in_the_last_backward(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    for step in range(4):
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            for part in range(3):
                backward(trained, 3 * step + part)
            rule.step()
    assert_equal(model, other)
    assert optimizer._misses == 0


def test_a_batch_thrown_away_is_taken_back(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    for step in range(4):
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            backward(trained, 50 + step)
            rule.zero_grad()
            backward(trained, step)
            rule.step()
    assert_equal(model, other)
    assert optimizer.version == 4
    assert optimizer.overlapping


def test_an_exception_in_backward_loses_nothing(optimize):
    def fail():
        raise ZeroDivisionError

    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    for step in range(3):
        with pytest.raises(ZeroDivisionError):
            model[1:](Watch.apply(model[0](torch.ones(1, 4)), fail)).sum().backward()
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            backward(trained, step)
            rule.step()
    assert_equal(model, other)


def test_ctrl_c_ends_a_step_that_waits_and_it_can_be_called_again(start, together):
    address = start({**SGD, "workers": {"expected": 2}}).address
    models = [mlp(), mlp()]
    other, plain = twin(models[0])
    optimizers = together(
        *(
            lambda name=name, model=model: paramd.torch.Optimizer(model, address, name=name, samples_per_step=4)
            for name, model in zip("ab", models)
        )
    )

    computing = threading.Lock()  # as in test_numbers.py

    def step(index, seed):
        optimizers[index].zero_grad()
        with computing:
            backward(models[index], seed)
        optimizers[index].step()

    together(lambda: step(0, 0), lambda: step(1, 0))
    interrupt = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        step(0, 1)
    together(optimizers[0].step, lambda: step(1, 1))
    for seed in (0, 1):
        plain.zero_grad()
        backward(other, seed)
        plain.step()
    for model, optimizer in zip(models, optimizers):
        assert_equal(model, other)
        assert optimizer.version == 2
        optimizer.close()


def test_a_model_can_be_used_on_after_an_exception_in_the_block(start):
    daemon = start(SGD)
    model = mlp()
    with pytest.raises(ZeroDivisionError):
        with paramd.torch.Optimizer(model, daemon.address, samples_per_step=4, bucket_bytes=1) as optimizer:
            backward(model)
            optimizer.step()
            backward(model)  # leaves, but no step follows
            raise ZeroDivisionError
    backward(model)
    with paramd.Admin(daemon.address) as admin:
        assert admin.workers()["workers"] == []
        assert admin.step()["step"] == 1


def test_a_program_that_ends_between_backward_and_step_has_left(start):
    daemon = start(SGD)
    program = (
        "import paramd.torch, sys, torch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = paramd.torch.Optimizer(model, sys.argv[1], samples_per_step=1, bucket_bytes=1)\n"
        "for _ in range(2):\n"
        "    model(torch.ones(1, 4)).sum().backward()\n"
        "    if optimizer.version == 0:\n"
        "        optimizer.step()\n"
        "raise SystemExit(5)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, daemon.address], check=False).returncode == 5
    with paramd.Admin(daemon.address) as admin:
        assert admin.workers()["workers"] == []


def test_accumulation_in_the_daemon_changes_parameters_at_every_kth_step(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, {**SGD, "accumulation_steps": 2}, bucket_bytes=1)
    for step in range(6):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        assert optimizer.updated == bool(step % 2)
        assert optimizer.version == (step + 1) // 2
    for step in range(3):
        plain.zero_grad()
        for part in range(2):
            backward(other, 2 * step + part)
        for parameter in other.parameters():
            parameter.grad /= 2
        plain.step()
    assert_equal(model, other)


# ---- Models ----


def test_shared_parameters_are_one_tensor(optimize):
    model = mlp()
    model[2].bias = model[0].bias
    other, plain = twin(model)
    optimizer = optimize(model)
    for step in range(3):
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            backward(trained, step)
            rule.step()
    assert model[2].bias is model[0].bias
    assert_equal(model, other)
    assert optimizer.status()["parameters"] == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_stay_here_and_as_they_are(optimize):
    model = mlp()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = optimize(model)
    backward(model)
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_a_parameter_that_thaws_too_late_is_named(optimize):
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = optimize(model)
    model[2].requires_grad_(False)  # later, and back again
    backward(model)
    optimizer.step()
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match="parameter '0.weight' was frozen when this optimizer was made") as caught:
        for _ in range(2):
            before = model[2].weight.clone()
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
            assert not torch.equal(model[2].weight, before)
    assert len([warning for warning in caught if "frozen" in str(warning.message)]) == 1


@pytest.mark.filterwarnings("ignore:paramd")
def test_parameters_without_gradient_are_left_alone(optimize):
    class Partly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.sometimes = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
            self.use_both = False

        def forward(self, inputs):
            return self.always(inputs) + (self.sometimes(inputs) if self.use_both else 0)

    model = Partly()
    decaying = {"optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}}
    other = copy.deepcopy(model)
    plain = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.5)
    optimizer = optimize(model, decaying, bucket_bytes=1)
    for step, use_both in enumerate([False, False, True, True, False, True]):
        before = model.sometimes.weight.clone()
        for trained, rule in ((model, optimizer), (other, plain)):
            trained.use_both = use_both
            rule.zero_grad(set_to_none=True)
            backward(trained, step)
            rule.step()
        assert torch.equal(model.sometimes.weight, before) != use_both
    assert_equal(model, other, rtol=1e-5, atol=1e-6)


def test_sparse_gradients_are_made_dense_and_that_is_said_once(optimize):
    torch.manual_seed(1)
    model = torch.nn.Embedding(10, 3, sparse=True)
    before = model.weight.detach().clone()
    optimizer = optimize(model)
    with pytest.warns(UserWarning, match="sparse gradients are made dense") as caught:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            model(torch.tensor([2, 2, 5])).sum().backward()
            optimizer.step()
    assert len(caught) == 1
    expected = before.clone()
    expected[2] -= 3 * RATE * 2
    expected[5] -= 3 * RATE
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_have_float32_masters(optimize, dtype):
    """Steps too small for the type add up in the daemon."""
    model = torch.nn.Linear(4, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(1)
    optimizer = optimize(model, {"optimizer": {"name": "sgd", "lr": 2.0**-14}}, bucket_bytes=1)
    for _ in range(256):
        optimizer.zero_grad()
        model.weight.grad = None
        (model.weight * torch.ones(1, 4, dtype=dtype)).sum().backward()
        optimizer.step()
    assert model.weight.dtype == dtype
    assert torch.equal(model.weight.detach(), torch.full((1, 4), 1 - 2.0**-6, dtype=dtype))


def test_parameters_of_odd_memory_layout_work(optimize):
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    other, plain = twin(model)
    optimizer = optimize(model, ranks=2)
    for _ in range(3):
        for trained, rule in ((model, optimizer), (other, plain)):
            rule.zero_grad()
            trained(torch.ones(1, 3, 5, 5)).square().mean().backward()
            rule.step()
    assert_equal(model, other)


def test_autograd_notices_parameters_that_a_step_changed(optimize):
    model = mlp()
    optimizer = optimize(model)
    loss = model(torch.ones(1, 4)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (torch.nn.ReLU(), ValueError, "no parameter needs a gradient"),
        ([torch.nn.Parameter(torch.ones(1))], TypeError, "named_parameters"),
        ([("a", torch.nn.Parameter(torch.ones(1, dtype=torch.complex64)))], ValueError, "'a' is of torch.complex64"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_without_a_daemon(model, error, message):
    with pytest.raises(error, match=message):
        paramd.torch.Optimizer(model, "127.0.0.1:1", samples_per_step=1)


# ---- Habits ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_evaluated_with_averaged_parameters(optimize, dtype):
    model = mlp().to(dtype)
    initial = copy.deepcopy(model)
    optimizer = optimize(model, {**SGD, "ema": {"decay": 0.5, "copy_steps": 0}})
    backward(model)
    optimizer.step()
    trained = copy.deepcopy(model)
    with optimizer.averaged():
        for name, average in model.named_parameters():
            between = (initial.get_parameter(name) + trained.get_parameter(name)) / 2
            torch.testing.assert_close(average, between, rtol=0.02, atol=0.01)
        assert not torch.equal(model[4].bias, trained[4].bias)
    assert_equal(model, trained, rtol=0, atol=0)
    backward(model, 1)
    optimizer.step()
    assert optimizer.version == 2


def test_without_an_average_the_model_stays_what_it_is(optimize):
    model = mlp()
    before = copy.deepcopy(model)
    optimizer = optimize(model)
    with pytest.raises(paramd.RefusedError, match="average"), optimizer.averaged():
        raise AssertionError
    assert_equal(model, before, rtol=0, atol=0)


def test_reported_metrics_can_end_the_training(optimize):
    model = mlp()
    optimizer = optimize(model, {**SGD, "early_stop": {"metric": "loss", "patience": 1}})
    advised = []
    for value in (1.0, 2.0, 2.0):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        advised.append(optimizer.stop_advised)
        optimizer.report_metric("loss", value)
    assert advised == [False, False, True]


GROUPS = {
    "optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.5},
    "groups": [{"name": "biases", "match": ["*.bias"], "weight_decay": 0, "lr_multiplier": 0.1}],
    "schedule": {"name": "step", "step_size": 1, "gamma": 0.5},
}


# ---- Estimates of the Hessian ----

SOPHIA = {"name": "sophia_g", "lr": 0.02, "betas": [0.9, 0.8], "rho": 0.04, "bs": 500, "weight_decay": 0.1}


class Sophia(torch.optim.Optimizer):
    """Sophia-G by the equations of its paper."""

    def update_hessian(self):
        for parameter in self.param_groups[0]["params"]:
            h = self.state[parameter].setdefault("h", torch.zeros_like(parameter))
            h.mul_(0.8).add_(parameter.grad.square(), alpha=0.2)

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            m = self.state[parameter].setdefault("m", torch.zeros_like(parameter))
            h = self.state[parameter].setdefault("h", torch.zeros_like(parameter))
            parameter.mul_(1 - 0.02 * 0.1)
            m.mul_(0.9).add_(parameter.grad, alpha=0.1)
            parameter.sub_((m / (0.04 * 500 * h + 1e-15)).clamp(-1, 1), alpha=0.02)


@pytest.mark.parametrize("with_closure", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_estimates_of_the_hessian_come_with_the_next_step(optimize, overlap, with_closure):
    model = mlp()
    other = copy.deepcopy(model)
    theirs = Sophia(other.parameters(), {})
    ours = optimize(model, {"optimizer": SOPHIA}, overlap=overlap, bucket_bytes=1)
    for step in range(12):
        if step % 4 == 0:
            backward(other, 100 + step)
            theirs.update_hessian()
            theirs.zero_grad()
            if with_closure:
                loss = ours.update_hessian(lambda step=step: backward(model, 100 + step))
                assert loss > 0
            else:
                backward(model, 100 + step)
                ours.update_hessian()
            assert all(parameter.grad is None for parameter in model.parameters())
        backward(model, step)
        ours.step()
        ours.zero_grad()
        backward(other, step)
        theirs.step()
        theirs.zero_grad()
        assert_equal(model, other, rtol=1e-4, atol=1e-6)
    assert ours.version == 12


def test_an_estimate_that_has_no_use_is_refused_and_training_goes_on(optimize):
    model = mlp()
    optimizer = optimize(model)
    with pytest.raises(paramd.RefusedError, match="makes no use of an estimate"):
        optimizer.update_hessian(lambda: backward(model))
    backward(model)
    optimizer.step()
    assert optimizer.version == 1


def test_param_groups_show_the_daemon_s_and_their_rates_in_the_step_taken(optimize):
    model = mlp()
    optimizer = optimize(model, GROUPS)
    default, biases = optimizer.param_groups
    assert {key: default[key] for key in default if key != "params"} == {
        "name": "default",
        "lr": 0.1,
        "weight_decay": 0.5,
    }
    assert (biases["name"], biases["lr"], biases["weight_decay"]) == ("biases", pytest.approx(0.01), 0)
    assert [id(p) for p in biases["params"]] == [id(model[i].bias) for i in (0, 2, 4)]
    rates = []
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        rates += [(default["lr"], biases["lr"])]
    assert rates == [(rate, pytest.approx(rate / 10)) for rate in (0.1, 0.05, 0.025)]


def test_groups_without_a_parameter_are_not_shown(optimize):
    model = mlp()
    optimizer = optimize(model, {**GROUPS, "groups": [{"name": "heads", "match": ["head.*"]}, *GROUPS["groups"]]})
    backward(model)
    optimizer.step()
    shown = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert shown == {"default": 0.1, "biases": pytest.approx(0.01)}


def test_a_torch_scheduler_has_no_effect_and_that_is_said(optimize):
    model = mlp()
    optimizer = optimize(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    with pytest.warns(UserWarning, match="learning rate set here has no effect"):
        for step in range(3):
            backward(model, step)
            optimizer.step()
            scheduler.step()
    assert optimizer.status()["lr"] == 0.5


def test_state_dict_has_step_and_daemon_and_survives_saving(optimize):
    model = mlp()
    optimizer = optimize(model)
    backward(model)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()))
    assert state["paramd"]["step"] == 1
    assert state["paramd"]["run_id"] == optimizer._handle.run_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state)
    backward(model)
    optimizer.step()
    with pytest.warns(UserWarning, match="the state is of step 1 of run"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_closure_is_called_once_and_its_loss_returned(optimize):
    model = mlp()
    optimizer = optimize(model)
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(backward(model))
        return calls[-1]

    assert optimizer.step(closure) is calls[0]
    assert optimizer.step(closure) is calls[1]
    assert len(calls) == optimizer.version == 2


class LightningOptimizer(torch.optim.Optimizer):
    """What pytorch_lightning puts around an optimizer: a copy of its attributes under a class derived from its own."""

    def __init__(self, optimizer):
        self.__dict__ = dict(optimizer.__dict__)
        self.__class__ = type("LightningOptimizer", (LightningOptimizer, type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure):
        return self._optimizer.step(closure=closure)


def test_a_loop_in_the_way_of_lightning_overlaps(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    wrapped = LightningOptimizer(optimizer)
    for step in range(4):

        def training_step(step=step):
            optimizer.zero_grad()
            return backward(model, step)

        wrapped.step(training_step)
        plain.zero_grad()
        backward(other, step)
        plain.step()
    assert_equal(model, other)
    assert (optimizer.version, optimizer._misses, optimizer.overlapping) == (4, 0, True)
    assert wrapped.param_groups[0]["lr"] == 0.5


def test_describe_tells_samples_and_loss(optimize):
    model = mlp()
    optimizer = optimize(model, bucket_bytes=1)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.describe(samples=7 + step, loss=step)
        backward(model)
        if step:
            with pytest.raises(paramd.InvalidError, match="before backward"):
                optimizer.describe(loss=1)
        optimizer.step()
        status = optimizer.status()
        assert (status["loss"], status["effective_batch"]) == (step, 7 + step)


class NewScaler:
    """Does what torch.amp.GradScaler does with an optimizer that supports scaling, from torch 2 on."""

    scale_value = 1024.0

    def scale(self, loss):
        return loss * self.scale_value

    def step(self, optimizer):
        optimizer.grad_scale = torch.tensor(self.scale_value)
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf


class OldScaler(NewScaler):
    """And what torch 1.13's does."""

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.div_(self.scale_value)

    def step(self, optimizer):
        optimizer.step(grad_scaler=self)


class OldScalerUnscaled(OldScaler):
    """The same after unscale_() has been called, as clipping wants it."""

    def step(self, optimizer):
        super().unscale_(optimizer)
        super().step(optimizer)

    def unscale_(self, optimizer):
        raise RuntimeError("unscale_() has already been called on this optimizer since the last update().")


@pytest.mark.parametrize("scaler", [NewScaler(), OldScaler(), OldScalerUnscaled()])
def test_a_grad_scaler_s_scale_is_undone(optimize, scaler):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model)
    for step in range(4):
        inputs = torch.full((4, 4), step / 4)
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.step(optimizer)
        plain.zero_grad()
        other(inputs).square().mean().backward()
        plain.step()
    assert_equal(model, other)


def test_a_disabled_grad_scaler_of_torch_s_own_changes_nothing(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, bucket_bytes=1)
    scaler = torch.cuda.amp.GradScaler(enabled=False)
    for step in range(3):
        inputs = torch.full((4, 4), step / 4)
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        other(inputs).square().mean().backward()
        plain.step()
    assert_equal(model, other)
    assert (optimizer._misses, optimizer.overlapping) == (0, True)


@pytest.mark.parametrize("scaled_by", ["torch", "daemon"])
def test_a_non_finite_gradient_skips_the_step_in_all_workers(start, together, scaled_by):
    config = {**SGD, "workers": {"expected": 2}, "loss_scale": {"init_scale": 8.0}}
    address = start(config).address
    before = mlp()

    def work(index):
        model = copy.deepcopy(before)
        with paramd.torch.Optimizer(model, address, samples_per_step=4, name=f"w{index}") as optimizer:
            seen = []
            for step in range(3):
                optimizer.zero_grad()
                factor = float("inf") if (index, step) == (1, 1) else 1.0
                if scaled_by == "daemon":
                    optimizer.scale(model(torch.ones(1, 4)).sum() * factor).backward()
                    optimizer.step()
                else:
                    scaler = NewScaler()
                    scaler.scale(model(torch.ones(1, 4)).sum() * factor).backward()
                    scaler.step(optimizer)
                seen.append((optimizer.skipped_steps, model[4].bias.item(), optimizer.loss_scale))
            return seen

    first, second = together(lambda: work(0), lambda: work(1))
    assert first == second
    assert [skipped for skipped, _, _ in first] == [0, 1, 1]
    bias = before[4].bias.item()
    assert [value for _, value, _ in first] == pytest.approx([bias - RATE, bias - RATE, bias - 2 * RATE])
    assert [scale for _, _, scale in first] == [8.0, 4.0, 4.0]


def test_scaling_by_the_daemon_is_exact(optimize):
    model = mlp()
    other, plain = twin(model)
    optimizer = optimize(model, {**SGD, "loss_scale": {"init_scale": 1024.0}}, bucket_bytes=1)
    for step in range(4):
        inputs = torch.full((4, 4), step / 4)
        optimizer.zero_grad()
        optimizer.scale(functional.mse_loss(model(inputs), torch.ones(4, 1))).backward()
        optimizer.step()
        plain.zero_grad()
        functional.mse_loss(other(inputs), torch.ones(4, 1)).backward()
        plain.step()
    assert_equal(model, other)
    assert optimizer.overlapping
