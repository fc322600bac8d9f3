# SPDX-License-Identifier: MIT
"""Snapshots: what can be known of them without KVM, and on the fake one."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import DIFF, GOLDEN, MACHINE, RAM, MiB

import vmm


def test_golden() -> None:
    """What is in these two is no machine."""
    for path in (GOLDEN, DIFF):
        vmm.snap_verify(path)
        with vmm.Snapshot.open(path) as snap, pytest.raises(vmm.FormatError, match="vCPUs"):
            snap.info()
        assert snap.closed


def test_golden_machine() -> None:
    vmm.snap_verify(MACHINE)
    with vmm.Snapshot.open(MACHINE) as snap:
        info = snap.info()
    assert (info.format_major, info.parents) == (1, ())
    assert info.isa.startswith("rv64")
    assert {"rtc", "doorbell"} <= {d.type for d in info.devices}


def test_merge(tmp_path: Path) -> None:
    calls = []
    vmm.snap_merge(DIFF, tmp_path / "one.snap", progress=lambda done, all: calls.append(done / all))
    vmm.snap_verify(tmp_path / "one.snap")
    assert calls
    assert calls == sorted(calls)


def test_progress_raises(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        vmm.snap_merge(DIFF, tmp_path / "one.snap", progress=progress)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_writing(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        vmm.snap_merge(DIFF, tmp_path / "one.snap", progress=progress)
    assert os.listdir(tmp_path) == []


def test_send_and_receive(snap: vmm.Snapshot) -> None:
    r, w = os.pipe()

    def send() -> None:
        with open(w, "wb") as f:
            snap.send(f, level=3, threads=1)

    thread = threading.Thread(target=send)
    thread.start()
    with open(r, "rb") as f, vmm.Snapshot.receive(f) as copy:
        thread.join()
        assert copy.info().memory == snap.info().memory
        assert copy.info().devices == snap.info().devices
        assert copy.info().format_major == 1


def test_info(snap: vmm.Snapshot, tmp_path: Path) -> None:
    snap.write(tmp_path / "vm.snap")
    with vmm.Snapshot.open(tmp_path / "vm.snap") as again:
        info = again.info()
        assert repr(again) == "<vmm.Snapshot open>"
    assert (info.vcpus, info.memory, info.parents) == (1, 4 * MiB, ())
    assert info.file_size == (tmp_path / "vm.snap").stat().st_size
    assert 0 < info.ram_used <= info.memory
    assert info.isa.startswith("rv64")
    assert {"rtc", "doorbell", "serial"} <= {d.type for d in info.devices}
    assert info.uuid == snap.info().uuid
    assert 0 <= time.time() - info.created < 3600


def test_write(snap: vmm.Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "vm.snap"
    snap.write(path, level=5, threads=2)
    vmm.snap_verify(path)
    with vmm.Snapshot.open(os.fsencode(path)) as again:
        assert [d.type for d in again.info().devices] == [
            "rtc", "vmgenid", "doorbell", "serial", "vsock",
        ]  # fmt: skip
        with again.restore(eager=True, threads=1, name="clone") as vm:
            assert vm.read(RAM + 3 * MiB, 8) == b"original"
            vm.write(RAM + 3 * MiB, b"modified")
            vm.start()
            vm.pause()
            with vm.snapshot() as changed:
                changed.write(tmp_path / "diff.snap", parent=path)
    with vmm.Snapshot.open(tmp_path / "diff.snap") as diff:
        assert diff.info().parents == (str(path),)
        with diff.restore() as vm:
            assert vm.read(RAM + 3 * MiB, 8) == b"modified"


def test_clones(snap: vmm.Snapshot) -> None:
    clones = [snap.restore() for _ in range(3)]
    snap.close()
    for vm in clones:
        assert vm.state == vmm.State.NEW
        vm.start()
        assert vm.read(RAM + 3 * MiB, 8) == b"original"
        vm.write(RAM + 3 * MiB, b"modified")
    for vm in clones:
        vm.stop()
        vm.reset()
        assert vm.read(RAM + 3 * MiB, 8) == b"original"
        vm.close()


def test_learn(snap: vmm.Snapshot) -> None:
    with snap.restore(record=True) as vm:
        vm.start()
        vm.wait(60)
        snap.learn(vm)
    with snap.restore() as vm, pytest.raises(vmm.InvalidError):
        snap.learn(vm)


def test_unknown_option(snap: vmm.Snapshot) -> None:
    with pytest.raises(TypeError, match="'colour'"):
        snap.restore(colour="blue")  # type: ignore[call-arg]
