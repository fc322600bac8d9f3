# SPDX-License-Identifier: MIT
"""The library, and the host it is on."""

from ._core import call
from ._types import Host, Irqchip, new, plain
from ._vmm import ffi, lib


def _string(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def version() -> str:
    """The version of the library in use."""
    return _string(lib.vmm_version())


# Until 1.0 a minor version may change the interface.
if lib.vmm_version() // 1000 != lib.VMM_VERSION // 1000:
    raise ImportError(f"libvmm is {version()}, this module is for {_string(lib.VMM_VERSION)}")


def strerror(code: int) -> str:
    """The name of an Error's code, as "VMM_ESTATE"; "VMM_E?" for any other."""
    name: bytes = ffi.string(lib.vmm_strerror(code))
    return name.decode()


def _bits(bits: int) -> frozenset[Irqchip]:
    return frozenset(chip for chip in Irqchip if bits & 1 << chip)


def probe() -> Host:
    """Find out what this host offers; needs no machine and leaves none behind.

    Raises NoKvmError: there is no usable KVM; NotSupportedError: KVM lacks what a
    machine needs.  Both name what is missing.

    >>> print(vmm.probe().isa)"""
    out = new("vmm_host")
    call(lib.vmm_probe, out)
    values = plain(out)
    return Host(
        **values
        | {
            "irqchip": Irqchip(out.irqchip),
            "irqchips": _bits(out.irqchips),
            "irqchips_sound": _bits(out.irqchips_sound),
            "lazy": bool(out.lazy),
        }
    )
