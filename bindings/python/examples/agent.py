# SPDX-License-Identifier: MIT
"""What executor.py runs as process 1 of its guest: it rings when it is ready, and
answers calls on vsock port 5001, each a line of JSON there and one back.
"""

import ctypes
import importlib
import json
import operator
import os
import random
import socket
import subprocess
import traceback
from contextlib import suppress
from typing import Any

PORT = 5001


def call(request: dict[str, Any]) -> object:
    space: dict[str, Any] = {"__name__": "agent"}
    if "source" in request:
        exec(request["source"], space)
        function = space[request["name"]]
    else:
        module = importlib.import_module(request["module"])
        function = operator.attrgetter(request["name"])(module)
    # Clones begin alike; the kernel knows that it is another one by now.
    random.seed(os.urandom(32))
    return function(*request["args"], **request["kwargs"])


def answer(line: str) -> str:
    try:
        return json.dumps({"result": call(json.loads(line))})
    except BaseException:
        return json.dumps({"error": traceback.format_exc()})


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"tmpfs", b"/tmp")):
        libc.mount(kind, where, kind, 0, None)
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen()
    answer(json.dumps({"module": "builtins", "name": "len", "args": [[]], "kwargs": {}}))
    subprocess.run(["/bin/vmm-guest", "ring", "1"], check=True)
    while True:
        connection, _ = listener.accept()
        # Who called may go without a word, as after every restore.
        with suppress(OSError), connection, connection.makefile("rw") as stream:
            for line in stream:
                stream.write(answer(line) + "\n")
                stream.flush()


if __name__ == "__main__":
    main()
