#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Boot Linux, have its shell run a command, show what it says.

boot.py KERNEL INITRD COMMAND
"""

import sys

import vmm


def main(kernel: str, initrd: str, command: str) -> int:
    with (
        vmm.Machine(kernel, initrd=initrd, cmdline="console=ttyS0 quiet") as vm,
        vm.open_serial() as console,
    ):
        vm.start()
        seen = b""
        while not seen.endswith(b"# "):  # the shell's prompt
            seen += console.recv(4096)
        console.sendall(f"{command}; poweroff -f\n".encode())
        event = vm.wait()
        console.setblocking(False)
        print(console.recv(1 << 16).decode(errors="replace"))
        print(f"after {vm.stat().setup_ns / 1e6:.1f} ms of preparation: {event}")
        return 0 if event and event.type == vmm.EventType.SHUTDOWN else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
