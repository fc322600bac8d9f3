# SPDX-License-Identifier: MIT
"""asyncio, on the fake KVM."""

import asyncio
from pathlib import Path

import pytest
from conftest import RAM, Guest, MiB

import vmm
from vmm import EventType, State, aio


def test_life(guest: Guest, kernel: Path) -> None:
    async def main() -> None:
        async with await aio.create(kernel, memory=4 * MiB) as vm:
            assert await vm.wait() is None
            await vm.start()
            event = await vm.wait(60)
            assert event
            assert event.type == EventType.DOORBELL
            assert await vm.wait(0) is None
            assert await vm.wait(0.1) is None
            await vm.pause()
            with await vm.snapshot() as snap:
                async with await aio.restore(snap) as clone:
                    await clone.start()
            await vm.stop()
            await vm.reset()
            assert vm.state == State.NEW
        assert vm.sync.closed

    guest("rings").close()
    asyncio.run(main())


def test_many_wait(guest: Guest) -> None:
    async def main() -> None:
        vm = aio.Machine(guest("exits_later"))
        await vm.start()
        got = await asyncio.gather(*(vm.wait() for _ in range(5)))
        assert sum(e is not None for e in got) == 1
        await vm.close()

    asyncio.run(main())


def test_many_machines(guest: Guest, kernel: Path) -> None:
    async def one() -> list[int]:
        async with await aio.create(kernel, memory=4 * MiB) as vm:
            await vm.start()
            return [e.value async for e in vm.events()]

    async def main() -> None:
        assert await asyncio.gather(*(one() for _ in range(20))) == [[42]] * 20

    guest("exits_later").close()
    asyncio.run(main())


def test_cancel(guest: Guest) -> None:
    async def main() -> None:
        async with aio.Machine(guest("spins")) as vm:
            vm.sync.add_vsock()
            await vm.start()
            for wait in (vm.wait(), vm.connect(5000)):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(wait, 0.1)
            assert not vm._waiters

    asyncio.run(main())


def test_pause_and_close_end_a_wait(guest: Guest) -> None:
    async def main() -> None:
        vm = aio.Machine(guest("spins"))
        await vm.start()
        waits = [asyncio.create_task(vm.wait()) for _ in range(2)]
        await asyncio.sleep(0.05)
        await vm.pause()
        assert await asyncio.gather(*waits) == [None, None]
        await vm.start()
        wait = asyncio.create_task(vm.wait())
        await asyncio.sleep(0.05)
        await vm.close()
        with pytest.raises(vmm.StateError):
            await wait

    asyncio.run(main())


def test_refused(guest: Guest) -> None:
    async def main() -> None:
        async with aio.Machine(guest("spins")) as vm:
            vm.sync.add_vsock()
            with pytest.raises(vmm.RefusedError):
                await vm.connect(1)
            await vm.start()
            with pytest.raises(vmm.TimedOutError):
                await vm.open_connection(1, timeout=0.6)
            async with await vm.start_server(lambda r, w: None, 1000):
                pass

    asyncio.run(main())


def test_pool(snap: vmm.Snapshot) -> None:
    async def one(pool: aio.Pool) -> None:
        async with await pool.take() as vm:
            assert vm.sync.read(RAM + 3 * MiB, 8) == b"original"
            await vm.start()
            assert await vm.wait(60)

    async def main() -> None:
        async with aio.Pool(vmm.Pool(snap, ready=2)) as pool:
            await asyncio.gather(*(one(pool) for _ in range(10)))
            vm = await pool.take()
            await pool.give(vm)
            assert vm.sync.closed

    asyncio.run(main())


def test_cancelled_taker_loses_no_machine(snap: vmm.Snapshot) -> None:
    async def main() -> None:
        async with aio.Pool(vmm.Pool(snap)) as pool:
            for _ in range(20):
                task = asyncio.create_task(pool.take())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with await pool.take():
                pass

    asyncio.run(main())
