"""A line between two processes of this machine: objects over a socket, every wait with an end."""

import pickle
import socket
import struct
from time import monotonic
from typing import Any

_SIZE = struct.Struct("!Q")  # of a message in bytes, before it
_PART = 1 << 20


class Line:
    """One end of a line, which belongs to a single thread. The other end is trusted: objects travel by pickle.

    Both methods raise EOFError where the other end is gone.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._held = bytearray()  # received, not yet a whole message: a timeout loses nothing

    def send(self, message: Any, within: float | None) -> None:
        """Send a message. within: seconds, None without a limit. Raises TimeoutError; the line is then of no use."""
        data = pickle.dumps(message, protocol=5)
        self._end.settimeout(within)
        try:
            self._end.sendall(_SIZE.pack(len(data)) + data)
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError from error

    def receive(self, within: float | None) -> Any:
        """Wait for the next message. within: seconds, None without a limit. Raises TimeoutError; it can be repeated."""
        due = None if within is None else monotonic() + within
        while (message := self._whole()) is None:
            self._end.settimeout(None if due is None else max(1e-3, due - monotonic()))
            try:
                part = self._end.recv(_PART)
            except TimeoutError:
                raise
            except OSError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            self._held += part
        return pickle.loads(message)

    def _whole(self) -> bytes | None:
        if len(self._held) < _SIZE.size:
            return None
        end = _SIZE.size + _SIZE.unpack_from(self._held)[0]
        if len(self._held) < end:
            return None
        message = bytes(self._held[_SIZE.size : end])
        del self._held[:end]
        return message

    def close(self) -> None:
        """Close the line: the other end gets EOFError."""
        self._end.close()
