#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An HTTP server that answers each request in a machine of its own, from a pool.

serve.py SNAPSHOT HTTP-PORT GUEST-PORT

In the snapshot something listens on vsock port GUEST-PORT, as tests/lab/python-guest.py
does: a line comes, a line goes.  The body of a POST is that line.

    curl -d '{"id": 7, "nonce": "abc"}' localhost:8080
"""

import asyncio
import sys

import vmm
from vmm import aio

LONGEST = 65536


async def answer(pool: aio.Pool, port: int, request: bytes) -> bytes:
    async with await pool.take(timeout=10) as vm:
        await vm.start()
        reader, writer = await vm.open_connection(port, timeout=10)
        try:
            writer.write(request + b"\n")
            return await asyncio.wait_for(reader.readline(), 10)
        finally:
            writer.close()


async def serve(
    pool: aio.Pool, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = [line.split(b":", 1) for line in head.lower().split(b"\r\n") if b":" in line]
        length = int(dict(fields).get(b"content-length", b"0"))
        if length > LONGEST:
            raise ValueError("the request is too long")
        body = (await reader.readexactly(length)).replace(b"\n", b" ")
        status, reply = b"200 OK", await answer(pool, port, body)
    except (vmm.Error, OSError, ValueError, EOFError, asyncio.LimitOverrunError) as e:
        status, reply = b"500 Error", f"{e}\n".encode()
    writer.write(b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(reply)) + reply)
    writer.close()


async def main(file: str, http_port: int, port: int) -> None:
    with vmm.Snapshot.open(file) as snap:
        async with aio.Pool(vmm.Pool(snap, ready=4)) as pool:
            server = await asyncio.start_server(
                lambda r, w: serve(pool, port, r, w), "localhost", http_port
            )
            async with server:
                await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
