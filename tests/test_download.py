"""
python -m pytest tests/test_download.py

Downloads from a server on this machine that drops connections, truncates, lies and fails.
"""

import errno
import hashlib
import http.server
import random
import re

import pytest

from nanochat import dataset, download, http_answers, shards
from nanochat.manifest import DATA_FOLDER, SOURCES, read_manifest, shard_name, split_paths
from tests.server_case import serving

LAST = 3  # index of the validation shard in these tests
NAMES = [shard_name(i) for i in range(LAST + 1)]
# What the server does with one GET of a shard. A shard's list is used up from the front; then it answers "ok".
BEHAVIOURS = ("ok", "drop", "500", "429", "longer", "shorter", "ignore range", "foreign range", "garbage", "404")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection: closing it early is how a connection drops

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        server, name = self.server, self.path.rpartition("/")[2]
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        server.log.append((self.command, name, start))
        todo = server.todo.get(name, [])
        how = "ok" if head or not todo else todo.pop(0)
        body = server.content.get(name)
        if how == "404" or body is None:
            return self.send_error(404)
        if how in ("500", "429"):
            return self.send_error(int(how))
        if "redirect" in server.options and not self.path.startswith("/cdn/"):
            self.send_response(302)  # as Hugging Face does: the description comes with the redirect
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Location", f"/cdn/{name}")
            self.end_headers()
            if todo is not None and not head:
                todo.insert(0, how)
            return None
        self.send_body(how, body, start, head)

    def send_body(self, how, body, start, head):
        if how == "ignore range":
            start = 0
        if start >= len(body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        shift = 5 if how == "foreign range" and start else 0
        data = body[start + shift:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        if "etag" in self.server.options:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if how == "garbage":
            data = random.Random(0).randbytes(len(data))
        if how == "shorter":  # consistent, and wrong
            data = data[:len(data) // 2]
        if "no length" not in self.server.options:
            self.send_header("Content-Length", str(len(data) + (1000 if how == "longer" else 0)))
        self.end_headers()
        if not head:
            self.wfile.write(data[:len(data) // 2] if how == "drop" else data)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """{name: bytes} of four shards of about 300 KB, which is several blocks of the downloader."""
    folder = tmp_path_factory.mktemp("remote")
    for i, name in enumerate(NAMES):
        rng = random.Random(i)
        shards.write_shard(folder / name, ["%0600x" % rng.getrandbits(2400) for _ in range(1000)])
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture
def server(content, monkeypatch):
    monkeypatch.setitem(SOURCES, "climbmix", (DATA_FOLDER, LAST, "http://nowhere.invalid"))
    with serving(Handler, monkeypatch, content=dict(content), todo={}, log=[], options=set()) as httpd:
        yield httpd


def get(server, data_dir, num_files=2, **options):
    url = f"http://127.0.0.1:{server.server_port}/repo"
    return download.download_shards(data_dir, num_files, "climbmix", url, sleep_base=0.001, progress=False, **options)


def whole(data_dir, content, names):
    return all((data_dir / name).read_bytes() == content[name] for name in names) and not list(data_dir.glob("*.part"))


def test_shards_and_pinned_validation_shard_arrive(server, tmp_path, content):
    data_dir = tmp_path / "data"
    assert get(server, data_dir) == []
    names = [NAMES[0], NAMES[1], NAMES[3]]
    assert sorted(p.name for p in data_dir.iterdir()) == ["manifest.json", *names]
    assert whole(data_dir, content, names)
    manifest = read_manifest(data_dir)
    assert (manifest["validation_shard"], manifest["packing_share"], manifest["max_doc_chars"]) == (NAMES[3], None, 0)
    columns = ("name", "bytes", "sha256", "documents", "row_groups", "chars")
    assert [tuple(s[column] for column in columns) for s in manifest["shards"]] == \
        [(n, len(content[n]), hashlib.sha256(content[n]).hexdigest(), 1000, 4, None) for n in names]
    assert [p.name for p in split_paths("train", data_dir)] == names[:2]


@pytest.mark.parametrize("how", [b for b in BEHAVIOURS if b not in ("ok", "404")])
@pytest.mark.parametrize("options", [set(), {"etag"}, {"redirect"}], ids=("plain", "etag", "redirect"))
def test_one_fault_is_survived(server, tmp_path, content, how, options):
    server.options = options
    server.todo = {NAMES[0]: [how], NAMES[3]: ["drop", how]}
    assert get(server, tmp_path / "data") == []
    assert whole(tmp_path / "data", content, [NAMES[0], NAMES[1], NAMES[3]])


def test_dropped_connection_is_continued_where_it_ended(server, tmp_path, content):
    server.todo = {NAMES[0]: ["drop", "500", "drop", "ok"]}
    assert get(server, tmp_path / "data", num_files=1) == []
    starts = [start for _, name, start in server.log if name == NAMES[0]]
    assert starts[0] == 0 and 0 < starts[1] == starts[2] < starts[3]
    # A drop loses a block or two, not the file.
    assert starts[1] > len(content[NAMES[0]]) / 2 - 2 * http_answers.BLOCK_BYTES
    assert whole(tmp_path / "data", content, [NAMES[0], NAMES[3]])


def test_file_that_ends_early_by_the_size_of_the_redirect_is_continued(server, tmp_path, content):
    server.options, server.todo = {"redirect"}, {NAMES[0]: ["shorter"]}
    assert get(server, tmp_path / "data", num_files=1) == []
    assert {start for _, name, start in server.log if name == NAMES[0]} == {0, len(content[NAMES[0]]) // 2}


def test_every_fault_in_turn_uses_up_five_attempts(server, tmp_path, content):
    server.todo = {NAMES[1]: ["drop", "500", "longer", "ignore range", "ok"],
                   NAMES[0]: ["garbage", "drop", "shorter", "foreign range"]}
    assert get(server, tmp_path / "data") == []
    assert whole(tmp_path / "data", content, [NAMES[0], NAMES[1], NAMES[3]])


@pytest.mark.parametrize("how, gets", [("500", 5), ("404", 1), ("garbage", 5)])
def test_shard_that_cannot_be_had_is_listed_and_the_others_come(server, tmp_path, content, capsys, how, gets):
    server.todo = {NAMES[1]: [how] * 9}
    assert get(server, tmp_path / "data", num_files=3) == [NAMES[1]]
    assert len([1 for command, name, _ in server.log if (command, name) == ("GET", NAMES[1])]) == gets
    assert whole(tmp_path / "data", content, [NAMES[0], NAMES[2], NAMES[3]])
    assert not (tmp_path / "data" / NAMES[1]).exists() and NAMES[1] in capsys.readouterr().out
    assert [s["name"] for s in read_manifest(tmp_path / "data")["shards"]] == [NAMES[0], NAMES[2], NAMES[3]]
    server.todo.clear()
    assert get(server, tmp_path / "data", num_files=3) == []
    assert [p.name for p in split_paths("train", tmp_path / "data")] == NAMES[:3]


def test_missing_validation_shard_stays_pinned(server, tmp_path):
    server.todo = {NAMES[3]: ["404"]}
    assert get(server, tmp_path / "data") == [NAMES[3]]
    with pytest.raises(FileNotFoundError, match=f"validation shard .*{NAMES[3]} is missing"):
        split_paths("train", tmp_path / "data")


def test_part_of_an_earlier_run_is_continued(server, tmp_path, content):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / f"{NAMES[0]}.part").write_bytes(content[NAMES[0]][:100_000])
    (data_dir / f"{NAMES[1]}.part").write_bytes(content[NAMES[1]])  # whole, killed before the rename
    (data_dir / f"{NAMES[3]}.part").write_bytes(b"x" * (len(content[NAMES[3]]) + 10))  # of something else
    assert get(server, data_dir) == []
    assert whole(data_dir, content, [NAMES[0], NAMES[1], NAMES[3]])
    assert sorted(server.log)[:2] == [("GET", NAMES[0], 100_000), ("GET", NAMES[1], len(content[NAMES[1]]))]


def test_part_of_another_file_is_found_by_its_hash(server, tmp_path, content):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    server.options = {"redirect"}
    (data_dir / f"{NAMES[0]}.part").write_bytes(content[NAMES[0]][:50_000] + b"!" + content[NAMES[0]][50_001:100_000])
    assert get(server, data_dir, num_files=1) == []
    assert whole(data_dir, content, [NAMES[0], NAMES[3]])


def test_complete_shards_need_no_server(server, tmp_path, content):
    assert get(server, tmp_path / "data") == []
    before = read_manifest(tmp_path / "data")
    server.log.clear()
    assert get(server, tmp_path / "data") == [] and server.log == []
    assert read_manifest(tmp_path / "data") == before


def test_shard_of_the_wrong_size_is_downloaded_again(server, tmp_path, content):
    data_dir = tmp_path / "data"
    get(server, data_dir)
    (data_dir / NAMES[0]).write_bytes(content[NAMES[0]][:-1])
    server.log.clear()
    assert get(server, data_dir) == []
    assert whole(data_dir, content, [NAMES[0], NAMES[1], NAMES[3]]) and server.log == [("GET", NAMES[0], 0)]


def test_shards_that_upstream_downloaded_are_kept_and_listed(server, tmp_path, content):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / NAMES[0]).write_bytes(content[NAMES[0]])
    (data_dir / NAMES[1]).write_bytes(content[NAMES[1]][:1000])  # as an interrupted copy leaves it
    (data_dir / NAMES[2]).write_bytes(content[NAMES[2]])  # more than is asked for
    assert get(server, data_dir) == []
    assert whole(data_dir, content, NAMES)
    gets, heads = [("GET", NAMES[1]), ("GET", NAMES[3])], [("HEAD", name) for name in NAMES[:3]]
    assert sorted(entry[:2] for entry in server.log) == gets + heads
    assert [s["name"] for s in read_manifest(data_dir)["shards"]] == NAMES


def test_server_without_content_length_works(server, tmp_path, content):
    server.options = {"no length"}
    server.todo = {NAMES[0]: ["drop"]}  # seen only by the missing footer
    assert get(server, tmp_path / "data") == []
    assert whole(tmp_path / "data", content, [NAMES[0], NAMES[1], NAMES[3]])


def test_shards_that_are_there_are_listed_where_no_host_answers(tmp_path, monkeypatch, content):
    monkeypatch.setitem(SOURCES, "climbmix", (DATA_FOLDER, LAST, ""))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAMES[0]).write_bytes(content[NAMES[0]])
    with pytest.raises(ConnectionError, match="so 1 shards are missing"):
        download.download_shards(tmp_path / "data", 1, "climbmix", "http://127.0.0.1:9", sleep_base=0.001,
                                 progress=False)
    assert [row["name"] for row in read_manifest(tmp_path / "data")["shards"]] == [NAMES[0]]


def test_full_disk_stops_all_and_names_the_path(server, tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on file size is our full disk; Windows has none")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard_0000\d\.parquet\.part: .*free some space") as e:
            get(server, tmp_path / "data", num_files=3, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.errno == errno.EFBIG and len(server.log) == 1  # no retry, and no other shard is begun
    assert list((tmp_path / "data").glob("*.parquet")) == []


def test_another_dataset_is_not_mixed_in(server, tmp_path):
    get(server, tmp_path / "data")
    with pytest.raises(ValueError, match="holds a dataset made from .*climbmix.*fineweb-edu would be mixed into it"):
        download.download_shards(tmp_path / "data", 1, "fineweb-edu", "http://127.0.0.1:9")


# -----------------------------------------------------------------------------
# Command line

def run_cli(server, *argv):
    return dataset.main(["-n", "2", f"--base-url=http://127.0.0.1:{server.server_port}/repo/", *argv])


def test_command_line_downloads_and_exits_0(server, tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert run_cli(server, "-w", "2") == 0
    assert whole(tmp_path / DATA_FOLDER, content, [NAMES[0], NAMES[1], NAMES[3]])
    assert f"validation shard {NAMES[3]}" in capsys.readouterr().out


def test_command_line_lists_what_is_missing_and_exits_1(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    server.todo = {NAMES[0]: ["404"]}
    assert run_cli(server) == 1
    assert f"1 shards are missing: {NAMES[0]}" in capsys.readouterr().err


def test_fineweb_edu_goes_to_the_older_folder(server, tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder, last, url = SOURCES["fineweb-edu"]
    assert (folder, last) == ("base_data", 1822)
    assert url == "https://huggingface.co/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main"
    monkeypatch.setitem(SOURCES, "fineweb-edu", (folder, LAST, url))
    (tmp_path / DATA_FOLDER).mkdir()
    assert run_cli(server, "--source=fineweb-edu") == 0
    assert whole(tmp_path / "base_data", content, [NAMES[0], NAMES[1], NAMES[3]])
    assert "is what training reads" in capsys.readouterr().out
