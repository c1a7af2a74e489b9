"""The examples, run as written, some of them shorter than by default."""

import contextlib
import csv
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import paramd
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "client" / "python" / "examples"
# Knowing how frequent each letter is comes to a loss of 3.21, knowing nothing to 4.45.
SMALL_GPT = ["--width", "64", "--layers", "1", "--heads", "2", "--context", "32", "--batch", "16", "--sample", "50"]


class Example:
    """An example that runs; its lines as they come."""

    def __init__(self, name, *arguments, cwd, output=subprocess.PIPE):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *arguments],
            cwd=cwd,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, pattern):
        """The first match among all lines from the beginning, waiting for it if need be."""
        for line in itertools.chain(self.lines[:], self._read()):
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"{pattern} never came:\n" + "".join(self.lines))

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            yield line

    def finish(self):
        self.lines += self.process.stdout
        assert self.process.wait() == 0, "".join(self.lines)
        return "".join(self.lines)

    def stop(self):
        self.process.terminate()
        self.process.communicate()


@pytest.fixture
def run(tmp_path):
    """Start an example in a directory of its own; it ends with the test."""
    started = []

    def begin(name, *arguments, **options):
        started.append(Example(name, *arguments, cwd=tmp_path, **options))
        return started[-1]

    yield begin
    for example in started:
        example.stop()


def test_digits_are_told_right(run):
    said = run("digits.py", "--steps", "400", "--every", "25").finish()
    assert "a daemon of 2 shards listens at 127.0.0.1:" in said
    assert float(re.search(r"^accuracy ([\d.]+) ", said, re.MULTILINE)[1]) >= 0.98
    assert "worker w1 step 400/400 loss" in said


def test_progress_is_a_bar_on_a_terminal(run):
    leader, follower = os.openpty()
    example = run("digits.py", "--workers", "1", "--ranks", "1", "--steps", "10", "--accuracy", "0", output=follower)
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError), open(leader, "rb", buffering=0) as terminal:  # EIO: nobody writes any more
        while part := terminal.read(4096):
            said += part
    assert example.process.wait() == 0
    assert b"w0 [##########          ] 5/10 loss" in said
    assert b"w0 [####################] 10/10 loss" in said


def test_an_example_uses_the_daemon_it_is_given(run, start):
    daemon = start({"workers": {"expected": 1}, "optimizer": {"name": "adamw", "lr": 3e-3}})
    run("digits.py", "--server", daemon.address, "--workers", "1", "--steps", "20", "--accuracy", "5").finish()
    with paramd.Admin(daemon.address) as admin:
        assert admin.status()["step"] == 20


def running_with(mark):
    """Whether a process has this in its environment."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_example_that_is_ended_leaves_no_process_behind(run, tmp_path, monkeypatch, number):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    example = run("digits.py", "--steps", "100000", "--every", "1")
    example.read_until(r"^worker w1 step 1/")
    assert running_with(f"TMPDIR={tmp_path}")
    example.process.send_signal(number)
    assert example.process.wait() == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    deadline = time.monotonic() + 30
    while running_with(f"TMPDIR={tmp_path}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob("paramd-*"))


def test_an_example_that_does_not_reach_its_goal_fails(run):
    example = run("digits.py", "--workers", "1", "--ranks", "1", "--steps", "1")
    assert example.process.wait() == 1


def test_a_gpt_goes_on_when_a_worker_is_killed_and_another_takes_its_place(run, tmp_path):
    example = run("char_gpt.py", *SMALL_GPT, "--steps", "200", "--every", "1", "--lr", "1e-2", "--loss", "2.8")
    address = example.read_until(r"listens at (\S+)")[1]
    killed = int(example.read_until(r"^worker w2 is process (\d+)")[1])
    example.read_until(r"^worker w2 step 5/200")
    os.kill(killed, signal.SIGKILL)
    example.read_until(r"^worker w2 was ended by signal 9")
    with paramd.Admin(address) as admin:
        without = admin.step()["step"] + 2  # a step that the killed worker cannot have contributed to
        example.read_until(rf"^worker w0 step {without}/200")
        admin.pause()  # so that the other is there in time, however long it takes to start
        begin = int(example.read_until(r"^worker w2-2 begins at step (\d+)")[1])
        admin.resume()
    said = example.finish()
    assert 5 <= begin < 200
    for name in ("w0", "w1", "w2-2", "w3"):
        assert f"worker {name} step 150/200" in said
    assert "worker w2 step 150/200" not in said
    with open(tmp_path / "char_gpt.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 201))
    assert (tmp_path / "char_gpt.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpt_learns_by_lamb(run):
    arguments = ["--workers", "2", "--steps", "60", "--rule", "lamb", "--lr", "6e-2", "--loss", "3.6"]
    said = run("char_gpt.py", *SMALL_GPT, *arguments).finish()
    assert "---- it writes:" in said


def test_local_steps_reach_the_same_loss_with_50_times_fewer_bytes(run):
    said = run("diloco.py", "--every", "1000").finish()
    more, fewer = map(float, re.search(r"loss ([+-][\d.]+) % .* bytes ([\d.]+) times fewer", said).groups())
    assert more <= 2
    assert fewer == pytest.approx(50, rel=0.02)
