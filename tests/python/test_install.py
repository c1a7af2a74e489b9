"""Installing the package without a network, and using it from a checkout without installing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
STEP = """
import sys, numpy, paramd
with paramd.Client(sys.argv[1]) as client:
    client.register({"x": numpy.zeros(3)})
    print(paramd.__file__, client.step({"x": numpy.ones(3)}, samples=1)["x"])
"""


def environment(**change):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PARAMD_LIBRARY")}
    return {**kept, "PIP_NO_INDEX": "1", **change}


def run(*command, cwd, **change):
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(**{name: str(value) for name, value in change.items()}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture
def address(start):
    return start({"optimizer": {"name": "sgd", "lr": 1.0}}).address


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Of a virtual environment that sees Debian's numpy and torch."""
    place = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--system-site-packages", place, cwd=place)
    return place / "bin" / "python"


def test_pip_installs_it_with_its_library(tmp_path, address, python):
    library = os.environ["PARAMD_LIBRARY"]
    run(python, "-m", "pip", "install", CHECKOUT / "client" / "python", cwd=tmp_path, PARAMD_LIBRARY=library)
    said = run(python, "-c", STEP, address, cwd=tmp_path)
    assert said.startswith(str(python.parents[1]))
    assert said.endswith("[-1. -1. -1.]\n")
    shown = run(python, "-m", "pip", "show", "--files", "paramd", cwd=tmp_path)
    assert "paramd/libparamd.so.0" in shown
    assert "paramd/py.typed" in shown


def test_pip_builds_the_library_where_it_is_older_than_its_sources(tmp_path, python):
    sources = tmp_path / "paramd"
    sources.mkdir()
    shutil.copy(CHECKOUT / "CMakeLists.txt", sources)
    for part in ("client", "common", "proto", "server"):
        shutil.copytree(CHECKOUT / part, sources / part, ignore=shutil.ignore_patterns("__pycache__"))
    old = sources / "build" / "lib" / "libparamd.so.0"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier version")
    os.utime(old, (0, 0))
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, sources / "client" / "python", cwd=tmp_path)
    (wheel,) = tmp_path.glob("paramd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("paramd/libparamd.so.0").startswith(b"\x7fELF")


def test_debian_s_python_uses_a_checkout_without_installing(tmp_path, address):
    shutil.copytree(CHECKOUT / "client" / "python", tmp_path / "client" / "python")
    shutil.copytree(CHECKOUT / "client" / "include", tmp_path / "client" / "include")
    (tmp_path / "build" / "lib").mkdir(parents=True)
    shutil.copy(os.environ["PARAMD_LIBRARY"], tmp_path / "build" / "lib" / "libparamd.so.0")
    said = run(sys.executable, "-c", STEP, address, cwd=tmp_path, PYTHONPATH=tmp_path / "client" / "python")
    assert said == f"{tmp_path}/client/python/paramd/__init__.py [-1. -1. -1.]\n"
