# SPDX-License-Identifier: MIT
"""Machines that wait to be used."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Unpack

from ._core import Callback, Handle, Owner, obtain, slices
from ._errors import Error, StateError, TimedOutError
from ._machine import Machine
from ._snapshot import RestoreOptions, Snapshot, restore_config
from ._types import new
from ._vmm import ffi, lib


class PooledMachine(Machine):
    """A machine of a pool: the end of its with block gives it back."""

    _pool: "Pool"

    def _leave(self) -> None:
        self._pool.give(self)

    def close(self) -> None:
        """Free it: it does not go back to its pool."""
        if not self.closed:
            self._pool._prepared.pop(self._key, None)
        super().close()

    _key: int


class Pool(Owner):
    """Machines that have been restored from a snapshot before they are needed.

    ready
        How many wait.
    park
        Each runs until it rings the doorbell, and is held there.
    park_timeout
        It must ring within so many seconds; None: whenever it does.
    memory
        No more wait if those that do hold so many bytes of their own; 0: no limit.
    prepare
        Called on the pool's thread with each new machine, to give its devices their
        back ends.  What it returns is the machine's `prepared` whenever it is taken.
        If it raises, the machine is thrown away.
    options
        As of Snapshot.restore().

    >>> with vmm.Pool(snap, ready=4, park=True) as pool:
    ...     with pool.take() as vm:
    ...         vm.start()
    ...         answer = ask(vm.connect(5000, timeout=10))
    """

    def __init__(
        self,
        snap: Snapshot,
        *,
        ready: int = 1,
        park: bool = False,
        park_timeout: float | None = None,
        memory: int = 0,
        prepare: Callable[[Machine], Any] | None = None,
        **options: Unpack[RestoreOptions],
    ) -> None:
        restore, keep = restore_config(options)
        config = new("vmm_pool_config")
        config.ready = ready
        config.flags = park * lib.VMM_POOL_PARK
        if park_timeout is not None:
            config.park_ms = max(1, round(park_timeout * 1000))
        config.memory = memory
        config.restore = restore
        self._prepared: dict[int, Any] = {}
        self._callback = None
        self._log = keep[0]
        if prepare:
            self._callback = Callback(_preparer(prepare, self._prepared))
            config.prepare = lib.vmmpy_prepare_c
            config.prepare_arg = self._callback.handle
        out = ffi.new("struct vmm_pool **")
        with ExitStack() as stack:
            # The snapshot outlives the pool: this is a call on it that lasts as long.
            pointer = stack.enter_context(snap._handle)
            made = obtain(lib.vmm_pool_free, out, lib.vmm_pool_create, out, pointer, config)
            hold = stack.pop_all()

        def free(pool: Any) -> None:
            lib.vmm_pool_free(pool)
            hold.close()

        self._own(Handle("pool", made, free, self._callback, self._log))

    def take(self, timeout: float | None = None) -> Machine:
        """Take a machine, waiting for one if none is ready: a NEW one, with park=True a
        PAUSED one.  The end of its with block gives it back, close() frees it.

        Raises TimedOutError; else why none could be made."""
        out = ffi.new("struct vmm **")
        for ms, last in slices(timeout):
            begin = time.monotonic()
            try:
                with self._handle as pool:
                    taken = obtain(lib.vmm_free, out, lib.vmm_pool_take, pool, ms, out)
            except TimedOutError:
                # Before its time: a machine did not park within its own.
                if last or time.monotonic() - begin < ms / 1000:
                    raise
            except Error as e:
                raise e from (self._callback.error if self._callback else None)
            else:
                break
        vm = PooledMachine._of(taken, self._log)
        vm._pool = self
        vm._key = int(ffi.cast("uintptr_t", taken))
        vm.prepared = self._prepared.get(vm._key)
        return vm

    def give(self, vm: Machine) -> None:
        """Hand a machine back, in any state, which is closed by that: it is reset and used
        again.  If the pool is closed, the machine is freed."""
        if not isinstance(vm, PooledMachine) or vm._pool is not self:
            raise StateError("the machine is not of this pool")

        def free(pointer: Any) -> None:
            try:
                with self._handle as pool:
                    lib.vmm_pool_give(pool, pointer)
            except StateError:
                lib.vmm_free(pointer)

        vm._wake()
        vm._handle.close(free)


def _preparer(prepare: Callable[[Machine], Any], prepared: dict[int, Any]) -> Callable[[Any], None]:
    """What the pool's thread calls; it knows the pool's parts, not the pool, which can
    be collected then."""

    def function(pointer: Any) -> None:
        # It is the library's: when the function returns this is closed, and not freed.
        vm = Machine.__new__(Machine)
        vm._handle = Handle("machine", pointer, lambda _: None)
        try:
            prepared[int(ffi.cast("uintptr_t", pointer))] = prepare(vm)
        finally:
            vm._handle.close()

    return function
