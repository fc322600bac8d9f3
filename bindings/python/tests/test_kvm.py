# SPDX-License-Identifier: MIT
"""Linux on real KVM: skipped where there is none (tests/check-kvm has one)."""

import asyncio
import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RAM, TOP, MiB, settled

import vmm
from vmm import EventType, State, aio

GUEST = TOP / "build" / "lab" / "guest"
KERNEL, INITRD, PYTHON = GUEST / "Image", GUEST / "initrd.cpio", GUEST / "python.erofs"


def usable() -> str:
    try:
        vmm.probe()
    except vmm.Error as e:
        return str(e)
    return "" if Path("/dev/kvm").exists() and KERNEL.exists() else "no KVM, or no guest"


pytestmark = pytest.mark.skipif(bool(usable()), reason=usable() or "there is KVM")


class Console:
    """What comes out of a guest, until some text does."""

    def __init__(self, s: socket.socket) -> None:
        self.socket = s
        self.seen = b""

    def until(self, text: str, seconds: float = 300) -> str:
        self.socket.settimeout(seconds)
        while text.encode() not in self.seen:
            got = self.socket.recv(4096)
            assert got, self.seen
            self.seen += got
        out, _, self.seen = self.seen.partition(text.encode())
        return out.decode(errors="replace")

    def type(self, line: str) -> None:
        self.socket.sendall(line.encode() + b"\n")


@contextlib.contextmanager
def shell(**options: object) -> Iterator[tuple[vmm.Machine, Console]]:
    """Linux with a shell on its serial port."""
    with (
        vmm.Machine(KERNEL, initrd=INITRD, cmdline="console=ttyS0 quiet", **options) as vm,  # type: ignore[arg-type]
        vm.open_serial() as s,
    ):
        vm.start()
        console = Console(s)
        console.until("# ")
        yield vm, console


def test_probe() -> None:
    host = vmm.probe()
    assert host.irqchip in host.irqchips_sound
    assert host.kernel


def test_boot_and_talk() -> None:
    with shell(vcpus=2) as (vm, console):
        console.type("nproc; echo done")
        assert "\n2" in console.until("\ndone").replace("\r", "")
        console.type("vmm-guest ring 7")
        event = vm.wait(300)
        assert event
        assert (event.type, event.value) == (EventType.DOORBELL, 7)
        console.type("poweroff -f")
        event = vm.wait(300)
        assert event
        assert event.type == EventType.SHUTDOWN
        assert vm.state == State.STOPPED
        assert vm.stat().exits[vmm.Exit.MMIO] > 0


def test_snapshot_and_clones(tmp_path: Path) -> None:
    with shell() as (vm, console):
        console.type("answer=42; echo ready")
        console.until("\nready")
        vm.pause()
        with vm.snapshot() as snap:
            snap.write(tmp_path / "vm.snap")
    with vmm.Snapshot.open(tmp_path / "vm.snap") as snap:
        assert snap.info().memory == 128 * MiB
        for _ in range(3):
            with snap.restore() as clone, clone.open_serial() as s:
                clone.start()
                console = Console(s)
                console.type("echo it is $answer")
                console.until("it is 42")


def test_ctrl_c_leaves_a_guest_that_can_go_on() -> None:
    import os
    import signal

    with shell() as (vm, console):
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            vm.wait()
        timer.join()
        console.type("echo still here")
        console.until("\nstill here")


# ---- The warm Python guest (tests/lab/python-guest.py) -----------------------


@pytest.fixture(scope="module")
def answering() -> Iterator[vmm.Snapshot]:
    if not PYTHON.exists():
        pytest.skip("no Python guest: tests/lab/setup python-guest")
    with vmm.Machine(
        KERNEL, cmdline="console=ttyS0 root=/dev/vda ro init=/init quiet", memory=512 * MiB
    ) as vm:
        vm.add_serial(None, None)
        vm.add_blk("root", PYTHON, readonly=True)
        vm.add_rng()
        vm.add_vsock()
        vm.start()
        event = vm.wait(900)
        assert event
        assert event.type == EventType.DOORBELL, event
        vm.pause()
        with vm.snapshot() as snap:
            # From its second machine on a snapshot has KVM open, and a thread.
            snap.restore().close()
            snap.restore().close()
            settled()
            yield snap


@pytest.fixture
def warm(answering: vmm.Snapshot) -> Iterator[vmm.Snapshot]:
    """With its next VM made, before the test and after."""
    yield answering
    settled()


def check(nonce: str, line: str | bytes) -> None:
    answer = json.loads(line)
    text = f"{nonce}:{answer['rows']}:{answer['total']}"
    assert answer["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_connect(warm: vmm.Snapshot) -> None:
    with warm.restore() as vm:
        vm.start()
        with vm.connect(5000, timeout=300) as s, s.makefile("rw") as f:
            assert isinstance(s, socket.socket)
            for nonce in "abc":
                f.write(json.dumps({"id": 7, "nonce": nonce}) + "\n")
                f.flush()
                check(nonce, f.readline())
        with pytest.raises(vmm.RefusedError, match="port 4999"):
            vm.connect(4999, timeout=1)


def test_pool(warm: vmm.Snapshot) -> None:
    with vmm.Pool(warm, ready=2) as pool:
        for i in range(5):
            with pool.take(300) as vm:
                vm.start()
                with vm.connect(5000, timeout=300) as s, s.makefile("rw") as f:
                    f.write(json.dumps({"id": i, "nonce": "x"}) + "\n")
                    f.flush()
                    check("x", f.readline())


def test_asyncio(warm: vmm.Snapshot) -> None:
    async def ask(pool: aio.Pool, nonce: str) -> None:
        async with await pool.take(300) as vm:
            await vm.start()
            reader, writer = await vm.open_connection(5000, timeout=300)
            writer.write(json.dumps({"id": 1, "nonce": nonce}).encode() + b"\n")
            check(nonce, await reader.readline())
            writer.close()
            await writer.wait_closed()

    async def main() -> None:
        async with aio.Pool(vmm.Pool(warm, ready=2)) as pool:
            await asyncio.gather(*(ask(pool, str(i)) for i in range(6)))

    asyncio.run(main())


def test_rounds(warm: vmm.Snapshot) -> None:
    """Restore, run, close: nothing grows (conftest.py counts descriptors and threads)."""
    for _ in range(20):
        with warm.restore() as vm:
            vm.start()
            vm.read(RAM, 4096)
            time.sleep(0.01)


# ---- The examples -------------------------------------------------------------


def test_executor(tmp_path: Path) -> None:
    """A function runs in a fresh clone for each call, and its failure comes back."""
    if not PYTHON.exists():
        pytest.skip("no Python guest: tests/lab/setup python-guest")
    sys.path.append(str(TOP / "bindings" / "python" / "examples"))
    import executor

    def work(n: int) -> dict[str, object]:
        import os
        import random

        first = not os.path.exists("/tmp/was-here")
        open("/tmp/was-here", "w").close()
        return {"n": n, "first": first, "pid": os.getpid(), "drawn": random.random()}

    def fails() -> None:
        raise ZeroDivisionError("of the guest")

    def sleeps() -> None:
        import time

        time.sleep(1000)

    file = str(tmp_path / "python.snap")
    executor.freeze(str(KERNEL), str(PYTHON), file)
    with vmm.Snapshot.open(file) as snap:
        with executor.CloneExecutor(snap, timeout=300) as clones:
            answers = list(clones.map(work, range(4)))
            assert [a["n"] for a in answers] == [0, 1, 2, 3]
            assert all(a["first"] and a["pid"] == 1 for a in answers)
            assert len({a["drawn"] for a in answers}) == 4
            with pytest.raises(executor.RemoteError, match="ZeroDivisionError: of the guest"):
                clones.submit(fails).result()
            assert clones.submit(pow, 2, 100).result() == 2**100
        with executor.CloneExecutor(snap, timeout=5) as clones, pytest.raises(TimeoutError):
            clones.submit(sleeps).result()


def test_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.append(str(TOP / "bindings" / "python" / "examples"))
    import boot
    import clone

    assert boot.main(str(KERNEL), str(INITRD), "uname -m") == 0
    assert "riscv64" in capsys.readouterr().out
    clone.main(str(KERNEL), str(INITRD), str(tmp_path / "vm.snap"))
    assert capsys.readouterr().out.count("has answered") == 3


def test_serve(warm: vmm.Snapshot, tmp_path: Path) -> None:
    """The pool behind an HTTP server: two requests at once, and a bad one."""
    sys.path.append(str(TOP / "bindings" / "python" / "examples"))
    import serve

    async def post(port: int, nonce: str) -> None:
        reader, writer = await asyncio.open_connection("localhost", port)
        body = json.dumps({"id": 7, "nonce": nonce}).encode()
        writer.write(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.0 200"), head
        check(nonce, answer)

    async def main() -> None:
        with socket.create_server(("localhost", 0)) as s:
            port = s.getsockname()[1]
        server = asyncio.create_task(serve.main(str(tmp_path / "warm.snap"), port, 5000))
        for _ in range(600):
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("localhost", port))[1].close()
                break
            await asyncio.sleep(0.1)
        await asyncio.gather(post(port, "a"), post(port, "b"))
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server

    warm.write(tmp_path / "warm.snap")
    asyncio.run(main())
