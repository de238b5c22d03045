"""
What a server says and sends: requests, the size and hash that it states, and its bytes, with limits on all of them.

A server may trickle, send more than it stated, pack what was asked for plain, or lead elsewhere. Each costs a bounded
time and a bounded space on the disk. download.py decides what to do then. Never imports torch.
"""

import re
import socket
import threading
import time
from urllib.parse import urlsplit

import requests

TIMEOUT_SEC = (10, 60)  # to connect; between two packets
BLOCK_BYTES = 1 << 16  # a dropped connection loses at most these bytes
GRACE_SEC, SLOWEST_BYTES_PER_SEC = 120, 10_000  # an attempt takes at most GRACE_SEC and a second for 10,000 bytes
MOST_BYTES = 1 << 32  # of a shard; those of ClimbMix have 0.1e9
REFUSED = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema,
           requests.TooManyRedirects)  # the same again would change nothing


class Retry(Exception):
    """An attempt failed, and another attempt may succeed."""


class Unreachable(Retry):
    """The host did not answer, so nothing is known of the shard itself."""


class Missing(Exception):
    """The shard cannot be downloaded: all attempts failed, or it was stopped."""


class Refused(Missing):
    """The server refused the shard, or its answer is refused. Nothing that it sent is kept."""


def cause(error: BaseException) -> str:
    """The cause of a failed request in a few words. urllib3 and requests wrap errors; the innermost is the cause."""
    through = "through the proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, socket.gaierror):
        return through + "its name cannot be looked up; is there a network?"
    if isinstance(error, TimeoutError):
        return through + "no answer in time"
    return through + str(getattr(error, "strerror", None) or error).partition("\n")[0]


def _in_time(call):
    """call(), or requests.Timeout after GRACE_SEC. requests has no limit for all of an answer's header: a server that
    sends a byte of it a minute would be waited for all day. The thread that waits for it is left behind."""
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as e:  # raised again below, in the thread that asked
            outcome.append((None, e))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GRACE_SEC)
    if not outcome:
        raise requests.Timeout(f"no whole answer in {GRACE_SEC:g} s")
    response, error = outcome[0]
    if error is not None:
        raise error
    return response


def head(url: str) -> tuple[int | None, str | None]:
    """What `stated` says of the answer to a HEAD; (None, None) where there is none."""
    try:
        with _in_time(lambda: requests.head(url, allow_redirects=True, timeout=TIMEOUT_SEC,
                                            headers={"Accept-Encoding": "identity"})) as response:
            return stated(response) if response.status_code == 200 else (None, None)
    except requests.RequestException:
        return None, None


def get(url: str, headers: dict):
    """The answer to a GET, its body not read yet. Raises Unreachable, or Refused where the answer may not be used."""
    try:
        response = _in_time(lambda: requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SEC))
    except (requests.ConnectionError, requests.Timeout) as e:
        host = urlsplit(e.request.url if e.request else url).netloc  # a redirect leads to another
        raise Unreachable(f"{host} cannot be reached ({cause(e)})") from e
    except REFUSED as e:
        raise Refused(f"{url}: {e}") from e
    if refusal := _refusal(url, response):
        response.close()
        raise Refused(refusal)
    return response


def _refusal(url: str, response) -> str:
    """Why an answer is not used, whatever its body. "" for an answer that may be."""
    if url.lower().startswith("https:") and not all(r.url.lower().startswith("https:")
                                                    for r in (*response.history, response)):
        return f"{url} is redirected to {response.url}, which is not encrypted"
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if response.ok and packed not in ("", "identity"):
        return f"{url} is sent with Content-Encoding {packed[:40]!r}, and was asked for without"
    size, _ = stated(response)
    if size is not None and size > MOST_BYTES:
        return f"{url} is said to have {size:,} bytes, expected at most {MOST_BYTES:,}"
    return ""


def stated(response) -> tuple[int | None, str | None]:
    """(bytes, sha256) of the whole file as the server states them; None for a value that it does not state.

    Hugging Face answers with a redirect whose X-Linked-* headers describe the file; the ETag of a plain
    server is only trusted when it looks like a sha256.
    """
    size = etag = None
    for headers in [r.headers for r in (*response.history, response)]:
        size = size or headers.get("X-Linked-Size")
        for key in ("X-Linked-Etag", "ETag"):
            found = re.fullmatch(r'(?:W/)?"?([0-9a-fA-F]{64})"?', headers.get(key, ""))
            etag = etag or (found and found[1].lower())
    if size is None and response.status_code in (206, 416):
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    if size is None and response.status_code == 200:
        size = response.headers.get("Content-Length")
    return int(size) if re.fullmatch("[0-9]{1,18}", size or "") else None, etag


def blocks(response, most: int):
    """Yield the bytes of an answer as they come, never decoded.

    Raises Refused after more than `most` bytes, and Retry where they come too slowly. Each packet is looked at, so a
    server that sends a byte a second cannot wait until a block is full.
    """
    started, got = time.monotonic(), 0
    while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
        got += len(block)
        if got > most:
            raise Refused(f"{response.url} sends more than the {most:,} bytes that were expected")
        yield block
        if (sec := time.monotonic() - started) > GRACE_SEC + got / SLOWEST_BYTES_PER_SEC:
            raise Retry(f"only {got:,} bytes came in {sec:.0f} s")
