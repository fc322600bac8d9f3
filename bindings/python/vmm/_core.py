# SPDX-License-Identifier: MIT
"""Between Python and the C library: calls, lifetimes, callbacks, timeouts.

Calls give up the GIL (cffi does that), so that the library's threads can call
back, and other Python threads run.

A Handle owns a C object.  It counts the calls that are under way on it and frees
it behind the last of them: the library wants freeing to be the last call, and
Python has threads, garbage collectors and an end of the interpreter.

A signal handler of Python's, as that of Ctrl-C, runs between two calls only.  A
call that waits is therefore made again and again, for a moment each (slices).
"""

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

from ._errors import InvalidError, StateError, error_of
from ._types import LogLevel
from ._vmm import ffi, lib


class HasFileno(Protocol):
    """A file, a socket: what has a descriptor."""

    def fileno(self) -> int: ...


Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

Log = Callable[[LogLevel, str], object] | logging.Logger


def call(function: Callable[..., int], *args: Any) -> None:
    """Call what returns 0 or an error; err is its last argument."""
    err = ffi.new("struct vmm_error *")
    if function(*args, err):
        raise error_of(err)


def obtain(
    free: Callable[[Any], object], out: Any, function: Callable[..., int], *args: Any
) -> Any:
    """Call what gives an object, through out, and return that.

    Ctrl-C that came meanwhile is raised when the call returns: then nobody would know
    of the object, and it is freed."""
    nothing = out[0]
    try:
        call(function, *args)
        return out[0]
    except BaseException:
        if out[0] != nothing:
            free(out[0])
        raise


def fileno(f: int | HasFileno | None) -> int:
    """A descriptor; -1 for None."""
    if f is None:
        return -1
    return f if isinstance(f, int) else f.fileno()


# ---- Lifetimes --------------------------------------------------------------

# Of all handles' counts.  A garbage collection may come while it is held, and
# close other handles: hence the R.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _free(free: Callable[[Any], None], pointer: Any, keep: tuple[Any, ...]) -> None:
    free(pointer)
    del keep  # what the object's callbacks refer to; they have been able to run until now


class Handle:
    """A C object and what keeps it alive; as a context: a call on it."""

    __slots__ = ("_closed", "_free", "_keep", "_pid", "_pointer", "_users", "_what")

    def __init__(self, what: str, pointer: Any, free: Callable[[Any], None], *keep: Any) -> None:
        self._what = what
        self._pointer = pointer
        self._free = free
        self._keep = keep
        self._users = 0
        self._closed = False
        self._pid = os.getpid()

    def __enter__(self) -> Any:
        with _lock:
            if self._closed:
                raise StateError(f"the {self._what} is closed")
            self._users += 1
            return self._pointer

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._users -= 1
            pointer = self._last()
        self._dispose(pointer)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def users(self) -> int:
        return self._users

    def close(self, free: Callable[[Any], None] | None = None) -> None:
        """Let no more calls begin; free the object, or what is given, behind the last."""
        with _lock:
            if self._closed:
                return
            self._closed = True
            self._free = free or self._free
            pointer = self._last()
        self._dispose(pointer)

    def _last(self) -> Any:
        if not self._closed or self._users:
            return None
        pointer, self._pointer = self._pointer, None
        return pointer

    def _dispose(self, pointer: Any) -> None:
        if pointer is None:
            return
        free, keep, self._keep = self._free, self._keep, ()
        # Behind a fork only a machine may be freed: the threads of a pool are not here.
        if self._pid != os.getpid() and free is not lib.vmm_free:
            return
        if lib.vmmpy_inside():
            # This is a garbage collection in a callback: the library waits for it,
            # and freeing might wait for the library.
            threading.Thread(target=_free, args=(free, pointer, keep)).start()
        else:
            _free(free, pointer, keep)


class Owner:
    """What a Python object that owns a C object has in common with others."""

    _handle: Handle

    def _own(self, handle: Handle) -> None:
        self._handle = handle
        # When it is garbage, or at the interpreter's end, while callbacks still can run.
        weakref.finalize(self, handle.close)

    @property
    def closed(self) -> bool:
        """It has been closed: nothing else can be done with it."""
        return self._handle.closed

    def close(self) -> None:
        """Free it.  Twice does no harm; calls under way on other threads end first."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- Waiting ------------------------------------------------------------------

SLICE = 0.1


def slices(timeout: float | None, longest: float = SLICE) -> Iterator[tuple[int, bool]]:
    """Milliseconds to wait, and whether that is the last time."""
    if timeout is not None and not timeout >= 0:
        raise InvalidError(f"timeout {timeout}: seconds, or None for ever")
    end = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, end - time.monotonic())
        if left <= longest:
            yield math.ceil(left * 1000), True
            return
        yield math.ceil(longest * 1000), False


# ---- Callbacks ------------------------------------------------------------------


def log_fields(config: Any, log: Log | None) -> Any:
    """Set log and log_arg of a config; what is returned must live as long as they do."""
    if log is None:
        return None
    handle = ffi.new_handle(log)
    config.log = lib.vmmpy_log_c
    config.log_arg = handle
    return handle


_LOGGING = {
    LogLevel.ERROR: logging.ERROR,
    LogLevel.WARN: logging.WARNING,
    LogLevel.INFO: logging.INFO,
    LogLevel.DEBUG: logging.DEBUG,
}


@ffi.def_extern()  # type: ignore[untyped-decorator]
def vmmpy_log(arg: Any, level: int, line: Any) -> None:
    log: Log = ffi.from_handle(arg)
    text = ffi.string(line).decode(errors="replace")
    if isinstance(log, logging.Logger):
        log.log(_LOGGING[LogLevel(level)], "%s", text)
    else:
        log(LogLevel(level), text)


class Callback:
    """A function that may fail, and what it failed with: C gets to know that it did."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.error: BaseException | None = None
        self.handle = ffi.new_handle(self)


def _failed(_kind: object, error: BaseException, traceback: Any) -> None:
    ffi.from_handle(traceback.tb_frame.f_locals["arg"]).error = error


@ffi.def_extern(error=1, onerror=_failed)  # type: ignore[untyped-decorator]
def vmmpy_progress(arg: Any, done: int, total: int) -> int:
    ffi.from_handle(arg).function(done, total)
    return 0


@ffi.def_extern(error=1, onerror=_failed)  # type: ignore[untyped-decorator]
def vmmpy_prepare(arg: Any, vm: Any) -> int:
    ffi.from_handle(arg).function(vm)
    return 0
