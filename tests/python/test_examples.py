"""The examples, run as written, some of them shorter than by default."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import paramd
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "client" / "python" / "examples"
SMALL_GPT = ["--width", "48", "--layers", "2", "--heads", "2", "--context", "32", "--sample", "50", "--lr", "1e-2"]


class Example:
    """An example that runs; its lines as they come."""

    def __init__(self, name, *arguments, cwd):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, pattern):
        for line in self.process.stdout:
            self.lines.append(line)
            match = re.search(pattern, line)
            if match:
                return match
        raise AssertionError(f"{pattern} never came:\n" + "".join(self.lines))

    def finish(self):
        self.lines += list(self.process.stdout)
        assert self.process.wait() == 0, "".join(self.lines)
        return "".join(self.lines)

    def stop(self):
        self.process.terminate()
        self.process.communicate()


@pytest.fixture
def run(tmp_path):
    """Start an example in a directory of its own; it ends with the test."""
    started = []

    def begin(name, *arguments):
        started.append(Example(name, *arguments, cwd=tmp_path))
        return started[-1]

    yield begin
    for example in started:
        example.stop()


def test_digits_are_told_right(run):
    said = run("digits.py", "--steps", "400", "--every", "25").finish()
    assert "a daemon of 2 shards listens at 127.0.0.1:" in said
    assert float(re.search(r"^accuracy ([\d.]+) ", said, re.MULTILINE)[1]) >= 0.98
    assert "worker w1 step 400/400 loss" in said


def test_an_example_uses_the_daemon_it_is_given(run, start):
    daemon = start({"workers": {"expected": 1}, "optimizer": {"name": "adamw", "lr": 3e-3}})
    run("digits.py", "--server", daemon.address, "--workers", "1", "--steps", "20", "--accuracy", "5").finish()
    with paramd.Admin(daemon.address) as admin:
        assert admin.status()["step"] == 20


def test_an_example_that_does_not_reach_its_goal_fails(run):
    example = run("digits.py", "--workers", "1", "--ranks", "1", "--steps", "1")
    assert example.process.wait() == 1


def test_a_gpt_goes_on_when_a_worker_is_killed_and_another_takes_its_place(run, tmp_path):
    example = run("char_gpt.py", *SMALL_GPT, "--steps", "200", "--every", "10", "--batch", "8", "--loss", "2.9")
    killed = int(example.read_until(r"worker w2 is process (\d+)")[1])
    before = int(example.read_until(r"^worker w0 step (\d+)/200")[1])
    os.kill(killed, signal.SIGKILL)
    example.read_until(r"worker 2 was ended by signal 9; it is started again")
    example.read_until(r"worker w2-2 is process")
    joined = int(example.read_until(r"^worker w2-2 step (\d+)/200")[1])
    said = example.finish()
    assert before < joined < 200
    for name in ("w0", "w1", "w2-2", "w3"):
        assert f"worker {name} step 200/200" in said
    assert "worker w2 step 200/200" not in said
    with open(tmp_path / "char_gpt.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 201))
    assert (tmp_path / "char_gpt.png").read_bytes().startswith(b"\x89PNG")


def test_a_gpt_learns_by_lamb(run):
    arguments = ["--workers", "2", "--steps", "80", "--rule", "lamb", "--lr", "3e-2", "--batch", "16", "--loss", "3.4"]
    said = run("char_gpt.py", *SMALL_GPT, *arguments).finish()
    assert "---- it writes:" in said


def test_local_steps_reach_the_same_loss_with_50_times_fewer_bytes(run):
    said = run("diloco.py", "--every", "1000").finish()
    more, fewer = map(float, re.search(r"loss ([+-][\d.]+) % .* bytes ([\d.]+) times fewer", said).groups())
    assert more <= 2
    assert fewer == pytest.approx(50, rel=0.02)
