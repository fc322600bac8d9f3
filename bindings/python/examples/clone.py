#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Boot Linux, freeze it to a file, and go on from there, three times.

clone.py KERNEL INITRD FILE
"""

import socket
import sys
import time

import vmm


def read_until(console: socket.socket, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += console.recv(4096)
    return seen


def save(kernel: str, initrd: str, file: str) -> None:
    with (
        vmm.Machine(kernel, initrd=initrd, cmdline="console=ttyS0 quiet") as vm,
        vm.open_serial() as console,
    ):
        vm.start()
        read_until(console, b"# ")
        console.sendall(b"answer=42; echo set\n")
        read_until(console, b"\nset")
        vm.pause()
        with vm.snapshot() as snap:
            snap.write(file, progress=lambda done, total: print(f"{done} of {total} bytes"))


def main(kernel: str, initrd: str, file: str) -> None:
    save(kernel, initrd, file)
    with vmm.Snapshot.open(file) as snap:
        print(snap.info())
        for i in range(3):
            begin = time.monotonic()
            with snap.restore(name=f"clone {i}") as vm, vm.open_serial() as console:
                vm.start()
                console.sendall(b'echo "the answer is $answer"\n')
                read_until(console, b"answer is 42")
                print(f"clone {i} has answered after {time.monotonic() - begin:.3f} s")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
