"""The figures of runs in a browser while the runs go on: a small server, which knows nothing but the runs it is given.

It answers two requests: ``/``, the page of the runs, and ``/events``, a stream of what changes on it (Server-Sent
Events). Neither names a file, so that nothing else can be asked for, and nothing is ever written.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import urlsplit

from simsfl.cli.report.interactive import interactive_page, news, pictures_in
from simsfl.cli.report.runs import Run, RunReader, unique_names
from simsfl.runs.metrics import Status
from simsfl.system.console import Output
from simsfl.ui.status import filling, gone, time_left
from simsfl.ui.text import number, time_text

_REFRESH_SECONDS = 2.0
"""Least seconds between two readings of the runs."""
_MOST_STREAMS = 64
"""Most pages that are kept up to date at a time."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer: the page belongs to no other page, and nobody keeps it."""
log = logging.getLogger(__name__)


def serve(paths: Sequence[Path], host: str, port: int, console: Output) -> None:
    """Serve the figures of some runs until the program is interrupted.

    Args:
        paths: the run directories.
        host: name or address to listen at.
        port: port to listen at; 0 for any free one.
        console: gets the address.

    Raises:
        ValueError: a directory holds no run, or the address or the port cannot be had.
        KeyboardInterrupt: the program is interrupted.
    """
    runs = ServedRuns(paths)
    with _Server(host, port, runs) as server:
        console.say("serving at ", (server.url, "bold"), "; Ctrl-C ends it")
        server.serve_forever()


class ServedRuns:
    """The runs that are served, which are read again when somebody asks for them.

    Args:
        paths: the run directories.

    Raises:
        ValueError: one of them holds no run, or a file in it is damaged.
    """

    def __init__(self, paths: Sequence[Path]):
        names = unique_names(paths)
        self._readers = [RunReader(path, name) for path, name in zip(paths, names, strict=True)]
        self._runs = [reader.read() for reader in self._readers]
        self._seen: list[Any] = [None] * len(self._readers)
        self._problems = [""] * len(self._readers)
        self._lock, self._read, self._news = Lock(), 0.0, ""

    def page(self) -> bytes:
        """Return the page."""
        with self._lock:
            state = self._update()
            pictures = [picture for run in self._runs for picture in pictures_in(run, len(self._runs))]
            return interactive_page(self._runs, pictures, state).encode()

    def news(self) -> bytes:
        """Return what is on the page now, as one event of a stream; it is read anew if what is known is not recent."""
        with self._lock:
            if time.monotonic() - self._read > _REFRESH_SECONDS:
                self._news = news(self._runs, self._update())
                self._read = time.monotonic()
            return f"data: {self._news}\n\n".encode()

    def _update(self) -> list[list[str]]:
        """Read the runs again of which files have changed; return the rows of the table of how far they have come."""
        state = [["run", "activity", "round", "clients per second", "time left"]]
        for place, reader in enumerate(self._readers):
            try:
                if (seen := _stamps(reader)) != self._seen[place]:
                    self._runs[place] = reader.read()
                    self._seen[place] = seen
                self._problems[place] = ""
                status = Status.load(reader.directory.live)
            except (ValueError, OSError) as error:  # such as one that is being deleted; the others are shown
                self._problems[place], status = f"cannot be read: {error}", None
            state.append([reader.name, *_state(self._runs[place], status, self._problems[place])])
        if any(run.history.fleet for run in self._runs):
            for row, text in zip(state, ["time of the fleet", *map(_clock, self._runs)], strict=True):
                row.append(text)
        return state


def _stamps(reader: RunReader) -> list[tuple[str, int, int]]:
    """Return name, time and size of the files that a run is read from, as far as they are there."""
    own = reader.directory
    files = (own.config, own.metrics, own.summary, *sorted(own.attacks.glob("*.json")))
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _state(run: Run, status: Status | None, problem: str) -> list[str]:
    """Return how far a run has come, as texts of the table's cells after its name."""
    done, rounds = f"{len(run.history.rounds):,} of {run.config['rounds']:,}", "-"
    if problem or not status:
        return [problem or "no live.json yet", done, rounds, "-"]
    activity = gone(status) or ", ".join(filter(None, (status.activity, filling(status))))
    left = None if gone(status) else time_left(status)
    speed = number(status.client_steps_per_second, ",.0f")
    return [activity, done, speed, time_text(left) if left else "-"]


def _clock(run: Run) -> str:
    """Return the time of a run's fleet as text."""
    clock = run.history.value("fleet", "clock")
    return "-" if clock is None else time_text(clock)


class _Server(ThreadingTCPServer):
    """The server: a thread for each request, all of which end with the program.

    Args:
        host: name or address to listen at.
        port: port to listen at; 0 for any free one.
        runs: what it serves.

    Raises:
        ValueError: the address or the port cannot be had.
    """

    allow_reuse_address, daemon_threads, block_on_close = True, True, False

    def __init__(self, host: str, port: int, runs: ServedRuns):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
        except (OSError, UnicodeError) as error:
            raise ValueError(f"host: {host!r} is no address of a machine; allowed: such as 127.0.0.1") from error
        try:
            super().__init__(address[:2], partial(_Handler, runs, BoundedSemaphore(_MOST_STREAMS), host))
        except OSError as error:
            raise ValueError(
                f"port: {host}:{port} cannot be listened at ({error.strerror}); allowed: another, or --port 0 for any "
                "free one"
            ) from error
        at = ipaddress.ip_address(self.server_address[0])
        shown = socket.gethostname() if at.is_unspecified else f"[{at}]" if at.version == 6 else at
        self.url = f"http://{shown}:{self.server_address[1]}/"
        if not at.is_loopback:
            log.warning("host: whoever reaches %s from another machine can see these runs, without a password", at)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a reader that has gone, and log any other error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("a request of %s failed (%r)", client_address[0], error)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request.

    Args:
        runs: what is served.
        streams: what a stream of events has to acquire.
        host: the host that the server was told to listen at.
        how: arguments of the base class.
    """

    server_version, sys_version = "simsfl", ""
    timeout = 30  # seconds that a reader may keep it waiting

    def __init__(self, runs: ServedRuns, streams: BoundedSemaphore, host: str, *how: Any):
        self.runs, self.streams, self.host = runs, streams, host
        super().__init__(*how)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        """Answer the request, if it is for this server and for one of the two things that there are."""
        if not self._is_meant():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "The request names another host")
        elif self.path == "/":
            page = self.runs.page()
            self._begin("text/html; charset=utf-8", length=len(page))
            if self.command == "GET":
                self.wfile.write(page)
        elif self.path == "/events":
            self._stream()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _is_meant(self) -> bool:
        """Return whether the request's header ``Host`` is an address, or a name of this machine.

        A page elsewhere could have its own name lead to this address, and read the answers (DNS rebinding).
        """
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            return name in {"localhost", self.host.lower(), socket.gethostname().lower()} or bool(
                ipaddress.ip_address(name)
            )
        except ValueError:
            return False

    def _stream(self) -> None:
        """Send what is on the page whenever it has changed, until the reader has gone."""
        if not self.streams.acquire(blocking=False):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        try:
            self._begin("text/event-stream")
            sent = b""
            while self.command == "GET":
                event = self.runs.news()
                self.wfile.write(event if event != sent else b":\n\n")  # a comment, which fails if nobody reads
                sent = event
                time.sleep(_REFRESH_SECONDS)
        finally:
            self.streams.release()

    def _begin(self, kind: str, length: int | None = None) -> None:
        """Send the headers of an answer of this type."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def end_headers(self) -> None:
        """Send the headers that every answer has, and the end of them."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request where debugging messages are shown, instead of printing it."""
        log.debug(format, *arguments)
