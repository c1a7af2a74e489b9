"""What README.md says of Python: its programs run as written, with the configuration beside them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import paramd
import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README[README.index("\n## From torch.optim to paramd\n") :].split("\n## ")[1]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path):
    """Run the block that imports something, so many times at once, and return what each printed."""

    def start(imported, address, count):
        (program,) = [text for text in blocks("python") if text.startswith(f"import {imported}\n")]
        file = tmp_path / "train.py"
        file.write_text(program)
        started = [
            subprocess.Popen(
                [sys.executable, file],
                env={**os.environ, "PARAMD_SERVER": address},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(count)
        ]
        said = [process.communicate()[0] for process in started]
        assert [process.returncode for process in started] == [0] * count, said
        return said

    return start


def test_a_torch_loop_trains_with_two_workers(start, run):
    (config,) = blocks("yaml")
    address = start(config).address
    said = run("torch, paramd.torch", address, 2)
    for text in said:
        loss, step, rate = re.fullmatch(r"loss (\S+) after step (\d+), lr (\S+)\n", text).groups()
        assert float(loss) < 1e-3
        assert (int(step), float(rate)) == (300, pytest.approx(0, abs=1e-4))
    with paramd.Admin(address) as admin:
        assert admin.status()["step"] == 300


def test_a_numpy_worker_finds_the_minimum(start, run):
    address = start({"optimizer": {"name": "sgd", "lr": 0.1}}).address
    assert run("numpy, paramd", address, 1) == ["[1. 2. 3.] 200\n"]


def test_the_configuration_said_in_the_table_is_valid(tmp_path):
    said = re.findall(r"`((?:accumulation_steps|loss_scale|schedule): [^`…]+)`", SECTION)
    assert len(said) == 3
    file = tmp_path / "train.yaml"
    file.write_text("\n".join(said))
    subprocess.run([os.environ["PARAMD"], "--check-config", file], check=True)


def test_the_first_program_is_a_matter_of_ten_lines():
    lines = blocks("python")[0].splitlines()
    assert sum(bool(line) for line in lines) <= 11  # the last one only says how it went
    assert [line for line in lines if "paramd" in line] == [lines[0], lines[3]]
