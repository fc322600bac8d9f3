# SPDX-License-Identifier: MIT
"""RISC-V virtual machines on KVM: run them, freeze them, clone them.

    import vmm

    with vmm.Machine("Image", initrd="initrd.cpio", cmdline="console=ttyS0") as vm:
        vm.add_serial(0, 1)
        vm.start()
        print(vm.wait())

A Machine runs on threads of its own; Machine.snapshot() freezes a paused one into a
Snapshot, from which any number can be restored; a Pool has some of them ready.
vmm.aio has the same for asyncio.  Errors are vmm.Error, or one of its subclasses.
"""

from . import aio
from ._core import HasFileno, Log
from ._errors import (
    BrokenError,
    Error,
    FormatError,
    InvalidError,
    NoKvmError,
    NoMemoryError,
    NotSupportedError,
    RefusedError,
    StateError,
    SystemCallError,
    TimedOutError,
    VersionError,
)
from ._host import probe, strerror, version
from ._machine import Machine
from ._pool import Pool
from ._snapshot import RestoreOptions, Snapshot, snap_merge, snap_verify
from ._types import (
    BalloonStats,
    Device,
    Event,
    EventType,
    Exit,
    Host,
    Irqchip,
    LogLevel,
    SnapshotInfo,
    Stage,
    State,
    Stats,
)

__version__ = version()

__all__ = [
    "BalloonStats",
    "BrokenError",
    "Device",
    "Error",
    "Event",
    "EventType",
    "Exit",
    "FormatError",
    "HasFileno",
    "Host",
    "InvalidError",
    "Irqchip",
    "Log",
    "LogLevel",
    "Machine",
    "NoKvmError",
    "NoMemoryError",
    "NotSupportedError",
    "Pool",
    "RefusedError",
    "RestoreOptions",
    "Snapshot",
    "SnapshotInfo",
    "Stage",
    "State",
    "StateError",
    "Stats",
    "SystemCallError",
    "TimedOutError",
    "VersionError",
    "__version__",
    "aio",
    "probe",
    "snap_merge",
    "snap_verify",
    "strerror",
    "version",
]
