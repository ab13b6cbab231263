"""Who has ended? A connection from every rank to the first, beside the collectives.

A rank that is killed cannot say so, and one that waits in a collective learns at best that the
network failed. So every rank keeps a connection open, which the system closes with the process,
and says over it where it is. The first rank hears of every end and tells it to the others:

    a rank -> rank 0    ["at", place]  ["failed", reason]  ["done"]
    rank 0 -> a rank    the same of itself, and ["ended", rank, place, reason]

A machine that is gone closes nothing: the system's own probes find out within half a minute. A
process that does not end by itself after that news, because it waits where Python cannot reach it,
is ended with the message.
"""

import json
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

GRACE = 15.0
"""Seconds that a process has to end by itself."""
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
"""Seconds until a silent connection is probed, between probes, number of them; milliseconds that
something sent may stay unanswered. Linux has all four."""


@dataclass(frozen=True)
class Ended:
    """A rank that is no more."""

    rank: int
    place: str
    """What it was doing."""
    reason: str | None
    """What it said; None if it could not."""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else " without a word (killed, or out of memory?)"
        return (
            f"rank {self.rank} ended at {self.place}{why}. The job ends on every rank; finished "
            "blocks are stored, and --resume goes on with them, with any number of ranks"
        )


class Watch:
    """The connections of one rank: to all others on the first, to the first on the others."""

    def __init__(self, rank: int, connections: dict[int, socket.socket]):
        """
        Args:
            connections: by the rank at the other end.
        """
        self.rank, self._connections = rank, connections
        self._places = dict.fromkeys([rank, *connections], "the start")
        self._finished: set[int] = set()
        self._ended: Ended | None = None
        self._known, self._leaving = threading.Event(), threading.Event()
        self._sending = threading.Lock()
        for connection in connections.values():
            _probe(connection)
        threading.Thread(target=self._listen, name="q2n watch", daemon=True).start()

    def at(self, place: str) -> None:
        """Say what this rank does now."""
        self._send(["at", place])

    def failed(self, reason: str) -> None:
        """Say that this rank ends, and why."""
        self._send(["failed", reason])

    def done(self) -> None:
        """Say that this rank's end is no failure."""
        self._send(["done"])

    def ended(self, seconds: float) -> Ended | None:
        """Another rank that has ended, if that becomes known within so many seconds."""
        self._known.wait(seconds)
        return self._ended

    def leave(self) -> None:
        """This process ends its part by itself: nobody must end it.

        It closes its own connections, and must not take that for the others' end.
        """
        self._leaving.set()
        for connection in self._connections.values():
            with suppress(OSError):  # the other end is gone
                connection.shutdown(socket.SHUT_RDWR)

    def _send(self, message: list[Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            for connection in self._connections.values():
                with suppress(OSError):  # whoever listens there has ended: `_listen` hears of it
                    connection.sendall(data)

    def _listen(self) -> None:
        rest = dict.fromkeys(self._connections, b"")
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    rank, connection = key.data, self._connections[key.data]
                    data = _received(connection)
                    *lines, rest[rank] = (rest[rank] + data).split(b"\n")
                    for line in lines:
                        self._hear(rank, *json.loads(line))
                    if not data:
                        selector.unregister(connection)
                        if rank not in self._finished:
                            self._learn(Ended(rank, self._places[rank], None))

    def _hear(self, rank: int, kind: str, *values: Any) -> None:
        if kind == "at":
            self._places[rank] = values[0]
        elif kind == "done":
            self._finished.add(rank)
        elif kind == "failed":
            self._learn(Ended(rank, self._places[rank], values[0]))
        elif kind == "ended":
            self._learn(Ended(*values))

    def _learn(self, ended: Ended) -> None:
        """The first end counts: others follow from it, and from this rank's own."""
        if self._known.is_set() or self._leaving.is_set() or ended.rank == self.rank:
            return
        if self.rank == 0:
            self._send(["ended", ended.rank, ended.place, ended.reason])
        self._ended = ended
        self._known.set()
        threading.Thread(target=self._end, args=(ended,), daemon=True).start()

    def _end(self, ended: Ended) -> None:
        """End this process if it does not do so itself."""
        if not self._leaving.wait(GRACE):
            print(f"error: {ended}", file=sys.stderr, flush=True)
            os._exit(1)


def watch(
    rank: int, size: int, address: str, tell: Callable[[list[Any] | None], list[Any]]
) -> Watch:
    """Connect a rank.

    Args:
        address: of the machine of the first rank.
        tell: gives every rank the JSON list that the first one passes.

    Raises:
        OSError: no connection within a minute.
    """
    if rank > 0:
        port, token = tell(None)
        connection = socket.create_connection((address, port), timeout=60)
        connection.sendall(f"{token} {rank:08d}\n".encode())
        connection.settimeout(None)
        return Watch(rank, {0: connection})
    token = os.urandom(16).hex()
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=six, backlog=size) as server:
        server.settimeout(60)
        tell([server.getsockname()[1], token])
        connections: dict[int, socket.socket] = {}
        while len(connections) < size - 1:
            connection, _ = server.accept()
            if (number := _who(connection, token)) is not None:
                connections[number] = connection
    return Watch(0, connections)


def _who(connection: socket.socket, token: str) -> int | None:
    """The rank at the other end; None for a stranger, who is turned away."""
    connection.settimeout(10)
    try:
        data = b""
        while len(data) < len(token) + 10 and (more := connection.recv(len(token) + 10)):
            data += more
    except OSError:
        data = b""
    connection.settimeout(None)
    found, _, number = data.decode("ascii", "replace").strip().partition(" ")
    if found == token and number.isdecimal():
        return int(number)
    connection.close()
    return None


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
