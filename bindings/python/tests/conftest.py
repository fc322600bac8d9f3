# SPDX-License-Identifier: MIT
"""What tests share.

They run with either of two libraries: one whose KVM is a fake (python.mk), or the real
one.  A test chooses its guest by name; without KVM those that want one are skipped.
"""

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmm

TOP = Path(__file__).resolve().parents[3]
GOLDEN = TOP / "tests" / "golden" / "snapshot-1.0.snap"
MACHINE = TOP / "tests" / "golden" / "machine-1.0.snap"
DIFF = TOP / "tests" / "golden" / "snapshot-1.0-diff.snap"
RAM = 0x80000000
MiB = 1 << 20

# A shell has its background jobs ignore Ctrl-C, and Python leaves it at that.
signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    FAKE: ctypes.CDLL | None = ctypes.CDLL("libvmm.so.0")
    FAKE.vmmpy_violation.restype = ctypes.c_char_p  # type: ignore[union-attr]
except (AttributeError, OSError):
    FAKE = None


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled() -> int:
    """Descriptors, when there come no more: a snapshot's next VM takes 10 ms."""
    last, now = -1, fds()
    while now != last:
        time.sleep(0.1)
        last, now = now, fds()
    return now


def tasks() -> int:
    """Threads: Python's, and the library's."""
    return len(os.listdir("/proc/self/task"))


def until(true: Callable[[], object], what: str) -> None:
    """Nothing here depends on speed: this is for what hangs."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """No descriptor, no thread is left behind by any test."""
    gc.collect()
    if FAKE:
        FAKE.vmmpy_guest(b"spins")
    before, threads = fds(), tasks()
    yield
    gc.collect()
    until(lambda: tasks() <= threads, "threads are left")
    until(lambda: fds() <= before, "descriptors are left")
    if FAKE:
        assert FAKE.vmmpy_violation() == b""


# ---- Guests --------------------------------------------------------------------

SPIN = 0x0000006F
ECALL = 0x00000073


def li(register: int, value: int) -> int:
    """addi register, zero, value"""
    return value << 20 | register << 7 | 0x13


A0, A1, A6, A7, S0, T0 = 10, 11, 16, 17, 8, 5
SBI_VMM = 0x09000 << 12 | A7 << 7 | 0x37  # lui a7, VMM_GUEST_SBI >> 12

# The same as in fake_guests.c, for real harts.  No guest makes its host fail.
EXITS = [li(A0, 42), li(A6, 1), SBI_VMM, ECALL]
CODE = {
    "spins": [SPIN],
    "rings": [li(A0, 7), li(A6, 0), SBI_VMM, ECALL, SPIN],
    "chatters": [
        li(S0, 0),
        S0 << 15 | A0 << 7 | 0x13,  # 1: mv a0, s0
        li(A6, 0),
        SBI_VMM,
        ECALL,
        1 << 20 | S0 << 15 | S0 << 7 | 0x13,  # addi s0, s0, 1
        0xFEDFF06F,  # j 1b
    ],
    "exits": EXITS,
    "exits_later": [
        0x01000 << 12 | T0 << 7 | 0x37,  # lui t0, 0x1000
        0xFFF << 20 | T0 << 15 | T0 << 7 | 0x13,  # 1: addi t0, t0, -1
        0xFE029EE3,  # bnez t0, 1b
        *EXITS,
    ],
    "reboots": [  # SBI 2.0, 10.1
        li(A0, 1),
        li(A1, 0),
        li(A6, 0),
        0x53525 << 12 | A7 << 7 | 0x37,
        0x354 << 20 | A7 << 15 | A7 << 7 | 0x13,
        ECALL,
    ],
}


def image(name: str) -> bytes:
    """A guest as the least that is a kernel: Linux, Documentation/arch/riscv/boot-image-header."""
    data = bytearray(4096)
    data[:4] = (0x0400006F).to_bytes(4, "little")  # j 64
    data[48:53] = b"RISCV"
    data[56:60] = b"RSC\x05"
    for i, word in enumerate(CODE.get(name, [SPIN])):
        data[64 + 4 * i : 68 + 4 * i] = word.to_bytes(4, "little")
    return bytes(data)


def why_no_guests() -> str:
    if FAKE:
        return ""
    try:
        vmm.probe()
    except vmm.Error as e:
        return str(e)
    return ""


NO_GUESTS = why_no_guests()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel: of the guest that guest() was called for last."""
    path = tmp_path / "Image"
    path.write_bytes(image("spins"))
    return path


Guest = Callable[..., vmm.Machine]


@pytest.fixture
def guest(kernel: Path) -> Guest:
    """guest("rings"): a NEW machine in which that runs."""
    if NO_GUESTS:
        pytest.skip(NO_GUESTS)

    def make(name: str, /, **options: object) -> vmm.Machine:
        if FAKE:
            assert FAKE.vmmpy_guest(name.encode()) == 0, name
        elif name not in CODE:
            pytest.skip("no real guest does that")
        kernel.write_bytes(image(name))
        return vmm.Machine(kernel, **{"memory": 4 * MiB, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def snap(guest: Guest) -> Iterator[vmm.Snapshot]:
    """A guest that rings again and again, frozen, with "original" in its RAM."""
    with guest("chatters") as vm:
        vm.add_serial(None, None)
        vm.add_vsock()
        vm.start()
        assert vm.wait(60)
        vm.pause()
        vm.write(RAM + 3 * MiB, b"original")
        with vm.snapshot() as snap:
            yield snap
