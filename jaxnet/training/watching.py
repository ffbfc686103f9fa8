"""A page of a run's curves on this machine's own address, drawn anew while the run trains."""

import html
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from jaxnet.training.reports import page
from jaxnet.training.run_folder import RunError
from jaxnet.training.run_listing import read_run

LOOPBACK = "127.0.0.1"
SECONDS = 5


def server(folder: Path, port: int = 0) -> HTTPServer:
    """A server of the page, to be run by its `serve_forever`. port: 0 takes any that is free.

    It answers on the loopback alone, to requests that name it so: no page of another site can read it.
    """
    read_run(folder)
    try:
        return HTTPServer((LOOPBACK, port), partial(Page, folder))
    except (OSError, OverflowError) as error:
        raise RunError(f"--port must be free, from 0 to 65535, got {port}: {error}") from error


def address(serving: HTTPServer) -> str:
    """Where a browser finds the page."""
    return f"http://{LOOPBACK}:{serving.server_port}/"


class Page(BaseHTTPRequestHandler):
    """Answers with the run's page as it is now; the browser asks again after some seconds."""

    def __init__(self, folder: Path, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page; 404 for another path, 403 for another host, 500 where the run cannot be read."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (LOOPBACK, "localhost"):
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            try:
                self.answer(page_of(self.folder))
            except RunError as error:
                self.send_error(500, "The run cannot be read", str(error))

    def answer(self, text: str) -> None:
        """Sends a page that the browser asks for again."""
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Refresh", str(SECONDS))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments) -> None:
        """Says nothing of each request."""


def page_of(folder: Path) -> str:
    """The report of a run as it is now."""
    record = read_run(folder)
    if record.metrics:
        return page([record], [record.name])
    name = html.escape(record.name)
    return f'<!doctype html><meta charset="utf-8"><title>{name}</title><p>{name}: no epoch is done yet</p>'
