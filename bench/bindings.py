# SPDX-License-Identifier: MIT
"""The work of bindings.c, in Python; and what has the three of them do it, in turn.

bindings.py work FILE
bindings.py drive KIND ROUNDS FILE      prints the rows

KIND is "virtual" (the clock counts instructions), or "wall", which is then the end of
the rows' names.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import time

PORT = 5000
ECHOES = 50


def work(file: str) -> None:
    import vmm

    def echo(s: socket.socket) -> None:
        s.sendall(b"x")
        assert s.recv(1) == b"x"

    def talk() -> tuple[vmm.Machine, socket.socket, list[float]]:
        at = [time.monotonic()]
        vm = snap.restore()
        at.append(time.monotonic())
        vm.start()
        at.append(time.monotonic())
        s = vm.connect(PORT, timeout=60)
        at.append(time.monotonic())
        echo(s)
        at.append(time.monotonic())
        return vm, s, at

    talker = None
    with vmm.Snapshot.open(file) as snap:
        for line in sys.stdin:
            if line.startswith("rr "):
                n = int(line[3:])
                talker = talker or talk()
                begin = time.monotonic()
                for _ in range(n):
                    echo(talker[1])
                print((time.monotonic() - begin) / n * 1e6, flush=True)
                continue
            vm, s, at = talk()
            s.close()
            vm.close()
            print(*((b - a) * 1e6 for a, b in itertools.pairwise(at)), flush=True)
        if talker:
            talker[1].close()
            talker[0].close()


def percentile(values: list[float], p: int) -> float:
    return sorted(values)[round((len(values) - 1) * p / 100)]


def drive(kind: str, rounds: int, file: str) -> None:
    commands = {
        "c": ["./bindings", "work", file],
        "go": ["./bindings-go", file],
        "python": [sys.executable, __file__, "work", file],
    }
    pipe = subprocess.PIPE
    workers = {
        name: subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        for name, command in commands.items()
    }
    rows = []

    def row(name: str, us: list[float], c: list[float]) -> None:
        median = percentile(us, 50)
        rows.append({
            "name": name + (".wall" if kind == "wall" else ""), "unit": "us", "n": len(us),
            "median": median, "p99": percentile(us, 99),
        })  # fmt: skip
        if not name.startswith("c."):
            reference = percentile(c, 50)
            rows[-1] |= {"reference": "C", "reference_median": reference}
            rows[-1] |= {"ratio": median / reference}

    for what, order, steps in (
        ("answer", "answer", ("restore", "start", "connect", "echo")),
        ("vsock_rr", f"rr {ECHOES}", ()),
    ):
        us: dict[str, list[list[float]]] = {name: [] for name in workers}
        for i in range(rounds + 1):
            for name, worker in workers.items():
                worker.stdin.write(order + "\n")
                values = [float(word) for word in worker.stdout.readline().split()]
                if i:  # the first decodes RAM, loads code
                    us[name].append(values)
                # What the kernel has to clear away is not to be in the way of the next.
                time.sleep(0.02)
        for name in workers:
            row(f"{name}.{what}", [sum(v) for v in us[name]], [sum(v) for v in us["c"]])
        for i, step in enumerate(steps):
            for name in workers:
                row(f"{name}.{what}.{step}", [v[i] for v in us[name]], [v[i] for v in us["c"]])
    for worker in workers.values():
        worker.stdin.close()
        if worker.wait():
            sys.exit(worker.returncode)
    host = {"kernel": os.uname().release, "machine": os.uname().machine, "cpus": os.cpu_count()}
    print(json.dumps({"host": host, "rows": rows}, indent=2))


if sys.argv[1] == "work":
    work(sys.argv[2])
else:
    drive(sys.argv[2], int(sys.argv[3]), sys.argv[4])
