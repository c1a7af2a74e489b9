"""The C library by ctypes: where it is found, and its functions with their types.

Mirrors ``client/include/paramd.h``; nothing here knows of numpy or torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int, c_int64, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from .errors import LibraryNotFoundError

LIBRARY_NAME = "libparamd.so.0"
LAST = 1
SCALED = 2
CURRENT = 0
NEXT = 2**64 - 1
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}

Interrupted = ctypes.CFUNCTYPE(c_int, c_void_p)
FloatArray = POINTER(c_float)


class Error(ctypes.Structure):
    _fields_ = [("status", c_int), ("message", c_char * 512)]


class Options(ctypes.Structure):
    _fields_ = [
        ("address", c_char_p),
        ("name", c_char_p),
        ("observer", c_int),
        ("push_dtype", c_int),
        ("pull_dtype", c_int),
        ("checksum", c_int),
        ("timeout_ms", c_int64),
        ("connect_timeout_ms", c_int64),
        ("busy_poll_us", c_int),
        ("interrupted", Interrupted),
        ("interrupted_context", c_void_p),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("dimension_count", c_uint32), ("shape", POINTER(c_uint64))]


class StepInfo(ctypes.Structure):
    _fields_ = [
        ("pulled", c_int),
        ("version", c_uint64),
        ("lr", c_double),
        ("skipped_steps", c_uint64),
        ("loss_scale", c_double),
        ("stop", c_int),
    ]


class Command(ctypes.Structure):
    _fields_ = [
        ("command", c_char_p),
        ("target", c_char_p),
        ("has_value", c_int),
        ("value", c_double),
        ("begin", c_uint64),
        ("count", c_uint64),
        ("settings", POINTER(c_char_p)),
    ]


class Lane(ctypes.Structure):
    _fields_ = [
        ("rank", c_uint32),
        ("address", c_char_p),
        ("element_begin", c_uint64),
        ("element_count", c_uint64),
    ]


_ARRAYS = POINTER(c_void_p)
_PUSH = [c_void_p, _ARRAYS, c_uint64, POINTER(c_double), c_uint]

# The arguments without the closing struct paramd_error *; they return a status.
_CALLS: dict[str, list[Any]] = {
    "paramd_register": [c_void_p, POINTER(Tensor), c_uint32, _ARRAYS],
    "paramd_push": _PUSH,
    "paramd_push_hessian": [c_void_p, _ARRAYS, c_uint64, c_uint],
    "paramd_pull": [c_void_p, c_uint64, _ARRAYS, POINTER(c_uint64)],
    "paramd_pull_average": [c_void_p, _ARRAYS, POINTER(c_uint64)],
    "paramd_step_begin": [*_PUSH, _ARRAYS],
    "paramd_step_end": [c_void_p, POINTER(StepInfo)],
    "paramd_step": [*_PUSH, _ARRAYS, POINTER(StepInfo)],
    "paramd_report_metric": [c_void_p, c_char_p, c_double, c_uint64],
    "paramd_admin": [c_void_p, POINTER(Command), POINTER(c_void_p)],
    "paramd_leave": [c_void_p],
    "paramd_connect": [POINTER(Options), POINTER(c_void_p)],
}
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "paramd_options_init": (None, [POINTER(Options)]),
    "paramd_step_ready": (None, [c_void_p, c_uint32]),
    "paramd_step_cancel": (None, [c_void_p]),
    "paramd_loss_scale": (c_double, [c_void_p]),
    "paramd_free": (None, [c_void_p]),
    "paramd_close": (None, [c_void_p]),
    "paramd_set_timeout": (None, [c_void_p, c_int64]),
    "paramd_worker_id": (c_uint32, [c_void_p]),
    "paramd_worker_name": (c_char_p, [c_void_p]),
    "paramd_run_id": (c_uint64, [c_void_p]),
    "paramd_next_step": (c_uint64, [c_void_p]),
    "paramd_next_micro_batch": (c_uint32, [c_void_p]),
    "paramd_accumulation_steps": (c_uint32, [c_void_p]),
    "paramd_group_count": (c_uint32, [c_void_p]),
    "paramd_group_lr": (c_double, [c_void_p, c_uint32]),
    "paramd_rank_count": (c_uint32, [c_void_p]),
    "paramd_lane_count": (c_uint32, [c_void_p]),
    "paramd_lane_at": (Lane, [c_void_p, c_uint32]),
    "paramd_status_name": (c_char_p, [c_int]),
    "paramd_library_version": (c_char_p, []),
}


def candidates() -> list[str]:
    """The places looked at, in order; $PARAMD_LIBRARY is the only one when it is set."""
    chosen = os.environ.get("PARAMD_LIBRARY")
    if chosen:
        return [chosen]
    package = Path(__file__).resolve().parent
    checkout = package.parents[2]
    places = [package / LIBRARY_NAME]
    if (checkout / "client" / "include" / "paramd.h").exists():
        places += sorted(checkout.glob(f"build*/lib/{LIBRARY_NAME}"))
    return [str(place) for place in places] + [LIBRARY_NAME]


def _open() -> ctypes.CDLL:
    faults = []
    for place in candidates():
        if os.sep in place and not os.path.exists(place):
            faults.append(f"{place}: no such file")
            continue
        try:
            return ctypes.CDLL(place)
        except OSError as fault:
            faults.append(str(fault) if place in str(fault) else f"{place}: {fault}")
    raise LibraryNotFoundError(
        "the C library of paramd was not found: " + "; ".join(faults)
        + "; build it (ninja paramd_shared), or let PARAMD_LIBRARY name it"
    )


@functools.lru_cache(maxsize=None)
def load() -> ctypes.CDLL:
    """The library, with the types of its functions set.

    Raises:
        LibraryNotFoundError: it is in none of the places, or of another version.
    """
    library = _open()
    try:
        for name, arguments in _CALLS.items():
            function = getattr(library, name)
            function.restype = c_int
            function.argtypes = [*arguments, POINTER(Error)]
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except AttributeError as fault:
        raise LibraryNotFoundError(f"the C library of paramd does not fit this package: {fault}") from None
    return library
