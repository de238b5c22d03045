"""
Download shards: several at once, resumed, checked, retried. A file has a shard's name only when the shard is whole.

Bytes go to <shard>.part, which a later attempt or run continues with an HTTP Range request. A part becomes a shard
when its size and its sha256 are those that the server states, and its Parquet footer can be read. Hugging Face states
the sha256 as X-Linked-Etag, and a mirror may state it as ETag. Upstream checks nothing, and exits 0 when shards are
missing. Never imports torch.
"""

import concurrent.futures
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import requests
import urllib3
from tqdm import tqdm

from nanochat.common import fsync_dir, print0, sha256_file, to_paste
from nanochat.http_answers import MOST_BYTES, Missing, Refused, Retry, Unreachable, blocks, cause, get, head, stated
from nanochat.manifest import (
    SOURCES,
    changed_shards,
    dataset_lock,
    read_manifest,
    shard_name,
    write_manifest,
    writing,
)

ATTEMPTS = 5
SPLIT_RULE = "the last shard of the dataset is validation"


class Progress:
    """One progress bar of bytes over all shards, and which hosts answered or could not be reached.

    The bar's total is a guess until the size of every shard is known.
    """

    def __init__(self, shards: int, enabled: bool):
        self.bar = tqdm(unit="B", unit_scale=True, desc=f"{shards} shards", disable=None if enabled else True)
        self.shards, self.sizes, self.lock = shards, {}, threading.Lock()
        self.answered, self.unreachable = False, set()  # whether any host did; messages on the others

    def size(self, name: str, total: int | None, have: int):
        with self.lock:
            if total and name not in self.sizes:
                self.sizes[name] = total
                self.bar.total = sum(self.sizes.values()) * self.shards // len(self.sizes)
                self.bar.update(have)

    def add(self, count: int):
        with self.lock:
            self.bar.update(count)

    def tell_once(self, why: Unreachable):
        """Print the message of an unreachable host once: every shard of that host would print the same."""
        with self.lock:
            if str(why) not in self.unreachable:
                self.unreachable.add(str(why))
                print0(f"{why}; trying {ATTEMPTS - 1} more times")


# -----------------------------------------------------------------------------
# One shard

def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as f:
            start = f.read(4)
            pq.ParquetFile(f)  # reads the end of the file
            return start == b"PAR1"
    except (pa.ArrowException, OSError):
        return False


def _receive(response, part: Path, append: bool, progress: Progress, stop: threading.Event, most: int = MOST_BYTES):
    """Write the body to `part`. A body of more than `most` bytes raises Refused."""
    with writing(part):
        f = open(part, "ab" if append else "wb")
    with f:
        for block in blocks(response, most):
            if stop.is_set():
                raise Missing("stopped")
            with writing(part):
                f.write(block)
            progress.add(len(block))
        with writing(part):
            f.flush()
            os.fsync(f.fileno())


def _attempt(url: str, part: Path, progress: Progress, stop: threading.Event):
    """Bring `part` to its full, checked content, or raise Retry or Missing. Bytes that a retry can use are kept."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with get(url, headers) as response:
        progress.answered, status = True, response.status_code
        size, sha256 = stated(response)
        resumed = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if status in (200, 206) and (resumed or status == 200):
            progress.size(part.name, size, have if resumed else 0)
            most = (MOST_BYTES if size is None else size) - (have if resumed else 0)
            _receive(response, part, resumed, progress, stop, most)
        elif status in (206, 416):
            if size != have:  # a part of something else; equal: it was whole already, only the check is left
                part.unlink(missing_ok=True)
                raise Retry(f"the server cannot continue at byte {have}: starting over")
        elif status in (408, 429) or status >= 500:
            raise Retry(f"HTTP {status} {response.reason}")
        else:
            raise Refused(f"HTTP {status} {response.reason} for {url}")
    got = part.stat().st_size
    if size is not None and got < size:
        raise Retry(f"the connection ended at byte {got} of {size}")
    if (size is not None and got > size) or (sha256 and sha256_file(part) != sha256) or not _is_parquet(part):
        part.unlink()
        raise Retry(f"{got} bytes came, but not the right ones (size, hash or Parquet footer): starting over")


def fetch(url: str, path: Path, progress: Progress, stop: threading.Event, sleep_base: float = 1.0):
    """Download url to path, atomically. After attempt k it waits sleep_base * 2^k seconds. Raises Missing."""
    part = path.with_name(path.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, part, progress, stop)
            break
        except Refused:
            part.unlink(missing_ok=True)
            raise
        except (Retry, requests.RequestException, urllib3.exceptions.HTTPError) as e:
            why, wait = str(e) if isinstance(e, Retry) else cause(e), sleep_base * 2 ** attempt
            if attempt == ATTEMPTS:
                if isinstance(e, Unreachable) and not progress.answered:  # the other shards are there too
                    stop.set()
                raise Missing(f"{ATTEMPTS} attempts failed, the last with: {why}") from e
            if isinstance(e, Unreachable):
                progress.tell_once(e)
            else:
                print0(f"{path.name}: attempt {attempt} of {ATTEMPTS} failed ({why}); again in {wait:g} s")
            if stop.wait(wait):
                raise Missing("stopped") from e
    with writing(path):
        os.replace(part, path)
        fsync_dir(path.parent)


def _is_complete(url: str, path: Path, known: dict | None) -> bool:
    """Whether the file at `path` is the whole shard.

    Its content is compared with its row of the manifest, else with what the server states. Where neither states
    anything, its footer must be readable.
    """
    if not path.exists():
        return False
    if known:
        return path.stat().st_size == known["bytes"] and not changed_shards(path.parent, [known])
    size, sha256 = head(url)
    if size is not None and path.stat().st_size != size:
        return False
    return sha256_file(path) == sha256 if sha256 else size is not None or _is_parquet(path)


def _describe(path: Path) -> dict:
    """Row of the manifest. Characters are not counted: that would decompress every shard."""
    with open(path, "rb") as raw, pq.ParquetFile(raw) as f:
        groups, documents = f.num_row_groups, f.metadata.num_rows
    return dict(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), row_groups=groups,
                documents=documents, chars=None)


# -----------------------------------------------------------------------------
# All shards

def _run_all(urls: dict, data_dir: Path, rows: dict, workers: int, sleep_base: float,
             enabled: bool) -> tuple[list[str], str]:
    """Bring every shard in `urls` and its row of the manifest.

    Returns (names of the missing shards, the reason where no host answered).
    """
    progress, stop, missing = Progress(len(urls), enabled), threading.Event(), []

    def bring(name):
        if stop.is_set():
            raise Missing("stopped")
        path = data_dir / name
        try:
            if not _is_complete(urls[name], path, rows.get(name)):
                rows.pop(name, None)
                fetch(urls[name], path, progress, stop, sleep_base)
            if name not in rows:
                rows[name] = _describe(path)
        except OSError:  # a full disk stops the other threads too
            stop.set()
            raise

    pool = concurrent.futures.ThreadPoolExecutor(max_workers=workers)
    futures = {pool.submit(bring, name): name for name in urls}
    try:
        for future in concurrent.futures.as_completed(futures):
            try:
                future.result()
            except Missing as e:
                missing.append(futures[future])
                if progress.answered or not progress.unreachable:
                    print0(f"{futures[future]}: {e}")
    finally:  # after Ctrl-C, threads that still run stop at their next block
        stop.set()
        pool.shutdown(cancel_futures=True)
        progress.bar.close()
    return sorted(missing), "" if progress.answered else "; ".join(sorted(progress.unreachable))


# Seven parameters: the shards, their folder and their server, threads, and two for tests (sleep_base, progress).
def download_shards(data_dir, num_files: int, source: str, base_url: str, workers: int = 4, sleep_base: float = 1.0,
                    progress: bool = True) -> list[str]:
    """Make data_dir hold the first num_files training shards (-1 = all) and the validation shard of `source`.

    Returns the names of the missing shards. Raises ConnectionError where no host answered. Whole shards are left alone.
    Further shards in the folder (upstream's downloads, say) are checked and listed too. The manifest lists all whole
    shards, also when others are missing, so that no shard is downloaded twice.
    """
    data_dir, last = Path(data_dir), SOURCES[source][1]
    if num_files < -1 or workers < 1:
        raise ValueError(f"--num-files={num_files} --num-workers={workers}: "
                         "expected -1 or more files, 1 or more workers")
    count = last if num_files == -1 else min(num_files, last)
    names = {shard_name(i) for i in (*range(count), last)}
    with dataset_lock(data_dir):
        manifest = read_manifest(data_dir)
        if manifest and (manifest["source"].get("kind"), manifest["source"].get("name")) != ("download", source):
            raise ValueError(f"{data_dir} holds a dataset made from {manifest['source']}, "
                             f"and {source} would be mixed into it; set NANOCHAT_BASE_DIR to another folder")
        with writing(data_dir):
            data_dir.mkdir(exist_ok=True)
            names |= {p.name for p in data_dir.glob("*.parquet")} & {shard_name(i) for i in range(last)}
        urls = {name: f"{base_url.rstrip('/')}/{name}" for name in sorted(names)}
        rows = {s["name"]: s for s in manifest["shards"]} if manifest else {}
        missing, silence = _run_all(urls, data_dir, rows, workers, sleep_base, progress)
        shards = [rows[name] for name in sorted(rows) if (data_dir / name).is_file()]
        if shards:
            with writing(data_dir):
                write_manifest(data_dir, shards=shards, validation_shard=shard_name(last), split_rule=SPLIT_RULE,
                               max_doc_chars=0, source=dict(kind="download", name=source, url=base_url),
                               packing_share=None)
        if missing and silence:
            again = f"{silence}, so {len(missing)} shards are missing; the same command tries again. "
            raise ConnectionError(again + to_paste(
                "Offline: python -m nanochat.dataset --builtin, or --from PATH --name NAME for text of your own"))
        return missing
