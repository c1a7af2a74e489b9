"""deploy/quickstart trains, says how it went, and leaves no process behind however it ends."""
import os
import pathlib
import pty
import re
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "deploy" / "quickstart"
DEADLINE_S = 240
END_S = 20


def tagged_processes(tag):
    """Command lines of the live processes that were started with this in their environment."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and f"QUICKSTART_TEST={tag}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass
    return found


class Run:
    """One start of quickstart, its output in a file, its processes known by their environment."""

    def __init__(self, *arguments, environment=None, output=None):
        self.tag = f"{os.getpid()}.{id(self)}."
        self.file = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [QUICKSTART, *arguments], stdin=subprocess.DEVNULL, stdout=output or self.file,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **(environment or {}), "QUICKSTART_TEST": self.tag})

    def text(self):
        self.file.seek(0)
        return self.file.read()

    def wait_for_text(self, text):
        end = time.monotonic() + DEADLINE_S
        while text not in self.text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no \"{text}\" in:\n{self.text()}")
            time.sleep(0.02)

    def wait(self):
        return self.process.wait(DEADLINE_S)

    def left_behind(self):
        """What is still running when what was told to end has had its time to."""
        end = time.monotonic() + END_S
        while tagged_processes(self.tag) and time.monotonic() < end:
            time.sleep(0.1)
        return tagged_processes(self.tag)

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.wait()
        self.file.close()


class Quickstart(unittest.TestCase):
    def start(self, *arguments, **options):
        run = Run(*arguments, **options)
        self.addCleanup(run.close)
        return run

    def check_success(self, run, steps, code, least=96):
        text = run.text()
        self.assertEqual(code, 0, text)
        self.assertGreaterEqual(float(re.search(r"^test accuracy: ([\d.]+) %", text, re.M).group(1)), least)
        self.assertRegex(text, rf"(?m)^final step: {steps}, final LR: \d")
        picture = pathlib.Path(re.search(r"^curves of .*: (.*)$", text, re.M).group(1))
        self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(run.left_behind(), [])

    def test_trains_and_tells_without_calling_apt(self):
        with tempfile.TemporaryDirectory() as folder:
            for program in ("apt-get", "sudo"):
                path = pathlib.Path(folder, program)
                path.write_text(f"#!/bin/sh\ntouch {folder}/called\nexit 1\n")
                path.chmod(0o755)
            run = self.start("--steps", "800",
                             environment={"PATH": f"{folder}:{os.environ['PATH']}"})
            self.check_success(run, 800, run.wait())
            self.assertFalse(pathlib.Path(folder, "called").exists())
        text = run.text()
        for worker in ("w0", "w1"):
            self.assertRegex(text, rf"(?m)^worker {worker} step 800/800 loss [\d.]+ lr \S+ \d+ samples/s$")
        self.assertRegex(text, r"(?m)^\$ paramctl .* lr\n(.*\n)*learning rate +\d")
        self.assertRegex(text, r"(?m)^\$ paramctl .* step\nstep +\d")
        self.assertNotIn("\033", text)

    def test_two_at_once_do_not_disturb_one_another(self):
        runs = [self.start("--steps", "500"), self.start("--steps", "500")]
        for run in runs:
            self.check_success(run, 500, run.wait())

    def test_two_with_torch_do_not_disturb_one_another(self):
        runs = [self.start("--torch"), self.start("--torch")]
        for run in runs:
            self.check_success(run, 300, run.wait(), least=98)
            self.assertIn("client/python/examples/digits.py", run.text())

    def test_other_numbers_of_ranks_and_workers_train_as_well(self):
        run = self.start("--steps", "500", "--ranks", "3", "--workers", "1")
        self.check_success(run, 500, run.wait())

    def test_shows_live_lines_on_a_terminal(self):
        master, slave = pty.openpty()
        run = self.start("--steps", "500", output=slave, environment={"TERM": "xterm"})
        os.close(slave)
        text = b""
        try:
            while chunk := os.read(master, 65536):
                text += chunk
        except OSError:  # the terminal is gone when the last writer is
            pass
        os.close(master)
        self.assertEqual(run.wait(), 0, text)
        self.assertGreater(text.count(b"\033[2A"), 5)
        self.assertIn(b"\033[2Kworker w1 step 500/500", text)

    def test_says_so_when_the_model_is_not_good_enough(self):
        run = self.start("--steps", "3")
        self.assertEqual(run.wait(), 1, run.text())
        self.assertIn("quickstart: the model did not become good enough", run.text())
        self.assertEqual(run.left_behind(), [])

    def check_end(self, number, text, *arguments):
        with self.subTest(number=number.name, text=text, arguments=arguments):
            run = self.start(*arguments)
            run.wait_for_text(text)
            run.process.send_signal(number)
            code = run.wait()
            self.assertEqual(code, -9 if number == signal.SIGKILL else 128 + number)
            self.assertEqual(run.left_behind(), [])

    def test_leaves_no_process_behind_when_it_is_ended(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            for text in ("building in", "starting paramd", "training with", "worker w1 step"):
                self.check_end(number, text, "--steps", "6000")
        for number in (signal.SIGTERM, signal.SIGKILL):
            for text in ("training with", "worker w1 step"):
                self.check_end(number, text, "--torch", "--steps", "6000")

    def test_refuses_what_it_does_not_know(self):
        for arguments in (["--steps", "0"], ["--ranks", "65"], ["--workers"], ["--fast"]):
            run = self.start(*arguments)
            self.assertEqual(run.wait(), 2, arguments)


if __name__ == "__main__":
    unittest.main()
