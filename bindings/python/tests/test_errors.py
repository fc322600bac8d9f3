# SPDX-License-Identifier: MIT
"""Every code arrives as its exception, with the library's message."""

import builtins
import errno
import pickle
import shutil
import time
from pathlib import Path

import pytest
from conftest import FAKE, GOLDEN, RAM, Guest, MiB

import vmm
from vmm._errors import BY_CODE, error_of
from vmm._vmm import ffi, lib


@pytest.mark.parametrize("code", range(lib.VMM_EBROKEN, 0))
def test_code(code: int) -> None:
    err = ffi.new("struct vmm_error *", {"code": code, "os_errno": 5, "message": b"a \xff thing"})
    error = error_of(err)
    assert type(error) is BY_CODE[code]
    assert (error.code, error.errno, error.message) == (code, 5, "a \ufffd thing")
    assert str(error) == error.message
    assert vmm.strerror(code).startswith("VMM_E")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.code, again.errno, str(again)) == (code, 5, str(error))


def test_code_of_a_newer_library() -> None:
    error = error_of(ffi.new("struct vmm_error *", {"code": -99, "message": b"new"}))
    assert type(error) is vmm.Error
    assert (error.code, error.errno) == (-99, None)
    assert vmm.strerror(-99) == "VMM_E?"


def test_hierarchy() -> None:
    for cls in BY_CODE.values():
        assert issubclass(cls, vmm.Error)
    assert issubclass(vmm.InvalidError, ValueError)
    assert issubclass(vmm.NoMemoryError, MemoryError)
    assert issubclass(vmm.SystemCallError, OSError)
    assert issubclass(vmm.TimedOutError, builtins.TimeoutError)
    assert issubclass(vmm.RefusedError, ConnectionRefusedError)


def test_system_call() -> None:
    with pytest.raises(vmm.SystemCallError) as e:
        vmm.Snapshot.open("/nowhere/vm.snap")
    assert e.value.errno == errno.ENOENT
    assert "/nowhere/vm.snap" in str(e.value)


def test_format(tmp_path: Path) -> None:
    path = tmp_path / "bad.snap"
    path.write_bytes(b"no snapshot" * 1000)
    with pytest.raises(vmm.FormatError, match=r"bad\.snap"):
        vmm.Snapshot.open(path)
    shutil.copy(GOLDEN, path)
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        f.write(b"damage")
    with pytest.raises(vmm.FormatError):
        vmm.snap_verify(path)


def test_version(snap: vmm.Snapshot) -> None:
    if not FAKE:
        pytest.skip("this host has what the snapshot needs")
    FAKE.vmmpy_poor_host()
    with pytest.raises(vmm.VersionError, match="zbb"):
        snap.restore()


def test_not_supported(guest: Guest) -> None:
    if not FAKE:
        pytest.skip("this host has it")
    guest("spins").close()
    FAKE.vmmpy_no_aia()
    with pytest.raises(vmm.NotSupportedError):
        vmm.probe()


def test_no_memory(guest: Guest, kernel: Path) -> None:
    if not FAKE:
        pytest.skip("this host has it")
    guest("spins").close()
    FAKE.vmmpy_no_memory()
    with pytest.raises(vmm.NoMemoryError, match="vCPU 0") as e:
        vmm.Machine(kernel, memory=4 * MiB)
    assert e.value.errno == errno.ENOMEM


@pytest.mark.skipif(FAKE is not None or Path("/dev/kvm").exists(), reason="there is a KVM")
def test_no_kvm(kernel: Path) -> None:
    for attempt in (vmm.probe, lambda: vmm.Machine(kernel)):
        with pytest.raises(vmm.NoKvmError, match="/dev/kvm"):
            attempt()


def test_invalid(kernel: Path) -> None:
    with pytest.raises(vmm.InvalidError, match="2 MiB"):
        vmm.Machine(kernel, memory=12345)
    with pytest.raises(vmm.InvalidError, match="65 vCPUs"):
        vmm.Machine(kernel, vcpus=65)
    with pytest.raises(vmm.InvalidError, match="descriptor 0"):
        vmm.Machine(0)
    with pytest.raises(OverflowError):
        vmm.Machine(kernel, vcpus=-1)
    with pytest.raises(TypeError):
        vmm.Snapshot()
    with pytest.raises(vmm.InvalidError, match="no kernel"):
        vmm.Machine(None)  # type: ignore[arg-type]


def test_states(guest: Guest) -> None:
    with guest("spins") as vm:
        with pytest.raises(vmm.StateError, match="is NEW: cannot pause"):
            vm.pause()
        with pytest.raises(vmm.StateError):
            vm.snapshot()
        with pytest.raises(vmm.InvalidError, match="not all RAM"):
            vm.read(RAM + 4 * MiB - 1, 2)
        with pytest.raises(vmm.InvalidError, match="timeout"):
            vm.wait(-1)
        with pytest.raises(vmm.InvalidError, match="6 bytes"):
            vm.add_net("net", 0, b"12345")


def test_closed(guest: Guest) -> None:
    vm = guest("spins")
    vm.close()
    vm.close()
    assert vm.closed
    assert repr(vm) == "<vmm.Machine closed>"
    with pytest.raises(vmm.StateError, match="machine is closed"):
        vm.start()
    with pytest.raises(vmm.StateError, match="machine is closed"):
        vm.state  # noqa: B018


def test_broken(guest: Guest) -> None:
    with guest("fails") as vm:
        vm.start()
        event = vm.wait(60)
        assert event
        assert event.type == vmm.EventType.FAULT
        assert vm.state == vmm.State.BROKEN
        with pytest.raises(vmm.BrokenError):
            vm.start()
        assert vm.stat().vcpus == 1
        assert vm.wait(0) is None


def test_refused_and_timed_out(guest: Guest) -> None:
    with guest("spins") as vm:
        vm.add_vsock()
        with pytest.raises(vmm.RefusedError, match="does not run"):
            vm.connect(5000)
        vm.start()
        begin = time.monotonic()
        with pytest.raises(vmm.TimedOutError, match="no answer from port 5000"):
            vm.connect(5000, timeout=0.7)  # two slices
        assert time.monotonic() - begin >= 0.7
