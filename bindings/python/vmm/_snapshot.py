# SPDX-License-Identifier: MIT
"""Machines frozen in time."""

import os
import uuid
from collections.abc import Callable
from typing import Any, Self, TypedDict, Unpack

from ._core import Callback, Handle, HasFileno, Log, Owner, Path, call, fileno, log_fields, obtain
from ._machine import Machine
from ._types import Device, Irqchip, SnapshotInfo, new, plain, text
from ._vmm import ffi, lib

Progress = Callable[[int, int], object]


class RestoreOptions(TypedDict, total=False):
    """How a machine comes out of a snapshot: of Snapshot.restore() and Pool()."""

    #: The original is gone: keep its identity.
    resume: bool
    #: Note which pages it touches, for Snapshot.learn(); it is slow.
    record: bool
    #: Map the working set now: the restore takes longer, the run that follows less.
    populate: bool
    #: Decode all of RAM before it runs, not when it is touched.
    eager: bool
    #: It need not be as it was.
    irqchip: Irqchip
    #: That decode; 0: one for each CPU.
    threads: int
    #: In logs and thread names.
    name: str
    #: As of Machine.
    log: Log


def restore_config(options: RestoreOptions) -> tuple[Any, list[Any]]:
    """A struct vmm_restore_config, and what must live as long as it is used; the first
    of that, as long as the machine."""
    config = new("vmm_restore_config")
    keep = [log_fields(config, options.get("log"))]
    config.flags = (
        options.get("resume", False) * lib.VMM_RESUME
        | options.get("record", False) * lib.VMM_RECORD
        | options.get("populate", False) * lib.VMM_POPULATE
    )
    config.memory = lib.VMM_MEM_EAGER if options.get("eager") else lib.VMM_MEM_LAZY
    config.irqchip = options.get("irqchip", Irqchip.DEFAULT)
    config.threads = options.get("threads", 0)
    if options.get("name"):
        keep.append(ffi.new("char[]", options["name"].encode()))
        config.name = keep[-1]
    if unknown := set(options) - set(RestoreOptions.__annotations__):
        raise TypeError(f"unknown option {unknown.pop()!r}")
    return config, keep


def _write(
    function: Callable[..., int],
    *args: Any,
    level: int = 0,
    threads: int = 0,
    parent: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Call what takes a struct vmm_write_config; what progress raises comes out of it."""
    # There always is a callback: Ctrl-C gets through in it.
    callback = Callback(progress or (lambda _done, _total: None))
    config = new("vmm_write_config")
    config.level = level
    config.threads = threads
    config.progress = lib.vmmpy_progress_c
    config.progress_arg = callback.handle
    if parent is not None:
        path = ffi.new("char[]", os.fsencode(parent))
        config.parent = path
    try:
        call(function, *args, config)
    except Exception:
        if callback.error:
            raise callback.error from None
        raise


class Snapshot(Owner):
    """A machine frozen in time: registers, interrupt controller, timers, devices, RAM.
    It never changes, and any number of machines can be restored from it.

    Machine.snapshot() takes one; Snapshot.open() and Snapshot.receive() read it.

    >>> with vmm.Snapshot.open("vm.snap") as snap, snap.restore() as vm:
    ...     vm.start()

    Machines and pools made of it keep what they need when it is closed.
    """

    def __init__(self) -> None:
        raise TypeError("Machine.snapshot(), Snapshot.open() or Snapshot.receive() make one")

    @classmethod
    def _of(cls, pointer: Any) -> Self:
        self = cls.__new__(cls)
        self._own(Handle("snapshot", pointer, lib.vmm_snap_free))
        return self

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a saved file.  What is read is checked against its hashes; the first
        restore reads the rest.

        Raises FormatError: damaged, or no snapshot; VersionError: of a version that
        the library cannot read; SystemCallError."""
        out = ffi.new("struct vmm_snap **")
        return cls._of(obtain(lib.vmm_snap_free, out, lib.vmm_snap_open, out, os.fsencode(path)))

    @classmethod
    def receive(cls, fd: int | HasFileno) -> Self:
        """Read one from a descriptor, to the end of what comes: the other side of
        send()."""
        out = ffi.new("struct vmm_snap **")
        return cls._of(obtain(lib.vmm_snap_free, out, lib.vmm_snap_receive, out, fileno(fd)))

    def __repr__(self) -> str:
        return f"<vmm.Snapshot {'closed' if self.closed else 'open'}>"

    def write(
        self,
        path: Path,
        *,
        level: int = 0,
        threads: int = 0,
        parent: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Save it: on success path holds all of it and it is on disk, on failure path is
        as it was.

        level: of zstd; 0: 1.  threads: that compress; 0: one for each CPU.  parent: a
        snapshot file, which must stay as it is: store only what differs from it.
        progress: called now and then with bytes of RAM done and in all; what it
        raises ends the write and comes out of here.

        >>> snap.write("vm.snap", level=3)
        >>> snap.write("later.snap", parent="vm.snap")"""
        with self._handle as snap:
            _write(
                lib.vmm_snap_write, snap, os.fsencode(path),
                level=level, threads=threads, parent=parent, progress=progress,
            )  # fmt: skip

    def send(
        self,
        fd: int | HasFileno,
        *,
        level: int = 0,
        threads: int = 0,
        parent: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """The same as write(), to a descriptor that need not seek: a pipe, a socket.

        >>> with socket.create_connection(("other", 7000)) as s:
        ...     snap.send(s)"""
        with self._handle as snap:
            _write(
                lib.vmm_snap_send, snap, fileno(fd),
                level=level, threads=threads, parent=parent, progress=progress,
            )  # fmt: skip

    def info(self) -> SnapshotInfo:
        """What it is of, without restoring it.

        >>> vmm.Snapshot.open("vm.snap").info().memory >> 20  # MiB
        128"""
        out = new("vmm_snap_info")
        device = ffi.new("struct vmm_snap_device *")
        devices = []
        with self._handle as snap:
            call(lib.vmm_snap_info, snap, out)
            for i in range(out.devices):
                call(lib.vmm_snap_device, snap, i, device)
                devices.append(Device(text(device.type), text(device.name)))
            parents = [
                os.fsdecode(ffi.string(lib.vmm_snap_parent(snap, i))) for i in range(out.parents)
            ]
        return SnapshotInfo(
            **plain(out, "devices", "parents"),
            devices=tuple(devices),
            parents=tuple(parents),
            uuid=uuid.UUID(bytes=bytes(out.uuid)),
        )

    def restore(self, **options: Unpack[RestoreOptions]) -> Machine:
        """Make a NEW machine of it, as often as wanted: this is cloning.  Its devices are
        there; the add methods, called again, give each its back end by its name.

        Raises VersionError, which names what the snapshot needs and this host lacks;
        FormatError; NoKvmError, NotSupportedError.  See RestoreOptions.

        >>> clone = snap.restore(name="clone", populate=True)"""
        config, keep = restore_config(options)
        out = ffi.new("struct vmm **")
        with self._handle as snap:
            pointer = obtain(lib.vmm_free, out, lib.vmm_restore, out, snap, config)
        return Machine._of(pointer, keep[0])

    def learn(self, vm: Machine) -> None:
        """Learn the working set: the pages that vm, restored from it with record=True, has
        touched so far.  It replaces what the snapshot knew; with populate=True as well, that
        is among them.

        >>> with snap.restore(record=True) as vm:
        ...     vm.start()
        ...     vm.wait()
        ...     snap.learn(vm)
        >>> snap.write("vm.snap")"""
        with self._handle as snap, vm._handle as pointer:
            call(lib.vmm_snap_learn, snap, pointer)


def snap_merge(
    source: Path,
    to: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write a snapshot file and all that it stands on as one file that stands on none.
    Nothing is compressed again; progress is told frames."""
    _write(lib.vmm_snap_merge, os.fsencode(source), os.fsencode(to), progress=progress)


def snap_verify(path: Path) -> None:
    """Check every byte of a snapshot file.  FormatError says what is wrong where;
    SystemCallError: it cannot be read.

    >>> vmm.snap_verify("vm.snap")"""
    call(lib.vmm_snap_verify, os.fsencode(path))
