"""
python -m pytest tests/test_http_answers.py -q

Downloads from a server that is hostile or broken: a bounded time, a bounded space, and nothing left behind.
test_download.py has the faults that a retry mends.
"""

import gzip
import hashlib
import http.server
import random
import time
from types import SimpleNamespace

import pytest

from nanochat import download, http_answers, shards
from nanochat.manifest import DATA_FOLDER, SOURCES, read_manifest, shard_name
from tests.server_case import serving

NAME = shard_name(0)  # of the validation shard, the only shard of these tests


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the function server.answer(handler), which may write what it likes."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.log.append((self.command, self.path))
        self.close_connection = True
        try:
            self.server.answer(self)
        except OSError:  # the client has had enough
            pass

    do_HEAD = do_GET

    def head(self, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("remote") / NAME, random.Random(0)
    shards.write_shard(path, ["%0600x" % rng.getrandbits(2400) for _ in range(200)])
    return path.read_bytes()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setitem(SOURCES, "climbmix", (DATA_FOLDER, 0, "http://nowhere.invalid"))
    with serving(Handler, monkeypatch, log=[]) as httpd:
        yield httpd


def fetch(server, data_dir, url=None):
    """Names of the missing shards."""
    url = url or f"http://127.0.0.1:{server.server_port}/repo"
    return download.download_shards(data_dir, 0, "climbmix", url, workers=1, sleep_base=0.001, progress=False)


def left(data_dir):
    return sorted(p.name for p in data_dir.iterdir())


def endless(handler, **headers):
    handler.head(Transfer_Encoding="chunked", **headers)
    for _ in range(400):
        handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_a_body_that_never_ends_stops_at_the_stated_size(server, tmp_path, monkeypatch, capsys):
    written, receive = [], download._receive

    def spy(response, part, *args):
        try:
            receive(response, part, *args)
        finally:
            written.append(part.stat().st_size)
    monkeypatch.setattr(download, "_receive", spy)
    server.answer = lambda handler: endless(handler, X_Linked_Size=100)
    assert fetch(server, tmp_path) == [NAME]
    assert written == [0] and left(tmp_path) == [] and len(server.log) == 1
    assert "sends more than the 100 bytes that were expected" in capsys.readouterr().out


def test_a_body_that_never_ends_and_states_no_size_stops_at_the_most_a_shard_may_have(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MOST_BYTES", 200_000)
    server.answer = endless
    assert fetch(server, tmp_path) == [NAME] and left(tmp_path) == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP"])
def test_packed_content_is_refused_unread(server, tmp_path, capsys, encoding):
    bomb = gzip.compress(b"\0" * 3_000_000)

    def answer(handler):
        handler.head(Content_Encoding=encoding, Content_Length=len(bomb))
        handler.wfile.write(bomb)
    server.answer = answer
    assert fetch(server, tmp_path) == [NAME] and left(tmp_path) == [] and len(server.log) == 1
    assert f"is sent with Content-Encoding {encoding.lower()!r}" in capsys.readouterr().out


@pytest.mark.parametrize("chunked", [False, True], ids=("plain", "chunked"))
def test_a_server_that_trickles_is_left_after_its_time(server, tmp_path, monkeypatch, capsys, chunked):
    monkeypatch.setattr(http_answers, "GRACE_SEC", 0.15)

    def answer(handler):
        handler.head(**(dict(Transfer_Encoding="chunked") if chunked else dict(Content_Length=10 ** 6)))
        handler.wfile.write(b"10000\r\n" if chunked else b"")
        for _ in range(600):
            handler.wfile.write(b"x")
            time.sleep(0.01)
    server.answer = answer
    started = time.monotonic()
    assert fetch(server, tmp_path) == [NAME] and time.monotonic() - started < 5
    assert "bytes came in 0 s" in capsys.readouterr().out and len(server.log) == download.ATTEMPTS


@pytest.mark.parametrize("there", [False, True], ids=("GET", "HEAD first"))
def test_a_server_that_trickles_its_header_is_left_after_its_time(server, tmp_path, body, monkeypatch, there):
    monkeypatch.setattr(http_answers, "GRACE_SEC", 0.15)
    (tmp_path / NAME).write_bytes(body if there else b"no shard")

    def answer(handler):
        for _ in range(300):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.01)
    server.answer = answer
    started = time.monotonic()
    if there:  # its footer can be read, and nothing else is known
        assert fetch(server, tmp_path) == []
    else:
        with pytest.raises(ConnectionError, match="cannot be reached .no whole answer in 0.15 s.*same command tries"):
            fetch(server, tmp_path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x", "/again", "http://"])
def test_a_redirect_that_leads_nowhere_is_refused_at_once(server, tmp_path, target):
    (tmp_path / f"{NAME}.part").write_bytes(b"PAR1 of an earlier run")
    server.answer = lambda handler: handler.head(302, Location=target, Content_Length=0)
    assert fetch(server, tmp_path) == [NAME] and left(tmp_path) == []
    assert len(server.log) == (31 if target in ("/again", "http://") else 1)  # both lead in a circle


def test_a_redirect_to_a_link_that_is_not_encrypted_is_refused():
    answers = [SimpleNamespace(url=url, headers={}, status_code=200, ok=True, history=[])
               for url in ("https://a.example/x", "http://b.example/x", "https://c.example/x")]
    answers[2].history = answers[:2]
    assert "redirected to https://c.example/x, which is not encrypted" in \
        http_answers._refusal("https://a.example/x", answers[2])
    answers[2].history = answers[:1]
    assert http_answers._refusal("https://a.example/x", answers[2]) == ""
    assert http_answers._refusal("http://b.example/x", answers[1]) == ""  # a mirror that was asked for so


@pytest.mark.parametrize("how", ["plain", "chunked", "chunk size", "nothing"])
def test_a_body_that_ends_early_is_found_and_tried_again(server, tmp_path, body, how):
    def answer(handler):
        if len(server.log) == 1:
            handler.head(**(dict(Content_Length=len(body)) if how in ("plain", "nothing") else
                            dict(Transfer_Encoding="chunked", X_Linked_Size=len(body))))
            start = b"zz\r\n" if how == "chunk size" else b"10000\r\n" if how == "chunked" else b""
            handler.wfile.write(start + body[:2000] * (how != "nothing"))
        else:
            start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
            handler.head(206 if start else 200, Content_Length=len(body) - start,
                         Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
            handler.wfile.write(body[start:])
    server.answer = answer
    assert fetch(server, tmp_path) == [] and (tmp_path / NAME).read_bytes() == body
    assert left(tmp_path) == ["manifest.json", NAME] and len(server.log) == 2


@pytest.mark.parametrize("size", [10 ** 15, "9" * 18])
def test_an_absurd_size_is_refused_before_a_byte_is_written(server, tmp_path, capsys, size):
    server.answer = lambda handler: endless(handler, X_Linked_Size=size)
    assert fetch(server, tmp_path) == [NAME] and left(tmp_path) == [] and len(server.log) == 1
    assert f"is said to have {int(size):,} bytes, expected at most 4,294,967,296" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["\xb2", "-5", "1e9", "0x10", " ", "1_000"])
def test_a_size_that_is_no_number_counts_as_not_stated(server, tmp_path, body, size):
    def answer(handler):
        handler.head(X_Linked_Size=size, Content_Length=len(body))
        handler.wfile.write(body)
    server.answer = answer
    assert fetch(server, tmp_path) == [] and (tmp_path / NAME).read_bytes() == body


@pytest.mark.parametrize("url", ["127.0.0.1/repo", "file:///etc", "http://", "https://[::1/x", "nonsense"])
def test_an_address_that_is_none_fails_in_one_line_without_retries(server, tmp_path, capsys, url):
    assert fetch(server, tmp_path, url) == [NAME]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith(f"{NAME}: ") and url.rstrip("/") in out


def test_the_wrong_hash_leaves_no_part(server, tmp_path, body):
    def answer(handler):
        handler.head(X_Linked_Size=len(body), X_Linked_Etag=f'"{"0" * 64}"', Content_Length=len(body))
        handler.wfile.write(body)
    server.answer = answer
    assert fetch(server, tmp_path) == [NAME] and left(tmp_path) == []


def honest(handler, body):
    handler.head(X_Linked_Size=len(body), X_Linked_Etag=f'"{hashlib.sha256(body).hexdigest()}"',
                 Content_Length=len(body))
    handler.wfile.write(body if handler.command == "GET" else b"")


@pytest.mark.parametrize("listed", [True, False], ids=("in the manifest", "as upstream leaves it"))
def test_a_damaged_shard_of_the_right_size_is_downloaded_again(server, tmp_path, body, listed):
    server.answer = lambda handler: honest(handler, body)
    assert fetch(server, tmp_path) == []
    before = read_manifest(tmp_path)
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1
    (tmp_path / NAME).write_bytes(damaged)
    if not listed:
        (tmp_path / "manifest.json").unlink()
    server.log.clear()
    assert fetch(server, tmp_path) == [] and (tmp_path / NAME).read_bytes() == body
    assert [method for method, _ in server.log] == (["GET"] if listed else ["HEAD", "GET"])
    assert read_manifest(tmp_path) == before
