# How QEMU saves and restores a guest like ours, for bench/snapshot: inside the
# emulated host, by QMP, to a file in memory.
#
#	python3 bench/qemu_save.py NAME ROUNDS MIB AIA KERNEL INITRD COMMAND-LINE
#
# AIA is that of QEMU's machine: "none" or "aplic-imsic".  The guest prints "count N"
# again and again; restored, it must go on.  Prints one JSON object as the other
# benchmarks do; what QEMU says when it dies is the row's "note".

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

NAME, ROUNDS, MIB, AIA, KERNEL, INITRD, CMDLINE = sys.argv[1:]
PATIENCE = 120


class Died(Exception):
    pass


class Qemu:
    def __init__(self, *more):
        self.dir = tempfile.mkdtemp()
        self.log = os.path.join(self.dir, "console")
        self.errors = open(os.path.join(self.dir, "errors"), "w+")
        sock = os.path.join(self.dir, "qmp")
        self.process = subprocess.Popen(
            ["qemu-system-riscv64", "-nodefaults", "-display", "none", "-accel", "kvm", "-cpu", "host",
             "-M", f"virt,aia={AIA}", "-m", f"{MIB}M", "-kernel", KERNEL, "-initrd", INITRD,
             "-append", CMDLINE, "-serial", f"file:{self.log}", "-qmp", f"unix:{sock},server,nowait",
             *more], stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors)
        self.qmp = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.qmp.connect(sock)
                break
            except OSError:
                self.check(end)
        self.lines = self.qmp.makefile("rw")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def check(self, end):
        if self.process.poll() is not None or time.monotonic() > end:
            self.errors.seek(0)
            text = self.errors.read().strip().splitlines()
            raise Died(text[-1] if text else "does nothing")
        time.sleep(0.05)

    def ask(self, command, **arguments):
        try:
            self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.lines.flush()
            while True:
                line = self.lines.readline()
                if not line:
                    self.process.wait(PATIENCE)
                    self.check(0)
                reply = json.loads(line)
                if "return" in reply:
                    return reply["return"]
                if "error" in reply:
                    raise Died(reply["error"]["desc"])
        except OSError:
            self.process.wait(PATIENCE)
            self.check(0)

    def counts(self, n):
        end = time.monotonic() + PATIENCE
        while open(self.log, errors="replace").read().count("count") < n:
            self.check(end)

    def migrated(self):
        end = time.monotonic() + PATIENCE
        while True:
            status = self.ask("query-migrate").get("status", "")
            if status == "completed":
                return
            if status == "failed":
                raise Died("migration failed")
            self.check(end)

    def close(self):
        self.process.kill()
        self.process.wait()


def one_round(save, restore, sizes):
    path = f"/dev/shm/{NAME}.qemu"
    first = second = None
    try:
        first = Qemu()
        first.counts(3)
        first.ask("stop")
        begin = time.monotonic()
        first.ask("migrate", uri=f"exec:cat >{path}")
        first.migrated()
        save.append((time.monotonic() - begin) * 1e6)
        sizes.append(os.path.getsize(path))
        first.close()
        begin = time.monotonic()
        second = Qemu("-incoming", f"exec:cat {path}")
        end = time.monotonic() + PATIENCE
        while second.ask("query-status")["status"] in ("inmigrate", "prelaunch"):
            second.check(end)
        second.ask("cont")
        restore.append((time.monotonic() - begin) * 1e6)
        second.counts(2)
    finally:
        for q in (first, second):
            if q:
                q.close()
        if os.path.exists(path):
            os.unlink(path)


def row(name, unit, values):
    return {"name": f"{NAME}.qemu.{AIA}.{name}", "unit": unit, "n": len(values),
            "median": statistics.median(values) if values else 0, "p99": max(values, default=0)}


save, restore, sizes, failed, note = [], [], [], 0, ""
for _ in range(int(ROUNDS)):
    try:
        one_round(save, restore, sizes)
    except Died as why:
        failed += 1
        note = str(why)
rows = [row(*r) for r in (("save", "us", save), ("restore", "us", restore),
                          ("size", "bytes", sizes), ("failed", "", [failed])) if r[2]]
if note:
    rows[-1]["note"] = note
    print(f"qemu, aia={AIA}: {note}", file=sys.stderr)
print(json.dumps({"host": {"kernel": os.uname().release, "machine": os.uname().machine,
                           "cpus": os.cpu_count()}, "rows": rows}, indent=2))
