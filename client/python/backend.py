"""What pip calls to make a wheel (PEP 517), with nothing but Python: it works without a network.

The wheel is the package `paramd` with the C library in it: the one that $PARAMD_LIBRARY names, else one
from a build tree beside these sources that is newer than they are, else one that cmake builds now.
"""

import base64
import hashlib
import os
import subprocess
import sysconfig
import tempfile
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
LIBRARY_NAME = "libparamd.so.0"


class UnsupportedOperation(Exception):
    """PEP 517: this kind of archive cannot be made."""


def _found_library():
    chosen = os.environ.get("PARAMD_LIBRARY")
    if chosen:
        return Path(chosen).read_bytes()
    sources = (path for part in ("client", "common", "proto") for path in (CHECKOUT / part).rglob("*.[ch]"))
    newest = max(path.stat().st_mtime for path in sources)
    for path in sorted(CHECKOUT.glob(f"build*/lib/{LIBRARY_NAME}")):
        if path.stat().st_mtime >= newest:
            return path.read_bytes()
    return None


def _built_library():
    with tempfile.TemporaryDirectory(prefix="paramd-build-") as tree:
        configure = ["cmake", "-S", CHECKOUT, "-B", tree, "-DCMAKE_BUILD_TYPE=Release", "-DPARAMD_TESTS=OFF"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", tree, "--target", "paramd_shared", "-j"], check=True)
        return (Path(tree) / "lib" / LIBRARY_NAME).read_bytes()


def _metadata(project):
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"License: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
    ]
    lines += [f"Requires-Dist: {needed}" for needed in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {needed}; extra == "{extra}"' for needed in requirements]
    return "\n".join(lines) + "\n"


def _tag():
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"py3-none-{platform}"


def _record(files):
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return lines


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Make the wheel; returns its file name."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    base = f"{project['name']}-{project['version']}"
    info = f"{base}.dist-info"
    files = {
        f"paramd/{path.name}": path.read_bytes()
        for path in sorted((HERE / "paramd").iterdir())
        if path.suffix in (".py", ".typed")
    }
    files[f"paramd/{LIBRARY_NAME}"] = _found_library() or _built_library()
    files[f"{info}/METADATA"] = _metadata(project).encode()
    wheel = f"Wheel-Version: 1.0\nGenerator: paramd\nRoot-Is-Purelib: false\nTag: {_tag()}\n"
    files[f"{info}/WHEEL"] = wheel.encode()
    record = [*_record(files), f"{info}/RECORD,,"]
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    name = f"{base}-{_tag()}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return name


def build_sdist(sdist_directory, config_settings=None):
    """The C library's sources lie outside this directory: install from a checkout."""
    raise UnsupportedOperation("paramd is installed from a checkout of its sources: pip install ./client/python")
