"""The package is typed throughout, and its users' programs are checked against that."""

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "client" / "python"
WRONG = """
import numpy as np
import paramd

client = paramd.Client("127.0.0.1:7070", wire_dtype="bfloat16")
parameters = client.register({"x": np.zeros(3)})
client.push(parameters, samples="all")
version: str = client.version
"""


def check(*arguments, cache):
    return subprocess.run(
        ["mypy", "--config-file", PACKAGE / "pyproject.toml", "--python-executable", sys.executable]
        + ["--cache-dir", cache, *arguments],
        env={**os.environ, "MYPYPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_passes_and_a_wrong_use_does_not(tmp_path):
    passed = check("-p", "paramd", cache=tmp_path)
    assert passed.returncode == 0, passed.stdout
    assert "no issues found" in passed.stdout
    wrong = check("-c", WRONG, cache=tmp_path)
    assert '"samples" to "push" of "Client" has incompatible type "str"' in wrong.stdout
    assert 'expression has type "int", variable has type "str"' in wrong.stdout
    assert "Found 2 errors" in wrong.stdout
