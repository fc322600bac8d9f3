# SPDX-License-Identifier: MIT
"""The example executor.py: what goes to the guest, and what its agent makes of it."""

import json
import math
import random
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TOP

sys.path.append(str(TOP / "bindings" / "python" / "examples"))
import agent
import executor


def remote(fn: Callable[..., object], *args: object, **kwargs: object) -> Any:
    request = json.dumps(executor.what(fn) | {"args": args, "kwargs": kwargs})
    return json.loads(agent.answer(request))


def squares(n: int, *, start: int = 0) -> list[int]:
    return [i * i for i in range(start, n)]


def test_calls() -> None:
    def inner(text: str) -> str:
        import re

        return re.sub("o", "0", text)

    assert remote(squares, 4, start=1) == {"result": [1, 4, 9]}
    assert remote(inner, "foo") == {"result": "f00"}
    assert remote(math.factorial, 5) == {"result": 120}
    assert remote(pow, 2, 10) == {"result": 1024}


def test_errors() -> None:
    def fails() -> None:
        raise KeyError("what is missing")

    assert "KeyError: 'what is missing'" in remote(fails)["error"]
    assert "TypeError" in remote(squares)["error"]
    assert "not JSON serializable" in remote(lambda_free)["error"]
    assert "JSONDecodeError" in json.loads(agent.answer("nonsense"))["error"]


def lambda_free() -> object:
    return {1, 2}


def test_what_cannot_go_there() -> None:
    n = 1

    def closure() -> int:
        return n

    for fn in (closure, lambda: 1, str, squares.__call__):
        with pytest.raises(TypeError, match="stands on its own"):
            executor.what(fn)


def test_random_numbers_are_fresh() -> None:
    def draw() -> float:
        import random

        return random.random()

    random.seed(1)
    first = remote(draw)
    random.seed(1)
    assert remote(draw) != first


def test_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            writer = threading.Thread(target=lambda: (theirs.sendall(data), theirs.shutdown(1)))
            writer.start()
            try:
                return executor.line(ours)
            finally:
                ours.close()
                writer.join()

    assert read(b"a line\n") == b"a line\n"
    with pytest.raises(executor.RemoteError, match="gone"):
        read(b"half of")
    monkeypatch.setattr(executor, "LONGEST", 10)
    with pytest.raises(executor.RemoteError, match="too long"):
        read(b"x" * 100)
