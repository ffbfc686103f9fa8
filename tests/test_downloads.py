"""Downloads: mirrors, checksums, caches, and processes that fetch at once or are killed."""

import gzip
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jaxnet.training.data import DataError, fetch, load, pictures
from tests.datasets import FILES, REAL, nothing_of_this_machine, refused, small, small_mnist, write  # noqa: F401 (the fixture)

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `serves`: path -> bytes, or a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.serves = {"/good": CONTENT, "/good.gz": gzip.compress(CONTENT), "/wrong": CONTENT[:-1] + b"x"}
        self.serves |= {"/cut": cut, "/cut.gz": cut_gzip, "/silent": silent, "/dropped": dropped, "/empty": b""}
        self.serves |= {"/short.gz": gzip.compress(CONTENT)[:500], "/bad.gz": b"\x1f\x8b" + b"?" * 500}
        self.asked: list[str] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.serves.get(self.path)
        if callable(content):
            content(self)
        elif content is None:
            self.send_error(404)
        else:
            self.begin(len(content))
            self.wfile.write(content)

    def begin(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def cut(handler, content=CONTENT):
    handler.begin(len(content))
    handler.wfile.write(content[: len(content) // 2])


def cut_gzip(handler):
    cut(handler, gzip.compress(CONTENT))


def silent(handler):
    cut(handler)
    handler.wfile.flush()
    handler.server.over.wait(30)


def dropped(handler):
    handler.connection.close()


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def get(server, cache, *paths, **options) -> Path:
    return fetch("thing", DIGEST, [f"{server.url}/{path}" for path in paths], cache, **{"timeout": 5, **options})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["good", "good.gz"])
def test_a_download_is_kept_uncompressed_and_not_asked_for_again(server, tmp_path, path):
    cache = tmp_path / "a" / "b"
    for _ in range(2):
        assert get(server, cache, path).read_bytes() == CONTENT
    assert server.asked == [f"/{path}"]
    assert names(cache) == ["thing"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("cut", "cut off after 512,000 of 1,024,000 bytes"),
        ("cut.gz", "cut off after"),
        ("short.gz", "damaged gzip (Compressed file ended before the end-of-stream marker"),
        ("bad.gz", "damaged gzip"),
        ("wrong", "wrong content: SHA-256"),
        ("empty", "wrong content: SHA-256"),
        ("missing", "HTTP 404 Not Found"),
        ("silent", "broke off (TimeoutError: timed out)"),
        ("dropped", "RemoteDisconnected"),
    ],
)
def test_a_mirror_that_fails_gives_way_to_the_next(server, tmp_path, bad, reason):
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        get(server, tmp_path, bad, timeout=0.3, advice="Do this instead.")
    assert time.monotonic() - start < 8  # the silent one stays silent for 30 s
    assert f"{server.url}/{bad}: " in str(error.value)
    assert reason in str(error.value)
    assert str(error.value).endswith("\nDo this instead.")
    assert names(tmp_path) == []
    assert get(server, tmp_path, bad, "good.gz", timeout=0.3).read_bytes() == CONTENT
    assert names(tmp_path) == ["thing"]


def test_a_mirror_without_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxnet.training.data.download.MOST_BYTES", 300_000)
    with pytest.raises(DataError, match="more than 300,000 bytes"):
        get(server, tmp_path, "good.gz")
    assert names(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_fetched_anew_and_kept_until_then(server, tmp_path):
    (tmp_path / "thing").write_bytes(CONTENT[:100])
    with pytest.raises(DataError):
        get(server, tmp_path, "missing")
    assert (tmp_path / "thing").read_bytes() == CONTENT[:100]
    assert get(server, tmp_path, "good").read_bytes() == CONTENT


def test_an_unwritable_cache(server, tmp_path):
    (tmp_path / "file").write_text("kept")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(DataError, match=r"cannot be written .*: set XDG_CACHE_HOME to a folder"):
            get(server, cache, "good")
    assert (tmp_path / "file").read_text() == "kept"
    assert server.asked == []


def test_a_full_disk(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        get(server, tmp_path, "good", "good")
    assert server.asked == ["/good"]
    assert names(tmp_path) == []


FETCH = """
import sys
from pathlib import Path
from jaxnet.training.data import fetch
fetch(*sys.argv[1:3], [sys.argv[3]], Path(sys.argv[4]))
"""


def fetching(url: str, cache: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH, "thing", DIGEST, url, str(cache)])


def test_two_processes_fetch_at_once(server, tmp_path):
    both = threading.Barrier(2, timeout=60)

    def together(handler):
        handler.begin(len(CONTENT))
        handler.wfile.write(CONTENT[:400_000])
        both.wait()
        handler.wfile.write(CONTENT[400_000:])

    server.serves["/together"] = together
    processes = [fetching(f"{server.url}/together", tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert server.asked == ["/together"] * 2
    assert names(tmp_path) == ["thing"]
    assert (tmp_path / "thing").read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_under_the_final_name(server, tmp_path):
    process = fetching(f"{server.url}/silent", tmp_path)
    until = time.monotonic() + 60
    while not server.asked:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert names(tmp_path) == []
    assert get(server, tmp_path, "good").read_bytes() == CONTENT
    assert names(tmp_path) == ["thing"]


def test_mnist_is_downloaded_where_it_is_not_found(server, tmp_path, monkeypatch):
    files = small_mnist()
    monkeypatch.setattr(pictures, "MNIST", {name: hashlib.sha256(c).hexdigest() for name, c in files.items()})
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path))  # without MNIST's files, so it is no reason to stop
    server.serves |= {f"/second/{name}.gz": gzip.compress(content) for name, content in files.items()}
    mirrors = [f"{server.url}/first", f"{server.url}/second/"]
    data = small(None, mirrors=mirrors)
    assert np.array_equal(data.train.x, small(write(tmp_path / "local", files)).train.x)
    assert names(tmp_path / "cache" / "jaxnet" / "mnist") == sorted(FILES)
    asked = len(server.asked)
    small(None, mirrors=mirrors)
    assert len(server.asked) == asked == 8


def test_offline(server, monkeypatch):
    server.shutdown()
    server.server_close()
    known = socket.getaddrinfo

    def no_names(host, *rest, **named):
        if host != "127.0.0.1":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return known(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    mirrors = [server.url, "https://mirror.invalid/", "no address"]
    said = refused("Connection refused)", {"name": "mnist", "mirrors": mirrors})
    assert f"{server.url}/train-images-idx3-ubyte.gz: cannot be reached (" in said
    assert "https://mirror.invalid/train-images-idx3-ubyte.gz: cannot be reached ([Errno -3] Temporary failure" in said
    assert "no address/train-images-idx3-ubyte.gz: broke off (ValueError: unknown url type" in said
    assert said.endswith("pass --data-dir FOLDER or set JAXNET_DATA to it.")


def test_the_mirrors_that_are_asked_unless_others_are_named(monkeypatch):
    asked = []

    def none(name, sha256, mirrors, cache, *, advice):
        asked.extend(mirrors)
        raise DataError("asked")

    monkeypatch.setattr(pictures, "fetch", none)
    refused("asked", "mnist")
    assert len(asked) == len(pictures.MIRRORS) == 3
    assert all(url.endswith("/mnist/train-images-idx3-ubyte.gz") for url in asked)


@pytest.mark.skipif(REAL is None, reason="JAXNET_DATA names no real MNIST")
def test_real_mnist_from_its_folder_and_through_a_download(server):
    assert REAL is not None
    files = pictures.files_under(Path(REAL))
    assert files is not None
    data = load("mnist", data_dir=REAL)
    assert data.summary() == "mnist  50,000 / 10,000 / 10,000  28×28 in 0…1  10 classes"
    assert data.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(data.train.x.mean(dtype=np.float64)) - 0.1307) < 5e-4
    for name, path in zip(FILES, files, strict=True):
        server.serves[f"/{name}.gz"] = path.read_bytes()
    fetched = load({"name": "mnist", "mirrors": [server.url]})
    assert np.array_equal(fetched.test.x, data.test.x)
    assert np.array_equal(fetched.validation.y, data.validation.y)
