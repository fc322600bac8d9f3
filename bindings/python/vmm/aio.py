# SPDX-License-Identifier: MIT
"""The same for asyncio: what waits is awaited.

    async def main():
        with vmm.Snapshot.open("vm.snap") as snap:
            async with await aio.restore(snap) as vm:
                await vm.start()
                reader, writer = await vm.open_connection(5000, timeout=10)
                print(await vm.wait())

aio.Machine and aio.Pool stand before a vmm.Machine and a vmm.Pool (their `sync`):
devices are added there, and what does not wait is called there.  Events are waited
for with the loop's own reader; the rest runs on the loop's threads.  Each belongs to
the loop that runs when it is first waited for.

A wait can be cancelled at any time, and has taken no event then.  A connection or a
machine that comes although its taker has been cancelled is closed or given back.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, Self, TypeVar, Unpack

from ._core import HasFileno, Path, slices
from ._errors import RefusedError, TimedOutError
from ._machine import CONNECT_SLICE
from ._machine import Machine as SyncMachine
from ._pool import Pool as SyncPool
from ._snapshot import RestoreOptions, Snapshot
from ._types import Event, State

P = ParamSpec("P")
T = TypeVar("T")

# A machine that was paused or stopped by somebody who did not ask us is noticed.
LOOK_AGAIN = 0.5


async def _thread(
    undo: Callable[[T], object] | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """asyncio.to_thread(); if it is cancelled, what comes of it later is undone."""
    future = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def late(done: "asyncio.Future[T]") -> None:
            if not done.cancelled() and not done.exception() and undo:
                undo(done.result())

        future.add_done_callback(late)
        raise


class Machine:
    """A machine for asyncio: see vmm.Machine for what each method does."""

    def __init__(self, vm: SyncMachine) -> None:
        self.sync = vm
        self._waiters: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = vm.fileno()

    def __repr__(self) -> str:
        return f"<vmm.aio.Machine of {self.sync!r}>"

    @property
    def state(self) -> State:
        """NEW, RUNNING, PAUSED, STOPPED, BROKEN.  Never waits."""
        return self.sync.state

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._wake()
        await _thread(None, self.sync._leave)

    async def close(self) -> None:
        """Stop the machine at once and free it; who waits for it gets StateError."""
        self._wake()
        await _thread(None, self.sync.close)

    async def start(self) -> None:
        """Run a NEW or PAUSED machine.  StateError, BrokenError."""
        await _thread(None, self.sync.start)

    async def pause(self) -> None:
        """Hold a RUNNING machine still; StateError if the guest stopped first."""
        await _thread(None, self.sync.pause)
        self._wake()

    async def stop(self) -> None:
        """Power it off; no event tells of it."""
        await _thread(None, self.sync.stop)
        self._wake()

    async def reset(self) -> None:
        """Take a machine that does not run back to NEW."""
        await _thread(None, self.sync.reset)

    async def trim(self, name: str = "balloon", timeout: float | None = None) -> None:
        """Have the guest give back what it has free.  Cancelled, it goes on in its thread.

        Raises NotSupportedError: its driver cannot; TimedOutError, after so many seconds."""
        await _thread(None, self.sync.trim, name, timeout)

    async def snapshot(self) -> Snapshot:
        """Freeze a PAUSED machine, which may go on.  NotSupportedError names a device."""
        return await _thread(Snapshot.close, self.sync.snapshot)

    async def wait(self, timeout: float | None = None) -> Event | None:
        """The next event; None: none before the timeout, in seconds, or it does not run.

        >>> event = await vm.wait(30)"""
        for ms, last in slices(timeout, LOOK_AGAIN):
            running = self.sync.state == State.RUNNING
            event = self.sync.wait(0)
            if event or not running:
                return event
            await self._readable(ms / 1000)
            if last:
                return self.sync.wait(0)
        return None

    async def events(self) -> AsyncIterator[Event]:
        """Events, until the machine does not run any more."""
        while (event := await self.wait()) is not None:
            yield event

    async def connect(self, port: int, timeout: float | None = None) -> socket.socket:
        """A non-blocking socket, for the loop's sock_* methods; see open_connection().

        Raises RefusedError: nobody listens on the port before the timeout, in seconds, or
        the machine does not run; TimedOutError: the guest does not answer."""
        for ms, last in slices(timeout, CONNECT_SLICE):
            running = self.sync.state == State.RUNNING
            try:
                s = await _thread(socket.socket.close, self.sync.connect, port, ms / 1000)
            except (RefusedError, TimedOutError):
                if last or not running:
                    raise
            else:
                s.setblocking(False)
                return s
        raise AssertionError  # the last slice has returned, or raised

    async def open_connection(
        self, port: int, timeout: float | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """connect(), with streams as of asyncio.open_connection().

        >>> reader, writer = await vm.open_connection(5000, timeout=10)
        >>> writer.write(b"hello\n")
        >>> print(await reader.readline())"""
        s = await self.connect(port, timeout)
        return await asyncio.open_connection(sock=s)

    async def start_server(
        self,
        client_connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
        port: int,
    ) -> asyncio.Server:
        """Serve the connections that the guest makes to this port of its host, CID 2, as
        asyncio.start_server() does.

        >>> async with await vm.start_server(serve, 1024) as server:
        ...     await server.serve_forever()"""
        return await asyncio.start_unix_server(client_connected, sock=self.sync.listen(port))

    # The loop has one reader for a descriptor, and there may be many who wait.

    async def _readable(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = self._loop.create_future()
        if not self._waiters:
            self._loop.add_reader(self._fd, self._wake)
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)
            if not self._waiters:
                self._loop.remove_reader(self._fd)

    def _wake(self) -> None:
        if self._loop and self._waiters:
            self._loop.remove_reader(self._fd)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Pool:
    """A pool for asyncio: see vmm.Pool.

    >>> async with aio.Pool(vmm.Pool(snap, ready=4)) as pool:
    ...     async with await pool.take() as vm:
    ...         await vm.start()
    """

    def __init__(self, pool: SyncPool) -> None:
        self.sync = pool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def take(self, timeout: float | None = None) -> Machine:
        """Take a machine, waiting up to timeout seconds for one; TimedOutError."""
        for ms, last in slices(timeout, CONNECT_SLICE):
            begin = time.monotonic()
            try:
                return Machine(await _thread(self.sync.give, self.sync.take, ms / 1000))
            except TimedOutError:
                if last or time.monotonic() - begin < ms / 1000:
                    raise
        raise AssertionError  # the last slice has returned, or raised

    async def give(self, vm: Machine) -> None:
        """Hand a machine back, which is closed by that: it is reset and used again."""
        vm._wake()
        await _thread(None, self.sync.give, vm.sync)

    async def close(self) -> None:
        """Free it.  Machines that have been taken stay their takers'."""
        await _thread(None, self.sync.close)


async def create(kernel: Path | HasFileno | int, **config: Any) -> Machine:
    """vmm.Machine(), for asyncio."""
    return Machine(await _thread(SyncMachine.close, SyncMachine, kernel, **config))


async def restore(snap: Snapshot, **options: Unpack[RestoreOptions]) -> Machine:
    """Snapshot.restore(), for asyncio."""
    return Machine(await _thread(SyncMachine.close, snap.restore, **options))
