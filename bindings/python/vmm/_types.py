# SPDX-License-Identifier: MIT
"""What the library tells and is told: its constants and structs, as Python has them.

Names are those of vmm.h, without VMM_ and the like; so are the fields' names and
units.  tests/test_census.py holds them against each other.
"""

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._vmm import ffi, lib


class State(enum.IntEnum):
    """What a machine is doing: see Machine."""

    NEW = lib.VMM_NEW
    RUNNING = lib.VMM_RUNNING
    PAUSED = lib.VMM_PAUSED
    STOPPED = lib.VMM_STOPPED
    BROKEN = lib.VMM_BROKEN


class LogLevel(enum.IntEnum):
    """How much a line of the log matters."""

    ERROR = lib.VMM_LOG_ERROR
    WARN = lib.VMM_LOG_WARN
    INFO = lib.VMM_LOG_INFO
    DEBUG = lib.VMM_LOG_DEBUG


class Irqchip(enum.IntEnum):
    """Interrupt controllers."""

    DEFAULT = lib.VMM_IRQCHIP_DEFAULT  #: the best that is sound on this host
    AIA_EMUL = lib.VMM_IRQCHIP_AIA_EMUL  #: in-kernel AIA, interrupt files in memory
    AIA_HWACCEL = lib.VMM_IRQCHIP_AIA_HWACCEL  #: ... in hardware, or the guest cannot run
    AIA_AUTO = lib.VMM_IRQCHIP_AIA_AUTO  #: ... in hardware while any is free


class EventType(enum.IntEnum):
    """What happened.  There is no NONE: Machine.wait() gives None then."""

    SHUTDOWN = lib.VMM_EV_SHUTDOWN  #: the guest powered off; value: its exit code
    REBOOT = lib.VMM_EV_REBOOT  #: the guest asked to restart; it is STOPPED
    CRASH = lib.VMM_EV_CRASH  #: the guest cannot go on; detail says why
    DOORBELL = lib.VMM_EV_DOORBELL  #: the guest rang with value
    FAULT = lib.VMM_EV_FAULT  #: the host side failed: the machine is BROKEN
    DEVICE = lib.VMM_EV_DEVICE  #: what is behind a device failed; value: an errno


class Stage(enum.IntEnum):
    """Where the time of a start goes, in order."""

    KVM = lib.VMM_STAGE_KVM  #: open KVM, check what it can do
    VM = lib.VMM_STAGE_VM  #: make the VM
    MEMORY = lib.VMM_STAGE_MEMORY  #: guest RAM
    VCPUS = lib.VMM_STAGE_VCPUS  #: vCPUs and what they are configured with
    IRQCHIP = lib.VMM_STAGE_IRQCHIP  #: interrupt controller
    LOAD = lib.VMM_STAGE_LOAD  #: kernel and initrd, or the snapshot
    START = lib.VMM_STAGE_START  #: device tree, boot registers, threads


class Exit(enum.IntEnum):
    """What vCPUs left the guest for."""

    MMIO = lib.VMM_EXIT_MMIO  #: a device register
    SBI = lib.VMM_EXIT_SBI  #: an SBI call that the library handles
    CSR = lib.VMM_EXIT_CSR  #: a CSR
    SIGNAL = lib.VMM_EXIT_SIGNAL  #: kicked by the library
    OTHER = lib.VMM_EXIT_OTHER  #: other exits to the library
    KERNEL = lib.VMM_EXIT_KERNEL  #: handled by KVM: page faults, SBI, CSRs, WFI


@dataclass(frozen=True, slots=True)
class Event:
    """What Machine.wait() gives."""

    type: EventType
    vcpu: int  #: that caused it
    value: int
    time_ns: int  #: of the host: time.monotonic_ns()
    detail: str  #: one line, for people, or empty


@dataclass(frozen=True, slots=True)
class Host:
    """What this host offers: see probe()."""

    max_vcpus: int  #: in one machine
    irqchip: Irqchip  #: what Irqchip.DEFAULT is here
    irqchips: frozenset[Irqchip]  #: what the host offers
    irqchips_sound: frozenset[Irqchip]  #: what its kernel gets right
    gpa_bits: int  #: width of a guest-physical address
    satp_bits: int  #: 39, 48 or 57: the guest's widest paging
    vlenb: int  #: bytes in a vector register, or 0
    timebase_hz: int  #: ticks of the guest's time a second
    kernel: str  #: release of the host kernel
    isa: str  #: all a guest can have, as "rv64imafdc_sstc"
    note: str  #: why irqchip is what it is, for people
    lazy: bool  #: a restore need not be eager; if not, each one is
    lazy_note: str  #: why, for people


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a machine: see Machine.stat()."""

    vcpus: int
    memory: int  #: bytes of RAM
    memory_used: int  #: of them, held in host memory
    stage_ns: Mapping[Stage, int]  #: what each stage of the start took
    setup_ns: int  #: all of them
    exits: Mapping[Exit, int]  #: of all vCPUs together
    memory_own: int  #: bytes that no other machine shares
    memory_waits: int  #: accesses that waited for RAM to be decoded
    memory_decoded: int  #: bytes decoded, for all machines of the snapshot


@dataclass(frozen=True, slots=True)
class BalloonStats:
    """What a balloon and its guest tell: see Machine.balloon_stat()."""

    answers: int  #: how often the guest has told what is its own
    target: int  #: bytes it is asked to give up
    actual: int  #: bytes it says it has given up
    returned: int  #: bytes given to the host so far, all in all
    total: int  #: bytes, of the guest's last answer; 0: it does not tell
    free: int
    available: int
    caches: int
    swap_in: int  #: bytes since it booted, and so these:
    swap_out: int
    major_faults: int
    minor_faults: int
    oom_kills: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a snapshot."""

    type: str  #: "blk", "net", "serial" ...
    name: str  #: that the add methods know it by


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a snapshot is of: see Snapshot.info()."""

    vcpus: int
    memory: int  #: bytes of RAM
    time_ns: int  #: of the guest's clock, since its power-on
    devices: tuple[Device, ...]  #: in the order in which the guest finds them
    vlenb: int  #: this to isa: what the host must have
    timebase_hz: int
    satp_bits: int
    parents: tuple[str, ...]  #: paths of the files it stands on, nearest first
    created: int  #: seconds since 1970
    file_size: int  #: 0: it is in no file
    ram_used: int  #: bytes of RAM that are not zero
    ram_own: int  #: bytes that they take in this file
    ram_parents: int  #: and in those it stands on
    working_set: int  #: pages that are read first, if known
    format_major: int
    format_minor: int
    uuid: uuid.UUID
    isa: str
    kernel: str  #: of the host it comes from


def text(chars: Any) -> str:
    """A char array of a struct."""
    string: bytes = ffi.string(chars)
    return string.decode(errors="replace")


def new(struct: str) -> Any:
    """A struct, as its INIT macro sets it up."""
    p = ffi.new(f"struct {struct} *")
    getattr(lib, f"init_{struct}")(p)
    return p


def plain(struct: Any, *but: str) -> dict[str, Any]:
    """The numbers and strings of a struct, by name; not its size."""
    values = {}
    for name, field in ffi.typeof(struct).item.fields:
        if name == "size" or name in but:
            continue
        value = getattr(struct, name)
        if field.type.kind == "array" and field.type.item.cname == "char":
            value = text(value)
        if field.type.kind != "array" or isinstance(value, str):
            values[name] = value
    return values
