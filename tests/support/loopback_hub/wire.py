"""The servers: requests in, faults, answers out."""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NoReturn

from tests.support.loopback_hub.rules import Answer, Request

if TYPE_CHECKING:
    from tests.support.loopback_hub.hub import LoopbackHub

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Dropped(Exception):
    """The connection ends here."""

    def __init__(self, reset: bool) -> None:
        super().__init__(reset)
        self.reset = reset


class Server(ThreadingHTTPServer):
    """One of the Hub's two servers."""

    daemon_threads = True

    def __init__(self, hub: LoopbackHub, host: str) -> None:
        self.hub, self.host = hub, host
        self._open: set[socket.socket] = set()
        self._resetting: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def reset(self, connection: socket.socket) -> None:
        """Make a connection end with a reset when it is closed."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._resetting.add(connection)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        if request in self._resetting:  # the shutdown would say goodbye in order
            self._resetting.discard(request)
            request.close()
        else:
            super().shutdown_request(request)

    def handle_error(self, *args: Any) -> None:
        """Say nothing where a client went away; that is part of many tests."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*args)


class Exchange:
    """A request and what becomes of it; ``rules.Wire`` for actions."""

    def __init__(self, handler: Handler, request: Request) -> None:
        self.request = request
        self.stopped = handler.server.hub.stopped
        self.length = int(request.headers.get("content-length", 0))
        self._handler = handler

    def read_body(self, count: int) -> None:
        data = self._handler.rfile.read(count)
        self.request.body += data
        if len(data) < count:
            raise ConnectionError("the client went away")

    def encode(self, answer: Answer) -> bytes:
        phrase = HTTPStatus(answer.status).phrase
        lines = [f"HTTP/1.1 {answer.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + answer.body

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def drop(self, *, reset: bool) -> NoReturn:
        raise Dropped(reset)

    def has_gone(self) -> bool:
        connection = self._handler.connection
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)

    def run(self) -> None:
        hub = self._handler.server.hub
        actions = hub.actions_for(self.request)
        for action in actions:
            action.on_head(self)
        self.read_body(self.length - self.request.size)
        answer = None
        for action in actions:
            answer = action.on_body(self) or answer
        answer = answer or hub.answer(self.request)
        answer.headers.setdefault("Content-Length", str(len(answer.body)))
        if self.request.method == "HEAD":
            answer.body = b""
        for action in actions:
            action.on_answer(self, answer)
        # Noted before the client can see it: it may go on before this thread runs again.
        self.request.status = answer.status
        self.send(self.encode(answer))


class Handler(BaseHTTPRequestHandler):
    """Reads the heads of requests on one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        exchange = Exchange(self, Request(self.server.host, self.command, self.path, headers))
        if "transfer-encoding" in headers:  # as storage does
            self.close_connection = True
            exchange.send(exchange.encode(Answer(501, {"Content-Length": "0"})))
            return
        try:
            exchange.run()
        except Dropped as dropped:
            self.close_connection = True
            if dropped.reset:
                self.server.reset(self.connection)
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET
