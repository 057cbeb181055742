"""A TCP proxy between a client and its server: a good line, one that stalls, or one that breaks."""

import socket
import threading
from contextlib import suppress


class Line:
    """Forwards connections to `port` on this machine, and misbehaves when told to.

    stall(n)        after n more bytes nothing passes any longer; `stalled` is set.
    cut(n, times)   `times` connections, those that first pass n bytes, break there.
    mend()          all is well again.
    """

    def __init__(self, port: int) -> None:
        """Listen."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._to = port
        self._lock = threading.Lock()
        self.stalled = threading.Event()
        self.cuts = 0
        self.mend()
        threading.Thread(target=self._accept, daemon=True).start()

    def mend(self) -> None:
        """Let everything pass."""
        self._left: float = float("inf")
        self._cut_after, self._to_cut = 0, 0
        self.stalled.clear()

    def stall(self, after: int) -> None:
        """Pass so many bytes, then none."""
        self.mend()
        self._left = after

    def cut(self, after: int, times: int) -> None:
        """Break connections once they have passed so many bytes."""
        self.mend()
        self.cuts, self._cut_after, self._to_cut = 0, after, times

    def close(self) -> None:
        """Accept no more."""
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                passed = [0]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(one, other, passed), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, passed: list[int]) -> None:
        with suppress(OSError), source, target:
            while piece := source.recv(1 << 16):
                with self._lock:
                    self._left -= len(piece)
                    passed[0] += len(piece)
                    breaks = passed[0] > self._cut_after and self.cuts < self._to_cut
                    self.cuts += breaks
                if self._left < 0:
                    self.stalled.set()
                    threading.Event().wait()  # until this process ends
                    return
                if breaks:
                    for each in (source, target):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
