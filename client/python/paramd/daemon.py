"""A daemon on this machine for as long as a program needs one, for examples, tests and notebooks.

    with paramd.Daemon({"optimizer": {"name": "sgd", "lr": 0.1}}, ranks=2) as daemon:
        client = paramd.Client(daemon.address)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_READY = re.compile(r"^paramd ready: .*?\b0 at ([^ ,\n]+)", re.MULTILINE)


def _checkout() -> Path:
    return Path(__file__).resolve().parents[3]


def find_program(name: str, places: list[Path]) -> str:
    """The first of `places` that is an executable, else `name` in PATH.

    Raises:
        FileNotFoundError: says where it looked.
    """
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    found = shutil.which(name)
    if found is None:
        looked = ", ".join(map(str, places)) or "nowhere else"
        raise FileNotFoundError(f"{name} was not found in PATH nor at {looked}; let PARAMD name the daemon")
    return found


def _find_paramd() -> str:
    chosen = os.environ.get("PARAMD")
    if chosen:
        return chosen
    return find_program("paramd", sorted(_checkout().glob("build*/bin/paramd")))


class Daemon:
    """Start paramd on ports that the kernel chooses, and stop it at the end of the `with` block.

    It ends by itself when the thread that has started it ends otherwise.

    Args:
        config: keys of the configuration file, or its text; ``listen`` is set here.
        ranks: 1 starts the daemon by itself, more start it under mpirun by ``paramd-launch``.
        timeout: how long it may take to become ready (s).

    Attributes:
        address: "host:port" of rank 0.
        log: path of what the daemon printed.

    Raises:
        RuntimeError: it did not become ready; the message has what it printed.
        FileNotFoundError: the program was not found.
    """

    def __init__(self, config: Mapping[str, Any] | str | None = None, ranks: int = 1, timeout: float = 30.0) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="paramd-")
        directory = Path(self._directory.name)
        self.log = directory / "paramd.log"
        file = directory / "paramd.yaml"
        text = config if isinstance(config, str) else json.dumps(config or {})  # JSON is YAML
        file.write_text(text)
        paramd = _find_paramd()
        arguments = ["--config", str(file), "--set", "listen=127.0.0.1:0"]
        command = [paramd, *arguments]
        if ranks > 1:
            launch = find_program("paramd-launch", [_checkout() / "deploy" / "paramd-launch"])
            command = [launch, "-n", str(ranks), "--", *arguments]
        if shutil.which("setpriv"):  # it ends with the program that needs it
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        with open(self.log, "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PARAMD": paramd},
                start_new_session=True,
            )
        try:
            self.address = self._wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while True:
            text = self.log.read_text(errors="replace")
            ready = _READY.search(text)
            if ready:
                return ready[1]
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"paramd did not become ready; it printed:\n{text}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the daemon, or of paramd-launch."""
        return self._process.pid

    def stop(self, timeout: float = 15.0) -> int:
        """Let it drain for so long (s), then end it at once; returns its exit code, 0 if it has drained."""
        for patience in (timeout, 5.0):  # the second SIGTERM is the one that ends it at once
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:  # workers that failed may have left a step that will not end
            self.stop(1.0)
        self._directory.cleanup()
