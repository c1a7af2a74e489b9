"""paramd.Client and paramd.Admin against real daemons."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paramd
import pytest
from paramd import library

SGD = {"optimizer": {"name": "sgd", "lr": 0.5}}


def ones():
    return {"weight": np.ones((3, 2), np.float32), "bias": np.zeros((), np.float32)}


def after(seconds, function):
    timer = threading.Timer(seconds, function)
    timer.start()
    return timer


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_gives_the_new_parameters(start, ranks):
    with paramd.Client(start(SGD, ranks).address, name="a") as client:
        first = client.register(ones())
        second = client.step({"weight": np.full((3, 2), 0.5), "bias": np.float32(1)}, samples=4, loss=2.0)
        np.testing.assert_array_equal(first["weight"], np.ones((3, 2)))
        np.testing.assert_array_equal(second["weight"], np.full((3, 2), 0.75, np.float32))
        assert second["bias"] == -0.5
        assert (client.version, client.lr, client.skipped_steps, client.next_step) == (1, 0.5, 0, 1)
        assert (client.name, client.shards) == ("a", ranks)
        assert client.status()["loss"] == 2.0


def test_workers_are_averaged_by_their_samples(start, together):
    address = start({**SGD, "workers": {"expected": 2}}).address

    def work(name, gradient, samples):
        with paramd.Client(address, name=name) as client:
            client.register(ones())
            return client.step({"bias": np.float32(gradient)}, samples=samples)

    results = together(lambda: work("a", 1, 1), lambda: work("b", 5, 3))
    for parameters in results:
        assert parameters["bias"] == -0.5 * (1 * 1 + 5 * 3) / 4


SOPHIA = {"optimizer": {"name": "sophia_g", "lr": 0.1, "betas": [0, 0.75], "rho": 0.04, "bs": 100, "weight_decay": 0}}


def test_an_estimate_of_the_hessian_comes_with_the_step_that_follows(start, together):
    address = start({**SOPHIA, "workers": {"expected": 2}}, 2).address

    def work(name, estimate, samples):
        with paramd.Client(address, name=name) as client:
            client.register(ones())
            if estimate is not None:
                client.push_hessian({"weight": np.full((3, 2), estimate)}, samples=samples)
            return client.step({"weight": np.ones((3, 2)), "bias": np.float32(1)}, samples=1)

    for parameters in together(lambda: work("a", 1, 3), lambda: work("b", 5, 1)):
        # h is 0.25 * 2^2, and a step lr * 1 / (0.04 * 100 * h); without any it is cut to lr.
        np.testing.assert_allclose(parameters["weight"], np.full((3, 2), 1 - 0.1 / 4), rtol=1e-6)
        np.testing.assert_allclose(parameters["bias"], -0.1, rtol=1e-6)


def test_an_estimate_is_refused_where_it_has_no_use_or_no_place(start):
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        with pytest.raises(paramd.RefusedError, match="hessian of step 0: the optimizer, sgd, makes no use"):
            client.push_hessian({"bias": 1.0}, samples=1)
        client.step({"bias": np.float32(1)}, samples=1)
    with paramd.Client(start(SOPHIA).address) as client:
        client.register(ones())
        client.push_hessian({"bias": 1.0}, samples=1)
        with pytest.raises(paramd.StepError, match="the estimate for step 0 is complete"):
            client.push_hessian({"bias": 1.0}, samples=1)
        client.step({"bias": np.float32(1)}, samples=1)
        client.push_hessian({"bias": 1.0}, samples=1)


def test_micro_batches_of_an_estimate_are_counted_apart_from_those_of_the_gradient(start):
    with paramd.Client(start({**SOPHIA, "accumulation_steps": 2}).address) as client:
        client.register(ones())
        client.push({"bias": np.float32(1)}, samples=1)
        client.push_hessian({"bias": 1.0}, samples=1)
        client.push_hessian({"bias": 3.0}, samples=1)
        parameters = client.step({"bias": np.float32(1)}, samples=1)
        np.testing.assert_allclose(parameters["bias"], -0.1 / 4, rtol=1e-6)


def test_a_second_worker_gets_the_current_parameters_not_its_own(start):
    address = start(SGD).address
    with paramd.Client(address) as first:
        first.register(ones())
    with paramd.Client(address) as second:
        own = {"weight": np.zeros((3, 2)), "bias": np.ones(())}
        got = second.register(own)
        np.testing.assert_array_equal(got["weight"], np.ones((3, 2)))
        assert own["bias"] == 1


def test_push_and_pull_apart_are_a_step(start):
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        client.push({"bias": np.float32(1)}, samples=1)
        out = ones()
        assert client.pull(out, min_version=paramd.NEXT) is out
        assert out["bias"] == -0.5
        assert client.version == 1
        assert client.pull()["bias"] == -0.5


def test_parameters_change_with_the_last_micro_batch(start):
    with paramd.Client(start({**SGD, "accumulation_steps": 2}).address) as client:
        client.register(ones())
        assert client.accumulation_steps == 2
        assert client.step({"bias": np.float32(1)}, samples=1) is None
        assert client.step({"bias": np.float32(3)}, samples=1)["bias"] == -1
        assert client.step({"bias": np.float32(1)}, samples=1, last=True)["bias"] == -1.5


def test_a_tensor_without_gradient_is_left_alone(start):
    config = {"optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}}
    with paramd.Client(start(config).address) as client:
        client.register(ones())
        parameters = client.step({"bias": np.float32(1), "weight": None}, samples=1)
        np.testing.assert_array_equal(parameters["weight"], np.ones((3, 2)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_wire_types_round_what_is_sent(start, dtype):
    with paramd.Client(start({"optimizer": {"name": "sgd", "lr": 1.0}}).address, wire_dtype=dtype) as client:
        client.register({"x": np.zeros(1)})
        value = client.step({"x": np.array([1 / 3])}, samples=1)["x"][0]
        assert value != np.float32(-1 / 3)
        assert value == pytest.approx(-1 / 3, rel=2**-8)


def peak_of_memory():
    """Of this process, in Python and in C, since this was asked last (bytes)."""
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    return peak


@pytest.mark.parametrize("checksum", [True, False])
def test_long_gradients_change_after_each_step_and_not_before(start, together, checksum):
    address = start({**SGD, "workers": {"expected": 2}}, 2).address
    count = 1_500_000

    def work(name, sign):
        gradient = np.empty(count, np.float32)
        values = {"long": np.zeros(count, np.float32)}
        with paramd.Client(address, name=name, checksum=checksum) as client:
            client.register(values, out=values)
            for step in range(5):
                gradient[:] = np.arange(count) % 1021 * sign + step
                client.step({"long": gradient}, samples=1, out=values)
                gradient[:] = np.nan
        return values["long"]

    # The workers' ramps cancel out; what is left is the sum of the steps' numbers.
    for parameters in together(lambda: work("a", 1), lambda: work("b", -1)):
        np.testing.assert_array_equal(parameters, np.full(count, -0.5 * (0 + 1 + 2 + 3 + 4), np.float32))


def test_float32_arrays_are_not_copied(start):
    big = np.zeros(16_000_000, np.float32)
    with paramd.Client(start(SGD, 2).address) as client:
        parameters = client.register({"big": big}, out={"big": big})
        assert parameters["big"] is big
        gradient, other = np.ones_like(big), np.zeros(big.shape, np.float64)
        peak_of_memory()
        before = peak_of_memory()
        client.step({"big": gradient}, samples=1, out=parameters)
        client.pull(parameters)
        assert peak_of_memory() - before < big.nbytes / 8
        client.step({"big": other}, samples=1, out=parameters)
        assert peak_of_memory() - before > big.nbytes / 2
    np.testing.assert_array_equal(big, np.full_like(big, -0.5))


def test_other_threads_run_while_a_call_waits(start):
    with paramd.Client(start(SGD).address, timeout=0.8) as client:
        client.register(ones())
        ran = []
        thread = threading.Thread(target=lambda: [ran.append(time.sleep(0.01)) for _ in range(50)])
        thread.start()
        with pytest.raises(paramd.DeadlineError, match="no version 1 after 0.8 s"):
            client.pull(min_version=paramd.NEXT)
        assert len(ran) >= 40
        thread.join()


def test_ctrl_c_ends_a_wait_and_the_client_goes_on(start):
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        begin = time.monotonic()
        after(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            client.pull(min_version=paramd.NEXT)
        assert time.monotonic() - begin < 1.5
        assert client.step({"bias": np.float32(1)}, samples=1)["bias"] == -0.5


def test_ctrl_c_ends_the_search_for_a_daemon():
    begin = time.monotonic()
    after(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        paramd.Client("127.0.0.1:1")
    assert time.monotonic() - begin < 3


def test_what_a_signal_handler_raises_comes_out_of_the_call(start):
    def stop(*_):
        raise SystemExit(3)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with paramd.Client(start(SGD).address) as client:
            client.register(ones())
            after(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit):
                client.pull(min_version=paramd.NEXT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_returns_lets_the_wait_go_on(start):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with paramd.Client(start(SGD).address, timeout=1.0) as client:
            client.register(ones())
            after(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
            with pytest.raises(paramd.DeadlineError):
                client.pull(min_version=paramd.NEXT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [1]


def test_the_daemon_s_words_are_the_exception_s(start):
    address = start(SGD).address
    with paramd.Client(address, name="a") as client, paramd.Client(address, name="b") as other:
        client.register(ones())
        with pytest.raises(paramd.ModelError, match=r"weight.*\[3, ?3\]|weight"):
            other.register({"weight": np.ones((3, 3)), "bias": np.zeros(())})
        with pytest.raises(paramd.IdentityError, match="'a'"):
            paramd.Client(address, name="a")
        with pytest.raises(paramd.StepError):
            client.pull(min_version=7)


def test_nobody_there_is_a_connection_error():
    with pytest.raises(ConnectionError, match="127.0.0.1:1"):
        paramd.Client("127.0.0.1:1", connect_timeout=0)


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"weight": np.ones((2, 3))}, r"'weight' has shape \(2, 3\), registered was \(3, 2\)"),
        ({"wight": np.ones((3, 2))}, "no tensor is registered as 'wight'"),
    ],
)
def test_wrong_gradients_are_refused_before_they_are_sent(start, gradients, message):
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        with pytest.raises(ValueError, match=message):
            client.push(gradients, samples=1)
        with pytest.raises(ValueError, match="samples -1"):
            client.push({}, samples=-1)
        assert client.step({"bias": np.float32(1)}, samples=1)["bias"] == -0.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda out: out.pop("bias"), ValueError, "'bias'"),
        (lambda out: out.update(weight=np.ones((3, 2))), TypeError, "'weight'.*float32"),
        (lambda out: out.update(weight=np.ones((2, 3), np.float32)), ValueError, "'weight'.*shape"),
        (lambda out: out.update(weight=np.ones((2, 3), np.float32).T), ValueError, "'weight'.*contiguous"),
        (lambda out: out["weight"].setflags(write=False), ValueError, "'weight'.*writeable"),
    ],
)
def test_an_out_that_cannot_be_filled_in_place_is_refused(start, change, error, message):
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        out = ones()
        change(out)
        with pytest.raises(error, match=message):
            client.pull(out)


def test_calls_out_of_order_say_so(start):
    client = paramd.Client(start(SGD).address)
    with pytest.raises(paramd.InvalidError, match="register first"):
        client.push({}, samples=1)
    client.register(ones())
    with pytest.raises(paramd.InvalidError, match="already"):
        client.register(ones())
    client.close()
    client.close()
    with pytest.raises(paramd.InvalidError, match="closed"):
        client.pull()
    with pytest.raises(ValueError, match="wire type 'float64'; allowed: float32, bfloat16, float16"):
        paramd.Client("127.0.0.1:1", wire_dtype="float64")


def test_scaled_gradients_are_divided_by_the_daemon(start):
    with paramd.Client(start({**SGD, "loss_scale": {"init_scale": 64.0}}).address) as client:
        client.register(ones())
        assert client.loss_scale == 64
        assert client.step({"bias": np.float32(64)}, samples=1, scaled=True)["bias"] == -0.5
        assert client.step({"bias": np.float32(1)}, samples=1)["bias"] == -1
        client.step({"bias": np.float32("inf")}, samples=1, scaled=True)
        assert (client.loss_scale, client.skipped_steps) == (32, 1)


def test_averaged_parameters_can_be_pulled(start):
    with paramd.Client(start({**SGD, "ema": {"decay": 0.5}}).address) as client:
        client.register(ones())
        client.step({"bias": np.float32(1)}, samples=1)
        version = client.version
        average = client.pull_average()
        assert client.pull()["bias"] == -0.5
        assert -0.5 <= average["bias"] <= 0
        assert client.version == version
    with paramd.Client(start(SGD).address) as client:
        client.register(ones())
        with pytest.raises(paramd.RefusedError, match="average"):
            client.pull_average()


def names(admin):
    return [worker["name"] for worker in admin.workers()["workers"]]


def test_an_exception_in_the_block_leaves_too(start):
    daemon = start(SGD)
    with paramd.Admin(daemon.address) as admin:
        with pytest.raises(ZeroDivisionError), paramd.Client(daemon.address, name="a") as client:
            client.register(ones())
            assert names(admin) == ["a"]
            raise ZeroDivisionError
        assert names(admin) == []


def test_a_program_that_ends_without_leaving_has_left(start):
    daemon = start(SGD)
    program = (
        "import paramd, sys, numpy\n"
        "client = paramd.Client(sys.argv[1], name='a')\n"
        "client.register({'x': numpy.zeros(1)})\n"
        "raise SystemExit(5)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, daemon.address], check=False).returncode == 5
    with paramd.Admin(daemon.address) as admin:
        assert names(admin) == []


def test_a_forked_child_leaves_the_parent_s_client_alone(start):
    with paramd.Client(start(SGD).address, name="a") as client:
        client.register(ones())
        child = os.fork()
        if child == 0:
            client.close()
            del client
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert client.step({"bias": np.float32(1)}, samples=1)["bias"] == -0.5


def test_a_metric_reduces_the_rate_on_a_plateau(start):
    plateau = {"name": "plateau", "patience": 0, "factor": 0.5}
    with paramd.Client(start({**SGD, "schedule": plateau}).address) as client:
        client.register(ones())
        client.step({"bias": np.float32(1)}, samples=1)
        client.report_metric("val_loss", 1.0)
        client.report_metric("val_loss", 2.0)
        assert client.status()["lr"] == 0.5
        client.step({"bias": np.float32(1)}, samples=1)
        client.report_metric("val_loss", 2.0)
        assert client.status()["lr"] == 0.25
        assert client.status()["metrics"] == [{"name": "val_loss", "value": 2.0, "step": 2}]
        with pytest.raises(paramd.StepError):
            client.report_metric("val_loss", 3.0, step=9)


def test_early_stop_advises_to_end_the_training(start):
    with paramd.Client(start({**SGD, "early_stop": {"metric": "accuracy", "mode": "max", "patience": 1}}).address) as client:
        client.register(ones())
        for accuracy in (0.5, 0.25):
            client.step({"bias": np.float32(1)}, samples=1)
            assert not client.stop_advised
            client.report_metric("accuracy", accuracy)
        client.step({"bias": np.float32(1)}, samples=1)
        assert client.stop_advised


def test_admin_does_what_paramctl_does(start):
    daemon = start({**SGD, "groups": [{"name": "biases", "match": ["bias"], "lr_multiplier": 0.1}]}, 2)
    with paramd.Admin(daemon.address) as admin:
        client = paramd.Client(daemon.address, name="a")
        client.register(ones())
        assert admin.status()["shards"] == 2
        assert [group["lr"] for group in admin.lr()["groups"]] == pytest.approx([0.5, 0.05])
        assert admin.step() == {"step": 0, "version": 0, "skipped_steps": 0}
        assert len(admin.schedule(begin=3, count=4)["lrs"]) == 4
        assert {tensor["name"]: tensor["group"] for tensor in admin.tensors()["tensors"]} == {
            "weight": "default",
            "bias": "biases",
        }
        assert "0.25" in admin.set_lr(0.25, "biases")["text"]
        assert [group["lr"] for group in admin.lr()["groups"]] == pytest.approx([0.5, 0.25])
        assert "schedule" in admin.set_lr(None)["text"]
        admin.pause()
        assert admin.status()["paused"] is True
        admin.resume()
        with pytest.raises(paramd.Error, match="checkpoint"):
            admin.checkpoint()
        with pytest.raises(paramd.InvalidError, match="nobody"):
            admin.evict("nobody")
        admin.evict("a")
        with pytest.raises(paramd.IdentityError):
            client.step({}, samples=1)
        client.close()
        admin.drain()
    assert daemon.stop() == 0


@contextlib.contextmanager
def training(address, losses=lambda step: 1 / (step + 1)):
    """A worker that steps until the block is left; gives the bias it has after each step.

    Its weight, which has the same gradient, is of several megabytes.
    """
    ended = threading.Event()
    values = []
    weight = np.ones((700, 1000), np.float32)

    def train():
        with paramd.Client(address, name="a") as client:
            client.register({"bias": np.float32(0), "weight": np.zeros_like(weight)})
            while not ended.is_set():
                loss = losses(client.next_step)
                stepped = client.step({"bias": np.float32(1), "weight": weight}, samples=1, loss=loss)
                assert (stepped["weight"] == stepped["bias"]).all()
                values.append(stepped["bias"].copy())

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield values
    finally:
        ended.set()
        thread.join()


def until_it_trains(admin):
    while admin.step()["step"] == 0:
        time.sleep(0.01)


def test_lr_find_returns_the_curve_and_leaves_the_training_as_it_was(start):
    daemon = start({"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.5}}, 2)
    points = []
    with paramd.Admin(daemon.address) as admin, training(daemon.address) as values:
        until_it_trains(admin)
        curve = admin.lr_find(1e-3, 1, 7, skip_start=0, skip_end=0, smooth_f=1, progress=points.append)
        assert curve["end"] == "finished"
        assert curve["rows"] == points
        assert [point["lr"] for point in points] == pytest.approx(np.logspace(-3, 0, 7))
        assert curve["suggestion"] == pytest.approx(1e-3)
        assert admin.lr_curve(5)["rows"] == points[5:]
        assert admin.lr()["lr"] == 0.5
    before, after = curve["step"], curve["version"]
    assert after == before + 7
    assert values[after - 1] == values[before - 1]
    momentum = 2 - 0.5**before  # of `before` steps with a gradient of 1, and one more
    assert values[after] == pytest.approx(values[before - 1] - 0.5 * momentum)


def test_lr_find_takes_what_the_field_calls_its_options(start):
    config = {**SGD, "groups": [{"name": "others", "match": ["other"]}]}
    daemon = start(config)
    with paramd.Admin(daemon.address) as admin, training(daemon.address) as values:
        until_it_trains(admin)
        curve = admin.lr_find(1e-3, 1, 6, group="others", smooth_f=0.02, debias=True, exclude_end=True)
        assert curve["group"] == "others"
        assert [point["lr"] for point in curve["rows"]] == pytest.approx(np.logspace(-3, 0, 7)[:6])
        losses = [point["loss"] for point in curve["rows"]]
        weights = 0.98 ** np.arange(len(losses))
        assert curve["rows"][-1]["smoothed"] == pytest.approx(np.average(losses[::-1], weights=weights))
        assert curve["suggestion"] is None  # 10 + 5 points are left out
    before, after = curve["step"], curve["version"]
    assert values[after - 2] == values[before - 1] - np.float32(0.5 * 5)  # the group has no tensor


def test_lr_find_that_comes_to_nothing_says_why(start):
    daemon = start(SGD)
    with paramd.Admin(daemon.address) as admin:
        with pytest.raises(paramd.RefusedError, match="no worker trains now"):
            admin.lr_find()
        with pytest.raises(paramd.RefusedError, match="there was no search"):
            admin.lr_curve()
        with training(daemon.address, losses=lambda step: None):
            until_it_trains(admin)
            with pytest.raises(paramd.InvalidError, match="steps: 1: out of range; allowed: a whole number from 2"):
                admin.lr_find(num_iter=1)
            with pytest.raises(paramd.RefusedError, match="lr-find failed: no worker gave the loss"):
                admin.lr_find()


def test_lr_find_ends_with_its_caller(start):
    daemon = start(SGD)

    def interrupt(point):
        raise KeyboardInterrupt

    with paramd.Admin(daemon.address) as admin, training(daemon.address):
        until_it_trains(admin)
        with pytest.raises(KeyboardInterrupt):
            admin.lr_find(num_iter=10000, diverge_th=1e9, progress=interrupt)
        while not admin.lr_curve()["over"]:
            time.sleep(0.01)
        assert admin.lr_curve()["end"] == "cancelled"
        other = paramd.Admin(daemon.address)
        after(0.2, other.lr_cancel)
        with pytest.raises(paramd.RefusedError, match="lr-find cancelled: an administrator cancelled it"):
            admin.lr_find(num_iter=10000, diverge_th=1e9)
        other.close()


def test_admin_has_every_command_of_paramctl():
    paramctl = Path(os.environ["PARAMD"]).parent / "paramctl"
    said = subprocess.run([paramctl, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^  ([a-z-]+)(?:, ([a-z-]+))?(?: [A-Z]+)* {2,}", said, re.MULTILINE)
    names = {name.replace("-", "_") for names in commands for name in names if name and not name.startswith("-")}
    assert {"status", "set_lr", "pause", "resume", "stop"} <= names
    assert [name for name in sorted(names) if not callable(getattr(paramd.Admin, name, None))] == []


def test_an_observer_reports_metrics(start):
    daemon = start({**SGD, "schedule": {"name": "plateau", "metric": "val_loss"}})
    with paramd.Client(daemon.address) as client, paramd.Admin(daemon.address) as admin:
        client.register(ones())
        client.step({"bias": np.float32(1)}, samples=1)
        admin.report_metric("val_loss", 0.75, client.version)
        assert admin.status()["metrics"] == [{"name": "val_loss", "value": 0.75, "step": 1}]
        assert [worker["name"] for worker in admin.workers()["workers"]] == [client.name]


def test_draining_ends_a_wait(start):
    daemon = start({**SGD, "workers": {"expected": 2}, "drain_timeout_s": 0.5})
    with paramd.Admin(daemon.address) as admin, pytest.raises(paramd.DrainingError):
        client = paramd.Client(daemon.address)
        client.register(ones())
        after(0.3, admin.drain)
        client.step({}, samples=1)


def test_structures_are_those_of_the_header(tmp_path):
    """The offsets and sizes that ctypes has, as static assertions of a C program."""
    checks = []
    for name in ("Error", "Options", "Tensor", "StepInfo", "Command", "Lane"):
        structure = getattr(library, name)
        tag = "paramd_" + re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
        checks.append(f"sizeof(struct {tag}) == {ctypes.sizeof(structure)}")
        for field, _ in structure._fields_:
            offset = getattr(structure, field).offset
            checks.append(f"offsetof(struct {tag}, {field}) == {offset}")
    source = tmp_path / "check.c"
    lines = [f'_Static_assert({check}, "{check}");\n' for check in checks]
    source.write_text('#include "paramd.h"\n#include <stddef.h>\n' + "".join(lines))
    include = Path(__file__).resolve().parents[2] / "client" / "include"
    compiler = os.environ.get("CC", "cc")
    result = subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", f"-I{include}", source], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(checks) > 30


def test_a_missing_library_says_where_it_looked(tmp_path):
    program = "import paramd; paramd.Client('127.0.0.1:1')"
    environment = {**os.environ, "PARAMD_LIBRARY": str(tmp_path / "nowhere.so")}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "LibraryNotFoundError" in last
    assert f"{tmp_path}/nowhere.so: no such file" in last
    assert "PARAMD_LIBRARY" in last


def test_a_daemon_that_does_not_start_says_why():
    with pytest.raises(RuntimeError, match="no_such_key"):
        paramd.Daemon({"no_such_key": 1})
