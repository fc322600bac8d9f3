# SPDX-License-Identifier: MIT
"""Pools, on the fake KVM."""

import contextlib
import threading

import pytest
from conftest import RAM, Guest, MiB

import vmm
from vmm import State


def original(vm: vmm.Machine) -> bool:
    return vm.read(RAM + 3 * MiB, 8) == b"original"


def test_take_and_give(snap: vmm.Snapshot) -> None:
    with vmm.Pool(snap, ready=2) as pool:
        for _ in range(10):
            with pool.take() as vm:
                assert vm.state == State.NEW
                assert original(vm)
                vm.write(RAM + 3 * MiB, b"modified")
                vm.start()
                assert vm.wait(60)
            assert vm.closed
            with pytest.raises(vmm.StateError, match="closed"):
                vm.start()


def test_park(snap: vmm.Snapshot) -> None:
    with vmm.Pool(snap, park=True, park_timeout=60) as pool, pool.take(60) as vm:
        assert vm.state == State.PAUSED
        vm.start()
        assert vm.state == State.RUNNING


def test_park_in_vain(guest: Guest) -> None:
    with guest("spins") as vm:
        vm.start()
        vm.pause()
        with (
            vm.snapshot() as snap,
            vmm.Pool(snap, park=True, park_timeout=0.001) as pool,
            pytest.raises(vmm.TimedOutError, match="does not ring within 1 ms"),
        ):
            pool.take()


def test_the_snapshot_stays(snap: vmm.Snapshot) -> None:
    pool = vmm.Pool(snap)
    snap.close()
    with pytest.raises(vmm.StateError, match="snapshot is closed"):
        snap.info()
    with pool, pool.take() as vm:
        assert original(vm)


def test_taken_machines_outlive_the_pool(snap: vmm.Snapshot) -> None:
    pool = vmm.Pool(snap)
    with pool.take() as vm:
        pool.close()
        vm.start()
        assert original(vm)
    assert vm.closed
    with pytest.raises(vmm.StateError, match="pool is closed"):
        pool.take()


def test_prepare(snap: vmm.Snapshot) -> None:
    made: list[vmm.Machine] = []

    def prepare(vm: vmm.Machine) -> int:
        vm.add_serial(None, None)
        made.append(vm)
        return len(made)

    with vmm.Pool(snap, prepare=prepare, name="pool") as pool:
        with pool.take() as vm:
            first = vm.prepared
        with pool.take() as vm, pool.take() as other:
            assert vm.prepared != other.prepared
        assert first in range(1, len(made) + 1)
        vm = pool.take()
        vm.close()
    # What prepare saw was the library's, for so long.
    assert all(m.closed for m in made)


def test_prepare_fails(snap: vmm.Snapshot) -> None:
    def prepare(vm: vmm.Machine) -> None:
        vm.add_blk("disk", "/nowhere/disk")

    with vmm.Pool(snap, prepare=prepare) as pool, pytest.raises(vmm.Error) as e:
        pool.take()
    assert "prepare() refuses" in str(e.value)
    assert isinstance(e.value.__cause__, vmm.Error)
    assert "disk" in str(e.value.__cause__)


def test_give_what_is_not_of_it(snap: vmm.Snapshot) -> None:
    with vmm.Pool(snap) as pool, vmm.Pool(snap) as other, snap.restore() as vm:
        with pytest.raises(vmm.StateError, match="not of this pool"):
            pool.give(vm)
        with other.take() as theirs, pytest.raises(vmm.StateError):
            pool.give(theirs)


def test_give_while_others_wait(snap: vmm.Snapshot) -> None:
    with vmm.Pool(snap) as pool:
        vm = pool.take()
        vm.start()
        assert vm.wait(60)

        def wait() -> None:
            with contextlib.suppress(vmm.StateError):
                while vm.wait():
                    pass

        thread = threading.Thread(target=wait)
        thread.start()
        pool.give(vm)
        thread.join()
        with pool.take() as again:
            assert original(again)


def test_close_while_others_take(snap: vmm.Snapshot) -> None:
    gate = threading.Event()
    with vmm.Pool(snap, prepare=lambda _: gate.wait(60)) as pool:
        errors: list[Exception] = []

        def take() -> None:
            try:
                pool.take().close()
            except vmm.StateError as e:
                errors.append(e)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for t in threads:
            t.start()
        pool.close()
        gate.set()
        for t in threads:
            t.join()
