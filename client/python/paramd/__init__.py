"""The Python client of paramd, a parameter-server daemon: give gradients, get parameters.

:class:`Client` works with numpy arrays, ``paramd.torch.Optimizer`` with PyTorch modules,
:class:`Admin` does what ``paramctl`` does, and :class:`Daemon` runs a daemon on this machine.
"""

from .admin import Admin
from .client import NEXT, Client
from .daemon import Daemon
from .errors import (
    ConnectionFailedError,
    DeadlineError,
    DrainingError,
    Error,
    IdentityError,
    InterruptedCallError,
    InvalidError,
    LibraryNotFoundError,
    ModelError,
    OutOfMemoryError,
    RefusedError,
    StepError,
)

__version__ = "0.1.0"

__all__ = [
    "NEXT",
    "Admin",
    "Client",
    "ConnectionFailedError",
    "Daemon",
    "DeadlineError",
    "DrainingError",
    "Error",
    "IdentityError",
    "InterruptedCallError",
    "InvalidError",
    "LibraryNotFoundError",
    "ModelError",
    "OutOfMemoryError",
    "RefusedError",
    "StepError",
]
