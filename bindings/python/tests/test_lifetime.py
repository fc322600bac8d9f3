# SPDX-License-Identifier: MIT
"""Objects that die in any order, in any thread, at the end, in a child."""

import gc
import itertools
import os
import random
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAKE, NO_GUESTS, Guest, MiB, fds, image, settled

import vmm
from vmm._core import obtain
from vmm._vmm import ffi, lib

# With FULL=1 10,000.
ROUNDS = int(os.environ.get("VMM_ROUNDS") or "200")


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_any_order(snap: vmm.Snapshot) -> None:
    """Each order in which a snapshot, a pool and its machines can be dropped."""
    for order in itertools.permutations(range(4)):
        with snap.restore() as vm:
            vm.start()
            vm.pause()
            copy = vm.snapshot()
        pool = vmm.Pool(copy)
        things: list[object] = [copy, pool, pool.take(), copy.restore()]
        del copy, pool
        for i in order:
            things[i] = None
            gc.collect()


def test_close_in_any_order(snap: vmm.Snapshot) -> None:
    for order in itertools.permutations(range(4)):
        with snap.restore() as vm:
            vm.start()
            vm.pause()
            copy = vm.snapshot()
        pool = vmm.Pool(copy)
        things = [copy, pool, pool.take(), copy.restore()]
        for i in order:
            things[i].close()
        for i in order:
            things[i].close()


def test_from_two_threads(snap: vmm.Snapshot) -> None:
    for _ in range(20):
        things = [snap.restore(), vmm.Pool(snap)]

        def close(things: list[vmm.Machine | vmm.Pool] = things) -> None:
            for thing in random.sample(things, len(things)):
                thing.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()


def test_garbage_cycles(guest: Guest, kernel: Path) -> None:
    """A machine that is part of a cycle, and runs."""
    guest("spins").close()
    before = fds()
    for _ in range(10):
        vm = vmm.Machine(kernel, memory=4 * MiB)
        vm.prepared = [vm]
        vm.start()
        del vm
    gc.collect()
    assert fds() <= before


def test_garbage_collected_in_a_callback(snap: vmm.Snapshot, tmp_path: Path) -> None:
    """The worst moment: in a callback, while the library holds locks of its own."""

    def progress(_done: int, _total: int) -> None:
        vm = snap.restore()
        vm.start()
        vm.prepared = vm
        del vm
        gc.collect()

    snap.write(tmp_path / "vm.snap", progress=progress)
    with snap.restore(log=lambda _level, _line: gc.collect()) as vm:
        vm.start()
    with vmm.Pool(snap, prepare=lambda vm: gc.collect()) as pool:
        pool.take().close()


def test_interrupted_when_it_is_done(snap: vmm.Snapshot) -> None:
    """Ctrl-C comes when the library has made an object, and nobody has it yet."""

    def interrupted(function: Callable[..., int]) -> Callable[..., int]:
        def call(*args: object) -> int:
            assert function(*args) == 0
            raise KeyboardInterrupt

        return call

    with snap._handle as pointer:
        out = ffi.new("struct vmm **")
        restore = interrupted(lib.vmm_restore)
        with pytest.raises(KeyboardInterrupt):  # conftest.py counts what is left
            obtain(lib.vmm_free, out, restore, out, pointer, ffi.NULL)
    with snap.restore() as vm, vm._handle as pointer:
        out = ffi.new("int *", -1)
        listen = interrupted(lib.vmm_listen)
        with pytest.raises(KeyboardInterrupt):
            obtain(os.close, out, listen, pointer, 1024, out)


def test_rounds(snap: vmm.Snapshot, kernel: Path) -> None:
    """Machines are created, restored, closed and lost: nothing grows."""

    def one() -> None:
        with vmm.Machine(kernel, memory=4 * MiB) as vm:
            vm.start()
        with snap.restore() as vm:
            vm.start()
            vm.wait(60)
        clone = snap.restore(log=lambda _level, _line: None)
        clone.start()

    # What is made once, and kept, is made by then.
    for _ in range(ROUNDS // 2):
        one()
    gc.collect()
    before, size = settled(), rss()
    for _ in range(ROUNDS):
        one()
    gc.collect()
    assert settled() <= before
    grown = rss() - size
    print(f"{ROUNDS} rounds: {grown} bytes more")
    assert grown < 2 * MiB


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(kernel: Path) -> Script:
    """Run text in a Python of its own."""
    if NO_GUESTS:
        pytest.skip(NO_GUESTS)

    def run(text: str, name: str = "chatters") -> subprocess.CompletedProcess[str]:
        kernel.write_bytes(image(name))
        start = f"""
            import os, signal, sys, threading, vmm
            if {bool(FAKE)}:
                import ctypes
                ctypes.CDLL("libvmm.so.0").vmmpy_guest({name.encode()!r})
            def machine(**kw):
                vm = vmm.Machine({str(kernel)!r}, memory=4 << 20, **kw)
                vm.start()
                return vm
        """
        return subprocess.run(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-c",
                textwrap.dedent(start) + textwrap.dedent(text),
            ],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "PYTHONPATH": str(Path(vmm.__file__).parents[1])},
        )

    return run


@pytest.mark.parametrize(
    "text",
    [
        "vms = [machine() for _ in range(3)]",
        "vms = [machine(log=lambda *a: None) for _ in range(3)]; vms.append(vms)",
        "vm = machine(); vm.pause(); s = vm.snapshot(); p = vmm.Pool(s); m = p.take(); m.start()",
        "vm = machine(); threading.Thread(target=lambda: list(vm.events()), daemon=True).start()",
        "import atexit; vm = machine(); atexit.register(vm.wait, 1)",
        "vm = machine(); vm.__class__ = type('Other', (vmm.Machine,), {})",
    ],
)
def test_end_of_the_interpreter(script: Script, text: str) -> None:
    done = script(text)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c(script: Script) -> None:
    """As a user meets it: no traceback but KeyboardInterrupt's."""
    text = """
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with machine() as vm:
            vm.wait()
    """
    done = script(text, "spins")
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stderr.count("Traceback") == 1


def test_fork(script: Script) -> None:
    done = script("""
        import warnings
        warnings.simplefilter("ignore")  # from 3.12 on Python has doubts, too
        vm = machine()
        vm.pause(); snap = vm.snapshot(); vm.start()
        pool = vmm.Pool(snap)
        thread = threading.Thread(target=vm.wait)
        pid = os.fork()
        if pid == 0:
            try:
                vm.pause()
            except vmm.StateError as e:
                assert "fork" in str(e), e
            else:
                os._exit(1)
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert vm.wait(60)
        vm.pause()
        pool.take().close()
    """)
    assert (done.returncode, done.stderr) == (0, "")
