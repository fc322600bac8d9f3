#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run Python functions in machines: a concurrent.futures.Executor, each of whose calls
gets a fresh clone of a machine with Python in it.

executor.py freeze KERNEL ROOT FILE     boot it to where it waits for a call, save it
executor.py run FILE                    three calls, at once

ROOT is a disk with /usr/bin/python3.13 on it, as "tests/lab/setup python-guest" makes
one; what runs there is agent.py, from a second disk.

A function goes over vsock as its source, a builtin or what the guest can import by its
name; arguments and results as JSON.  Not as pickles: what a guest sends is not to be
trusted, and whoever unpickles something runs it.
"""

import inspect
import json
import socket
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import vmm

P = ParamSpec("P")
T = TypeVar("T")

AGENT = Path(__file__).with_name("agent.py")
PORT = 5001
LONGEST = 64 << 20  # bytes of an answer


class RemoteError(Exception):
    """What a function raised in its machine; the traceback is the guest's."""


class CloneExecutor(Executor):
    """Run each call in a machine of its own, which is a fresh clone of a snapshot.

    snap
        A machine in which agent.py waits: see freeze().
    max_workers
        So many calls run at once.
    timeout
        Seconds that each may take; TimeoutError.  Whatever it was doing is gone then.

    A function must stand on its own: it is its source that goes there, so that it
    imports what it wants, and has no closure and no decorator.

    >>> def primes(n: int) -> list[int]:
    ...     return [i for i in range(2, n) if all(i % k for k in range(2, i))]
    >>> with vmm.Snapshot.open("python.snap") as snap, CloneExecutor(snap) as executor:
    ...     future = executor.submit(primes, 100)
    ...     print(future.result())
    """

    def __init__(self, snap: vmm.Snapshot, *, max_workers: int = 2, timeout: float = 60) -> None:
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="clone")
        self._pool = vmm.Pool(snap, ready=max_workers, name="clone")
        self._timeout = timeout

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # What cannot go there is the caller's to hear of, at once.
        request = json.dumps(what(fn) | {"args": args, "kwargs": kwargs})
        return self._threads.submit(self._call, request.encode())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        self._pool.close()

    def _call(self, request: bytes) -> Any:
        # The end of the block gives it back: it is taken to the snapshot again.
        with self._pool.take(self._timeout) as vm:
            vm.start()
            with vm.connect(PORT, self._timeout) as s:
                s.settimeout(self._timeout)
                s.sendall(request + b"\n")
                answer = json.loads(line(s))
        if error := answer.get("error"):
            raise RemoteError(str(error))
        return answer["result"]


def what(fn: Callable[..., object]) -> dict[str, str]:
    """A function as the agent takes it."""
    if inspect.isbuiltin(fn):
        return {"module": fn.__module__, "name": fn.__qualname__}
    if not inspect.isfunction(fn) or fn.__closure__ or fn.__name__ == "<lambda>":
        raise TypeError(f"{fn!r}: a builtin, or a function that stands on its own, is wanted")
    return {"source": textwrap.dedent(inspect.getsource(fn)), "name": fn.__name__}


def line(s: socket.socket) -> bytes:
    """A line of at most LONGEST bytes."""
    got = bytearray()
    while not got.endswith(b"\n"):
        part = s.recv(1 << 16)
        got += part
        if not part or len(got) > LONGEST:
            raise RemoteError("the answer is too long" if part else "the agent has gone")
    return bytes(got)


def freeze(kernel: str, root: str, file: str) -> None:
    """Boot a machine to where the agent waits for a call, and save it to file.

    Clones look for their disks where they were: root, and file.agent."""
    disk = Path(f"{file}.agent").resolve()
    code = AGENT.read_bytes()
    disk.write_bytes(code + b"\n" * (-len(code) % 512))  # a disk has whole sectors
    cmdline = (
        "console=ttyS0 quiet root=/dev/vda ro init=/usr/bin/python3.13 "
        "PYTHONPYCACHEPREFIX=/pyc -- -c exec(open('/dev/vdb').read())"
    )
    with vmm.Machine(kernel, cmdline=cmdline, memory=256 << 20) as vm:
        vm.add_serial(None, sys.stderr)
        vm.add_blk("root", Path(root).resolve(), readonly=True)
        vm.add_blk("agent", disk, readonly=True)
        vm.add_vsock()
        vm.start()
        event = vm.wait()
        if not event or event.type != vmm.EventType.DOORBELL:
            raise RuntimeError(f"the agent did not ring: {event}")
        vm.pause()
        with vm.snapshot() as snap:
            snap.write(file)


def digits(n: int) -> dict[str, object]:
    """For run(): what could not be told from outside."""
    import os
    import platform

    return {"sum": sum(map(int, str(2**n))), "machine": platform.machine(), "pid": os.getpid()}


def run(file: str) -> None:
    with vmm.Snapshot.open(file) as snap, CloneExecutor(snap) as executor:
        for n, answer in zip(range(3), executor.map(digits, range(1000, 1003)), strict=True):
            print(n, answer)
        print(executor.submit(pow, 2, 100).result())


def main() -> None:
    match sys.argv[1:]:
        case ["freeze", kernel, root, file]:
            freeze(kernel, root, file)
        case ["run", file]:
            run(file)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
