"""An HTTP proxy that fails as storage does: it passes bytes on unchanged, so signatures hold, until told otherwise."""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

SOUND = "sound"
FAULTS = ("503", "429", "500", "slow", "reset before", "reset in the body", "cut in the body", "stored then reset")
Choice: TypeAlias = Callable[[int, str, str], str]  # number of the request, method, path -> SOUND or one of FAULTS


@dataclass
class Proxy:
    """Where to connect, what to do with each request, and what was done."""

    upstream: tuple[str, int]
    choose: Choice = lambda number, method, path: SOUND
    address: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, str]] = field(default_factory=list)
    clients: set[asyncio.StreamWriter] = field(default_factory=set)

    def calm(self) -> None:
        """Pass everything on, and forget what was."""
        self.choose = lambda number, method, path: SOUND
        self.seen.clear()
        self.requests.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(writer)
        try:
            while request := await read_message(reader, writer):
                method, path = request.split(b" ", 2)[:2]
                self.requests.append((method.decode(), path.decode()))
                fault = self.choose(len(self.requests) - 1, method.decode(), path.decode())
                self.seen[fault] += 1
                if not await self.answer(request, fault, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.clients.discard(writer)
            writer.close()

    async def answer(self, request: bytes, fault: str, writer: asyncio.StreamWriter) -> bool:
        """Reply; False where the connection is no more."""
        if fault in ("503", "429", "500"):
            writer.write(b"HTTP/1.1 %s Slow Down\r\nContent-Length: 0\r\n\r\n" % fault.encode())
            await writer.drain()
            return True
        if fault == "reset before":
            return reset(writer)
        reply = await self.forward(request)
        if fault == "stored then reset":
            return reset(writer)
        if fault == "slow":
            await asyncio.sleep(0.5)
        head, _, body = reply.partition(b"\r\n\r\n")
        if fault in ("reset in the body", "cut in the body"):
            writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
            await writer.drain()
            return reset(writer) if fault.startswith("reset") else False
        writer.write(reply)
        await writer.drain()
        return True

    async def forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(request)
            await writer.drain()
            reply = await read_message(reader, None, is_head=request.startswith(b"HEAD "))
            while reply.split(b" ", 2)[1].startswith(b"1"):  # "go on": the body was sent already
                reply = await read_message(reader, None, is_head=request.startswith(b"HEAD "))
            return reply
        finally:
            writer.close()


def reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection as a crash does."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def read_message(
    reader: asyncio.StreamReader, client: asyncio.StreamWriter | None, *, is_head: bool = False
) -> bytes:
    """A request or reply, whole; empty where the other side has gone. client: told to go on where it asks."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))}
    if client and headers.get(b"expect", b"").lower() == b"100-continue":
        client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.drain()
    if is_head or head.split(b" ", 2)[1] in (b"204", b"304", b"100"):
        return head
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return head + await read_chunks(reader)
    return head + await reader.readexactly(int(headers.get(b"content-length", b"0")))


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    whole = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        whole += line + await reader.readexactly(size + 2)
        if size == 0:
            return whole


def at_random(share: float, seed: int, faults: tuple[str, ...] = FAULTS) -> Choice:
    """That share of all requests fails, in every way in turn."""
    rng = random.Random(seed)
    return lambda number, method, path: rng.choice(faults) if rng.random() < share else SOUND


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before a server for the time of the `with`, in a thread of its own."""
    host, _, port = upstream.removeprefix("http://").partition(":")
    made = Proxy((host, int(port)))
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(made.serve, "127.0.0.1", 0))
    made.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="proxy")
    thread.start()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for client in list(made.clients):
            client.transport.abort()
        loop.run_until_complete(_end(asyncio.all_tasks(loop)))
        loop.close()


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
