# SPDX-License-Identifier: MIT
"""One machine."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from ._core import Handle, HasFileno, Log, Owner, Path, call, fileno, log_fields, obtain, slices
from ._errors import Error, InvalidError, RefusedError, TimedOutError
from ._types import (
    BalloonStats,
    Event,
    EventType,
    Exit,
    Irqchip,
    Stage,
    State,
    Stats,
    new,
    plain,
    text,
)
from ._vmm import ffi, lib

if TYPE_CHECKING:
    from ._snapshot import Snapshot

# A guest that was slow to answer a call that was given up finds the connection
# closed: the calls are not too short.
CONNECT_SLICE = 0.5


class Machine(Owner):
    """A virtual machine: RAM from address 0x80000000 on, vCPUs with an interrupt
    controller, a real-time clock, a generation id, a doorbell, and the devices
    that are added to it.

    kernel
        A Linux Image (plain, gzip, zstd, EFI zboot) or an ELF file: a path, or an
        open file or descriptor.
    initrd
        An initial RAM disk, likewise.
    cmdline
        Of the kernel.
    memory
        Bytes of RAM, in 2 MiB steps; 0: 128 MiB.
    vcpus
        1 to 64.
    isa
        What the guest is to have, as "rv64imafdc_zba_zbb", or what to take away from
        all the host has, as "-v,-zicbom".
    name
        In logs and thread names.
    log
        A logging.Logger, or a function that is called with a LogLevel and a line, on
        any thread; it must not use the machine.  One that refers to it keeps it alive
        until it is closed.

    Raises InvalidError: an argument; NoKvmError, NotSupportedError: the host;
    SystemCallError: a file or the kernel; FormatError: a file is not what it should
    be, or does not fit into RAM.

    >>> with vmm.Machine("Image", initrd="initrd.cpio", cmdline="console=ttyS0") as vm:
    ...     vm.add_serial(0, 1)
    ...     vm.start()
    ...     print(vm.wait())

    A machine is NEW, RUNNING, PAUSED, STOPPED or BROKEN (state).  It runs on threads
    of its own.  Any method may be called from any thread; those that wait let
    others pass.  Each raises InvalidError for a bad argument, StateError if the
    machine is in the wrong state or closed, BrokenError if it is BROKEN.  A method
    that fails has changed nothing, unless the machine is BROKEN then.

    Timeouts are in seconds, None: for ever.
    """

    #: Of a machine of a pool: what the pool's prepare function returned for it.
    prepared: Any = None

    def __init__(
        self,
        kernel: Path | HasFileno | int,
        *,
        initrd: Path | HasFileno | int | None = None,
        cmdline: str = "",
        memory: int = 0,
        vcpus: int = 1,
        irqchip: Irqchip = Irqchip.DEFAULT,
        isa: str | None = None,
        name: str | None = None,
        log: Log | None = None,
    ) -> None:
        config = new("vmm_config")
        keep = [log_fields(config, log)]

        def string(value: str | bytes) -> Any:
            keep.append(ffi.new("char[]", os.fsencode(value)))
            return keep[-1]

        for field, file in (("kernel", kernel), ("initrd", initrd)):
            if isinstance(file, str | bytes | os.PathLike):
                setattr(config, field, string(os.fsencode(file)))
            elif file is not None:
                fd = fileno(file)
                if fd <= 0:
                    raise InvalidError(f"{field}: descriptor {fd}")
                setattr(config, f"{field}_fd", fd)
        config.cmdline = string(cmdline)
        config.isa = string(isa) if isa else ffi.NULL
        config.name = string(name) if name else ffi.NULL
        config.vcpus = vcpus
        config.memory = memory
        config.irqchip = irqchip
        out = ffi.new("struct vmm **")
        pointer = obtain(lib.vmm_free, out, lib.vmm_create, out, config)
        self._own(Handle("machine", pointer, lib.vmm_free, keep[0]))

    @classmethod
    def _of(cls, pointer: Any, *keep: Any) -> Self:
        """A machine that the library has made."""
        self = cls.__new__(cls)
        self._own(Handle("machine", pointer, lib.vmm_free, *keep))
        return self

    def __repr__(self) -> str:
        return f"<vmm.Machine {'closed' if self.closed else self.state.name}>"

    def close(self) -> None:
        """Stop the machine at once, as if by pulling the plug, and free it.

        Other threads that wait for it find it closed."""
        self._wake()
        self._handle.close()

    def _wake(self) -> None:
        """Calls on other threads are to come to an end."""
        with suppress(Error), self._handle as vm:
            if self._handle.users > 1:
                lib.vmm_stop(vm, ffi.NULL)

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        """What the end of a with block does; a pool has another idea of it."""
        self.close()

    # ---- Devices -------------------------------------------------------------

    def add_serial(self, input: int | HasFileno | None, output: int | HasFileno | None) -> None:
        """The serial port, the kernel's ttyS0, and behind the SBI debug console.

        input, output: files or descriptors; None: nothing comes in, what goes out is
        dropped.  Output is kept until it can be written, and the guest waits.

        Devices are added while the machine is NEW.  On a restored machine the same
        call puts another back end behind the device of that name."""
        with self._handle as vm:
            call(lib.vmm_add_serial, vm, fileno(input), fileno(output))

    def open_serial(self) -> socket.socket:
        """add_serial(), with a socket at the other end, which is returned.  It must be
        read: a guest waits rather than lose output.

        >>> console = vm.open_serial()
        >>> vm.start()
        >>> console.sendall(b"poweroff -f\\n")"""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.add_serial(theirs, theirs)
            except BaseException:
                ours.close()
                raise
        return ours

    def add_blk(
        self,
        name: str,
        path: Path,
        *,
        readonly: bool = False,
        direct: bool = False,
        nosync: bool = False,
        overlay: bool = False,
    ) -> None:
        """A disk: a raw image or a block device, a multiple of 512 bytes long.

        Names of virtio devices are of at most 31 bytes, unique in the machine.

        readonly: the guest cannot write.  direct: past the host's page cache.
        nosync: a flush of the guest does nothing.  overlay: what the guest writes
        stays with the machine, and in its snapshots; path is only read, and may be
        shared.

        Raises SystemCallError: the file; InvalidError: the name is taken, or too long.

        >>> vm.add_blk("root", "root.img", overlay=True)"""
        flags = (
            readonly * lib.VMM_READONLY
            | direct * lib.VMM_DIRECT
            | nosync * lib.VMM_NOSYNC
            | overlay * lib.VMM_OVERLAY
        )
        with self._handle as vm:
            call(lib.vmm_add_blk, vm, name.encode(), os.fsencode(path), flags)

    def resize_blk(self, name: str) -> None:
        """The file of a disk has another size, which the guest is told."""
        with self._handle as vm:
            call(lib.vmm_resize_blk, vm, name.encode())

    def set_queues(self, name: str, queues: int) -> None:
        """How many queues a disk of a NEW machine has, 1 to 64.  With as many as there are
        vCPUs none waits for another."""
        with self._handle as vm:
            call(lib.vmm_set_queues, vm, name.encode(), queues)

    def limit(self, name: str, *, bytes_per_sec: int = 0, ops_per_sec: int = 0) -> None:
        """No more than so much a second through a disk or a network card, there each
        way; 0: no limit.  In any state.

        >>> vm.limit("root", bytes_per_sec=10 << 20, ops_per_sec=500)"""
        with self._handle as vm:
            call(lib.vmm_limit, vm, name.encode(), bytes_per_sec, ops_per_sec)

    def add_rng(self, name: str = "rng") -> None:
        """A source of entropy: the host's."""
        with self._handle as vm:
            call(lib.vmm_add_rng, vm, name.encode())

    def add_console(
        self, name: str, input: int | HasFileno | None, output: int | HasFileno | None
    ) -> None:
        """A virtio console; input and output as of add_serial()."""
        with self._handle as vm:
            call(lib.vmm_add_console, vm, name.encode(), fileno(input), fileno(output))

    def add_port(
        self,
        console: str,
        port: str,
        input: int | HasFileno | None,
        output: int | HasFileno | None,
    ) -> None:
        """A named port of a console, /dev/virtio-ports/PORT in the guest; up to 15.  What
        is written before somebody in the guest opens it waits.

        >>> ours, theirs = socket.socketpair()
        >>> vm.add_console("console", None, None)
        >>> vm.add_port("console", "agent", theirs, theirs)"""
        with self._handle as vm:
            call(
                lib.vmm_add_port, vm, console.encode(), port.encode(), fileno(input), fileno(output)
            )

    def resize_console(self, name: str, cols: int, rows: int) -> None:
        """The terminal of a console has so many columns and rows; the guest is told."""
        with self._handle as vm:
            call(lib.vmm_resize_console, vm, name.encode(), cols, rows)

    def add_balloon(self, name: str = "balloon") -> None:
        """What the guest does not use goes back to the host; more with balloon()."""
        with self._handle as vm:
            call(lib.vmm_add_balloon, vm, name.encode())

    def balloon(self, size: int, name: str = "balloon") -> None:
        """Ask the guest to give up size bytes, all in all; balloon_stat() tells how far it
        is."""
        with self._handle as vm:
            call(lib.vmm_balloon, vm, name.encode(), size)

    def trim(self, name: str = "balloon", timeout: float | None = None) -> None:
        """Have the guest of a RUNNING machine give back what it has free, now: before a
        snapshot, say.  Waits until it has, or no longer runs; Ctrl-C waits for that, too.

        Raises NotSupportedError: its driver cannot; TimedOutError: it has not come to
        an end."""
        ms = -1 if timeout is None else math.ceil(timeout * 1000)
        with self._handle as vm:
            call(lib.vmm_trim, vm, name.encode(), ms)

    def balloon_stat(self, name: str = "balloon") -> BalloonStats:
        """What the guest told last; it is asked for more, without waiting for it.
        When answers has grown, the figures are new.

        >>> vm.balloon_stat().available >> 20  # MiB
        117"""
        out = new("vmm_balloon_stats")
        with self._handle as vm:
            call(lib.vmm_balloon_stat, vm, name.encode(), out)
        return BalloonStats(**plain(out))

    def add_net(self, name: str, fd: int | HasFileno, mac: str | bytes | None = None) -> None:
        """A network card.  fd is a tap, or a connected socket: datagrams are frames, a
        stream has a length of 4 bytes, big-endian, before each.  mac: 6 bytes, or
        "52:54:00:12:34:56"; None: a random one.

        >>> vm.add_net("net", passt_socket)"""
        if isinstance(mac, str):
            mac = bytes.fromhex(mac.replace(":", ""))
        if mac is not None and len(mac) != 6:
            raise InvalidError(f"network card {name}: a MAC address has 6 bytes, not {len(mac)}")
        with self._handle as vm:
            call(lib.vmm_add_net, vm, name.encode(), fileno(fd), ffi.NULL if mac is None else mac)

    def add_fs(self, name: str, fd: int | HasFileno) -> None:
        """A directory, as virtiofsd serves it on a connected stream socket; the guest
        mounts it by the device's name.  Such a machine can be paused, but not saved."""
        with self._handle as vm:
            call(lib.vmm_add_fs, vm, name.encode(), fileno(fd))

    def add_vhost_blk(self, name: str, fd: int | HasFileno) -> None:
        """A disk, as a vhost-user server on a connected stream socket serves it.  Such a
        machine can be paused, but not saved."""
        with self._handle as vm:
            call(lib.vmm_add_vhost_blk, vm, name.encode(), fileno(fd))

    def add_vsock(self, cid: int = 3) -> None:
        """Sockets between host and guest: connect() and listen().  cid is the guest's
        address, 3 to 0xfffffffe; each machine can have the same."""
        with self._handle as vm:
            call(lib.vmm_add_vsock, vm, cid)

    def connect(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connect to a port that the guest listens on, or will before the timeout.

        Raises RefusedError: nobody listens, or the machine does not run;
        TimedOutError: the guest does not answer.

        >>> with vm.connect(5000, timeout=10) as s:
        ...     s.sendall(b"hello")"""
        out = ffi.new("int *", -1)
        for ms, last in slices(timeout, CONNECT_SLICE):
            running = self.state == State.RUNNING
            try:
                with self._handle as vm:
                    fd = obtain(os.close, out, lib.vmm_connect, vm, port, ms, out)
            except (RefusedError, TimedOutError):
                if last or not running:
                    raise
            else:
                return socket.socket(fileno=fd)
        raise AssertionError  # the last slice has returned, or raised

    def listen(self, port: int) -> socket.socket:
        """A listening socket: accept() on it gives the connections that the guest makes
        to this port of the host, CID 2.  Closing it ends that, and a second one for
        the port takes its place.

        >>> with vm.listen(1024) as listener:
        ...     vm.start()
        ...     connection, _ = listener.accept()"""
        out = ffi.new("int *", -1)
        with self._handle as vm:
            fd = obtain(os.close, out, lib.vmm_listen, vm, port, out)
        return socket.socket(fileno=fd)

    def fdt(self) -> bytes:
        """The device tree that the machine is started with."""
        size = ffi.new("size_t *")
        with self._handle as vm:
            call(lib.vmm_fdt, vm, ffi.NULL, 0, size)
            while True:
                room = size[0]
                buf = bytearray(room)
                call(lib.vmm_fdt, vm, ffi.from_buffer(buf), room, size)
                if size[0] <= room:  # no device was added in between
                    return bytes(buf[: size[0]])

    # ---- Life ------------------------------------------------------------------

    def start(self) -> None:
        """Run a NEW or PAUSED machine, on threads of its own.  Returns at once."""
        with self._handle as vm:
            call(lib.vmm_start, vm)

    def pause(self) -> None:
        """Hold a RUNNING machine still: no vCPU is in the guest, no I/O in flight, and
        its monotonic time stands.  StateError if the guest stopped first.

        >>> vm.pause()
        >>> snap = vm.snapshot()
        >>> vm.start()"""
        with self._handle as vm:
            call(lib.vmm_pause, vm)

    def stop(self) -> None:
        """Power it off, as if by pulling the plug; no event tells of it."""
        with self._handle as vm:
            call(lib.vmm_stop, vm)

    def reset(self) -> None:
        """Take a machine that does not run back to NEW: one that was restored, to its
        snapshot.  Devices keep what stands behind them; queued events are dropped.
        If that cannot be done the machine is BROKEN."""
        with self._handle as vm:
            call(lib.vmm_reset, vm)

    @property
    def state(self) -> State:
        """NEW, RUNNING, PAUSED, STOPPED, BROKEN.  Never waits."""
        with self._handle as vm:
            return State(lib.vmm_state(vm))

    def wait(self, timeout: float | None = None) -> Event | None:
        """The next event.  None: there was none before the timeout, or the machine does
        not run and has none.

        >>> event = vm.wait(timeout=30)
        >>> if event and event.type == vmm.EventType.SHUTDOWN:
        ...     print("exit code", event.value)"""
        out = ffi.new("struct vmm_event *")
        for ms, last in slices(timeout):
            running = self.state == State.RUNNING
            with self._handle as vm:
                call(lib.vmm_wait, vm, ms, out)
            if out.type != lib.VMM_EV_NONE:
                return Event(
                    EventType(out.type), out.vcpu, out.value, out.time_ns, text(out.detail)
                )
            if last or not running:
                break
        return None

    def events(self) -> Iterator[Event]:
        """Events, until the machine does not run any more.

        >>> for event in vm.events():
        ...     print(event.type.name, event.value)"""
        while (event := self.wait()) is not None:
            yield event

    def fileno(self) -> int:
        """A descriptor that polls readable while an event is queued.  Only poll it."""
        with self._handle as vm:
            fd: int = lib.vmm_fd(vm)
            return fd

    # ---- Memory, figures, snapshots ------------------------------------------------

    def read(self, gpa: int, size: int) -> bytes:
        """size bytes of guest RAM from address gpa on: all, or InvalidError.  In any state;
        of a machine that runs, they may be of different moments.

        >>> vm.read(0x80000000, 4)
        b'MZ\\x13\\x06'"""
        buf = bytearray(size)
        with self._handle as vm:
            call(lib.vmm_read, vm, gpa, ffi.from_buffer(buf), size)
        return bytes(buf)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write data into guest RAM from address gpa on: all, or InvalidError.

        >>> vm.write(0x80200000, b"hello")"""
        with self._handle as vm, ffi.from_buffer(data) as buf:
            call(lib.vmm_write, vm, gpa, buf, len(buf))

    def stat(self) -> Stats:
        """Figures, in any state; of a machine that runs, of now.

        >>> vm.stat().setup_ns / 1e6  # milliseconds
        3.2"""
        out = new("vmm_stats")
        with self._handle as vm:
            call(lib.vmm_stat, vm, out)
        return Stats(
            **plain(out),
            stage_ns={stage: out.stage_ns[stage] for stage in Stage},
            exits={exit: out.exits[exit] for exit in Exit},
        )

    def snapshot(self) -> "Snapshot":
        """Freeze a PAUSED machine, which stays PAUSED and may go on.  Machines restored
        from the snapshot share its RAM until they write to it.

        Raises NotSupportedError: a device cannot be saved."""
        from ._snapshot import Snapshot

        out = ffi.new("struct vmm_snap **")
        with self._handle as vm:
            pointer = obtain(lib.vmm_snap_free, out, lib.vmm_snap_take, out, vm)
        return Snapshot._of(pointer)
