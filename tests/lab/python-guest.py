# The warm Python guest: it has its modules loaded and a database filled, rings
# the doorbell, and answers requests over vsock.  Process 1 execs it.
#
# A request is one line of JSON on a connection to port 5000, the answer another:
#
#     {"id": 7, "nonce": "abc"}
#     {"id": 7, "rows": 3, "total": 1234, "sha256": "...", "uptime": 12.3, "random": "..."}
#
# "rows" and "total" come of a query, "sha256" is of the nonce and they: the
# answer can be checked by whoever asks.  "random" is 64 bits of getrandom(), by
# which clones are told apart.

import hashlib
import json
import os
import socket
import sqlite3
import ssl  # noqa: F401: what an application would have loaded
import subprocess
import sys
import time

PORT = 5000


def fill():
    db = sqlite3.connect(":memory:")
    db.execute("create table orders(id integer primary key, customer int, amount int, note text)")
    db.executemany(
        "insert into orders values(?, ?, ?, ?)",
        ((i, i * 7919 % 500, i * 104729 % 1000, f"order number {i}") for i in range(5000)),
    )
    db.execute("create index by_customer on orders(customer)")
    db.commit()
    return db


def answer(db, line):
    request = json.loads(line)
    customer = int(request.get("id", 0)) % 500
    rows, total = db.execute(
        "select count(*), sum(amount) from orders where customer = ?", (customer,)
    ).fetchone()
    digest = hashlib.sha256(f"{request.get('nonce', '')}:{rows}:{total}".encode()).hexdigest()
    return json.dumps({
        "id": request.get("id"), "rows": rows, "total": total, "sha256": digest,
        "uptime": round(time.monotonic(), 6), "random": os.getrandom(8).hex(),
    })


def serve(db, connection):
    with connection, connection.makefile("rw", encoding="utf-8", newline="\n") as stream:
        for line in stream:
            try:
                reply = answer(db, line)
            except (ValueError, TypeError, AttributeError) as error:
                reply = json.dumps({"error": str(error)})
            stream.write(reply + "\n")
            stream.flush()


def main():
    db = fill()
    for i in range(20):
        answer(db, json.dumps({"id": i, "nonce": "warm"}))
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen(16)
    print(f"python {sys.version.split()[0]}: warm after {time.monotonic():.1f} s", flush=True)
    subprocess.run(["/bin/vmm-guest", "ring", "1"], check=False)
    while True:
        connection, _ = listener.accept()
        try:
            serve(db, connection)
        except OSError:
            pass  # the other side is gone, as after every restore


main()
