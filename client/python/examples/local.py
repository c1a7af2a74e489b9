"""What the examples share: a daemon and workers on this machine, and lines of progress.

An example started without ``--worker`` starts a daemon, unless ``--server`` names one, and itself again as
each worker; ``--worker 0/4 --server HOST:PORT`` starts one worker by hand, on any machine.
"""

import argparse
import contextlib
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

if importlib.util.find_spec("paramd") is None:  # not installed: it lies beside the examples
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import paramd

STARTS_MAX = 5  # of one worker, however often it is killed
LINE = re.compile(r"^worker (?P<name>\S+) step (?P<step>\d+)/(?P<steps>\d+)(?P<rest>.*)$")


def make_parser(description, *, workers, steps, ranks=2):
    """Arguments that all examples take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", metavar="HOST:PORT", help="a running daemon (default: start one here)")
    parser.add_argument("--ranks", type=int, default=ranks, help="shards of a daemon started here (%(default)s)")
    parser.add_argument("--workers", type=int, default=workers, help="worker processes (%(default)s)")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--worker", metavar="INDEX/COUNT", help="be one worker of so many, and start nothing")
    parser.add_argument("--name", help="of this worker (default: w and its index)")
    parser.add_argument("--every", type=int, default=50, help="steps between lines of progress of one worker (%(default)s)")
    parser.add_argument("--log", metavar="FILE", help="write step, seconds, loss and learning rate of one worker as CSV")
    return parser


def parse(parser):
    """The options, with index, count and name of this worker if it is one."""
    options = parser.parse_args()
    options.index, options.count = 0, options.workers
    if options.worker:
        try:
            options.index, options.count = map(int, options.worker.split("/"))
        except ValueError:
            parser.error(f"--worker {options.worker}: INDEX/COUNT is needed, such as 0/4")
    options.name = options.name or f"w{options.index}"
    return options


class Progress:
    """A line now and then: which worker is at what step, and what it sees there."""

    def __init__(self, options, step=0):
        print(f"worker {options.name} begins at step {step}", flush=True)
        self.options = options
        self.begin = time.monotonic()
        self.samples = 0
        self.step = 0
        self.log = open(options.log, "w", buffering=1) if options.log else None
        if self.log:
            print("step,seconds,loss,lr", file=self.log)

    def show(self, step, samples, loss, lr):
        """After each micro-batch; all but the last of a step come before there is something new to show."""
        self.samples += samples
        if step == self.step:
            return
        self.step = step
        seconds = time.monotonic() - self.begin
        if self.log:
            print(f"{step},{seconds:.3f},{loss:.6g},{lr:.6g}", file=self.log)
        if step % self.options.every == 0 or step == self.options.steps:
            place = f"worker {self.options.name} step {step}/{self.options.steps}"
            print(f"{place} loss {loss:.3f} lr {lr:.1e} {self.samples / seconds:.0f} samples/s", flush=True)


class Board:
    """The last line of each worker as a bar, drawn over the one before; without a terminal, all lines."""

    def __init__(self, workers):
        self.live = sys.stdout.isatty()
        self.lines = [""] * workers
        self.drawn = False
        self.lock = threading.Lock()

    def take(self, index, line):
        with self.lock:
            if not self.live:
                print(line, flush=True)
                return
            match = LINE.match(line)
            if not match:
                self.erase()
                print(line)
                self.drawn = False
            else:
                done = int(match["step"]) / max(int(match["steps"]), 1)
                bar = "#" * round(20 * done)
                self.lines[index] = f"{match['name']} [{bar:<20}] {match['step']}/{match['steps']}{match['rest']}"
            self.draw()

    def erase(self):
        if self.drawn:
            print(f"\033[{len(self.lines)}A\033[J", end="")

    def draw(self):
        self.erase()
        width = shutil.get_terminal_size().columns - 1
        for line in self.lines:
            print(line[:width])
        self.drawn = True


class Workers:
    """This program once for each worker; one that is killed is started again. All end with the block."""

    def __init__(self, count, server, arguments):
        self.board = Board(count)
        self.count = count
        # In sessions of their own, so that Ctrl-C is heard here alone; they end with this program all the same.
        self.command = ["setpriv", "--pdeathsig", "TERM", sys.executable, *sys.argv, "--server", server, *arguments]
        self.processes = [None] * count
        self.codes = [None] * count
        self.ending = False
        self.lock = threading.Lock()  # of what is above
        self.threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(count)]

    def _start(self, index, name):
        every = ["--every", "1"] if self.board.live else []
        with self.lock:
            if self.ending:
                return None
            self.processes[index] = subprocess.Popen(
                [*self.command, "--worker", f"{index}/{self.count}", "--name", name, *every],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            return self.processes[index]

    def _run(self, index):
        for start in range(STARTS_MAX):
            name = f"w{index}-{start + 1}" if start else f"w{index}"
            process = self._start(index, name)
            if process is None:
                return
            self.board.take(index, f"worker {name} is process {process.pid}")
            for line in process.stdout:
                self.board.take(index, line.rstrip("\n"))
            code = self.codes[index] = process.wait()
            if code >= 0 or self.ending:
                break
            self.board.take(index, f"worker {name} was ended by signal {-code}")
        if code != 0:  # the others would go on without it
            self._end()

    def _end(self):
        with self.lock:
            self.ending = True
            for process in self.processes:
                if process is not None and process.poll() is None:
                    process.terminate()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def wait(self):
        """Until all have ended; their exit codes."""
        for thread in self.threads:
            while thread.is_alive():
                thread.join(0.2)  # a signal is heard in between
        return self.codes

    def __exit__(self, *_):
        self._end()
        self.wait()


def launch(options, config, arguments=()):
    """Run a daemon and the workers to their end; returns the exit code for the program."""
    for number in (signal.SIGINT, signal.SIGTERM):  # through the blocks below, so that nothing is left
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        server = options.server
        if server is None:
            server = stack.enter_context(paramd.Daemon(config, options.ranks)).address
            print(f"a daemon of {options.ranks} shards listens at {server}", flush=True)
        codes = stack.enter_context(Workers(options.workers, server, list(arguments))).wait()
    return 0 if not any(codes) else 1
