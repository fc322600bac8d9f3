# SPDX-License-Identifier: MIT
"""The exceptions: one for each VMM_E code, and Error, which is all of them."""

import builtins
from typing import Any

from ._vmm import ffi, lib


class Error(Exception):
    """Something the library could not do.

    message
        One line that names the thing.
    code
        The VMM_E code, a negative number: ``vmm.strerror(e.code)`` is its name.
    errno
        The errno of the system call behind it, or None.

    >>> try:
    ...     vmm.Snapshot.open("nowhere.snap")
    ... except vmm.SystemCallError as e:
    ...     assert e.errno == errno.ENOENT
    """

    code: int = 0
    errno: int | None = None
    message: str

    def __init__(self, message: str, errno: int | None = None) -> None:
        BaseException.__init__(self, message, errno)
        self.message = message
        self.errno = errno

    def __str__(self) -> str:
        return self.message


class InvalidError(Error, ValueError):
    """VMM_EINVAL: a bad argument, a bug in the caller."""

    code = lib.VMM_EINVAL


class StateError(Error):
    """VMM_ESTATE: not in the machine's present state; or the object is closed."""

    code = lib.VMM_ESTATE


class NoMemoryError(Error, MemoryError):
    """VMM_ENOMEM: out of memory."""

    code = lib.VMM_ENOMEM


class SystemCallError(Error, OSError):
    """VMM_ESYS: a system call failed; errno says how."""

    code = lib.VMM_ESYS


class NoKvmError(Error):
    """VMM_ENOKVM: no usable /dev/kvm on this host."""

    code = lib.VMM_ENOKVM


class NotSupportedError(Error):
    """VMM_ENOTSUP: this host or this build cannot do that."""

    code = lib.VMM_ENOTSUP


class FormatError(Error):
    """VMM_EFORMAT: a kernel or snapshot file is malformed."""

    code = lib.VMM_EFORMAT


class VersionError(Error):
    """VMM_EVERSION: a snapshot of another version or host."""

    code = lib.VMM_EVERSION


class TimedOutError(Error, builtins.TimeoutError):
    """VMM_ETIMEDOUT: it did not happen in time."""

    code = lib.VMM_ETIMEDOUT


class RefusedError(Error, ConnectionRefusedError):
    """VMM_EREFUSED: the guest refused the connection."""

    code = lib.VMM_EREFUSED


class BrokenError(Error):
    """VMM_EBROKEN: the machine can only be closed."""

    code = lib.VMM_EBROKEN


BY_CODE: dict[int, type[Error]] = {
    e.code: e
    for e in (
        InvalidError, StateError, NoMemoryError, SystemCallError, NoKvmError,
        NotSupportedError, FormatError, VersionError, TimedOutError, RefusedError,
        BrokenError,
    )
}  # fmt: skip


def error_of(err: Any) -> Error:
    """The exception that a struct vmm_error stands for."""
    kind = BY_CODE.get(err.code, Error)
    error = kind(ffi.string(err.message).decode(errors="replace"), err.os_errno or None)
    error.code = err.code
    return error
