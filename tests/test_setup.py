"""
scripts/setup.py without installing anything: the pins, the build of torch, and the cost of a second call.

python -m pytest tests/test_setup.py -q
"""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

from scripts import setup


def test_pins_are_what_a_toml_parser_reads():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser to compare with")
    project = tomllib.loads((setup.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert setup.read_pins("dependencies") == project["dependencies"]
    assert setup.read_pins("dev") == project["optional-dependencies"]["dev"]


def test_every_dependency_is_pinned_for_every_python():
    markers = {}
    for pin in setup.read_pins("dependencies") + setup.read_pins("dev"):
        name, marker = re.fullmatch(r"([\w.-]+)==[\w.]+(?:; python_version (>=|<) '3\.11')?", pin).groups()
        markers.setdefault(name, []).append(marker)
    assert all(sorted(map(str, found)) in (["None"], ["<", ">="]) for found in markers.values()), markers


@pytest.fixture
def index(monkeypatch):
    """A local stand-in for PyTorch's index; returns the dict of its pages."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(setup, "TORCH_INDEX", f"http://127.0.0.1:{server.server_port}/whl/")
    yield pages
    server.shutdown()
    server.server_close()


def test_index_is_used_only_where_it_has_the_pinned_torch(index, capsys):
    index["/whl/cpu/torch/"] = '<a href="torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl">'
    assert setup.index_url("cpu", "torch==2.13.0") == setup.TORCH_INDEX + "cpu"
    assert setup.index_url("cpu", "torch==2.12.0") is None and "has no torch==2.12.0" in capsys.readouterr().out
    assert (setup.index_url("cu130", "torch==2.13.0") is None
            and "cannot be reached (Not Found)" in capsys.readouterr().out)


def test_unreachable_index_is_given_up_at_once(monkeypatch, capsys):
    monkeypatch.setattr(setup, "TORCH_INDEX", "http://127.0.0.1:9/whl/")  # the discard port: nobody listens
    assert setup.index_url("cpu", "torch==2.13.0") is None
    assert "cannot be reached" in capsys.readouterr().out


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """A .venv that is this Python's in name; the commands that setup would run are collected instead."""
    ran = []
    path = tmp_path / ".venv"
    path.mkdir()
    (path / "pyvenv.cfg").write_text("home = somewhere\nversion = 3.11.7\n")
    monkeypatch.setattr(setup, "VENV", path)
    monkeypatch.setattr(setup, "VENV_PYTHON", type(path)(sys.executable))
    monkeypatch.setattr(setup, "STAMP", path / "stamp.json")
    monkeypatch.setattr(setup, "has_nvidia_card", lambda: False)
    monkeypatch.setattr(setup, "index_url", lambda build, torch_pin: f"https://index/{build}")
    monkeypatch.setattr(setup, "run", lambda args, failed: ran.append(" ".join(map(str, args))))
    return ran


def pip_calls(ran):
    return [line.split(" -m pip ")[1] for line in ran if " -m pip " in line]


def test_second_call_does_nothing_and_dev_includes_base(venv):
    setup.main([])
    assert len(pip_calls(venv)) == 1 and "torch==" in pip_calls(venv)[0] and "pytest==" not in pip_calls(venv)[0]
    venv.clear()
    setup.main([])
    assert venv == []
    setup.main(["--dev"])
    assert "pytest==" in pip_calls(venv)[0] and "torch==" in pip_calls(venv)[0]
    venv.clear()
    setup.main(["--dev"])
    setup.main([])
    assert venv == []


def test_changed_pins_install_again(venv, monkeypatch):
    setup.main(["--dev"])
    monkeypatch.setattr(setup, "read_pins", lambda key: {"dependencies": ["torch==9.9"], "dev": ["pytest==9.9"]}[key])
    venv.clear()
    setup.main([])
    assert " torch==9.9" in pip_calls(venv)[0] and "pytest" not in pip_calls(venv)[0]


def test_another_build_of_torch_replaces_the_installed_one_and_is_remembered(venv):
    setup.main(["--torch-build=cu126"])
    venv.clear()
    setup.main([])
    assert venv == []
    setup.main(["--torch-build=cpu"])
    uninstall, install = pip_calls(venv)
    assert "uninstall --yes torch" in uninstall and "--extra-index-url https://index/cpu" in install


def test_failed_install_leaves_no_stamp_of_success(venv, monkeypatch):
    setup.main([])
    monkeypatch.setattr(setup, "run", lambda args, failed: sys.exit(failed))
    with pytest.raises(SystemExit, match="run this again"):
        setup.main(["--dev"])
    assert "base" not in json.loads(setup.STAMP.read_text())


def make_wheel(folder, name):
    """The smallest package that pip installs."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL",
                       "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_log_of_an_installation_says_what_is_going_on_in_order(tmp_path):
    pytest.importorskip("pip", reason="a Python without pip")
    for name in ("first_package", "second_package"):
        make_wheel(tmp_path, name)
    options = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "site")]
    code = ("import sys; from scripts import setup; setup.VENV_PYTHON = sys.executable\n"
            f"print('begin'); setup.pip('install', *{options!r}, 'first_package', 'second_package'); print('end')")
    result = subprocess.run([sys.executable, "-c", code], cwd=setup.ROOT, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert lines[0] == "begin" and lines[-1] == "end" and "\x1b" not in result.stdout
    assert all(any(name in line for line in lines[1:-1]) for name in ("first_package", "second_package"))


def test_silent_command_is_said_to_run_still_and_a_failed_one_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(setup, "STILL_SEC", 0.05)
    setup.run([sys.executable, "-c", "import time; time.sleep(1)"], "it failed")
    assert re.match(r"  \.\.\. \d+ s so far\n", capsys.readouterr().out)
    for args in ([sys.executable, "-c", "import sys; sys.exit(3)"], ["./no-such-program"]):
        with pytest.raises(SystemExit, match="it failed"):
            setup.run(args, "it failed")


def test_old_environment_is_refused_by_name(venv):
    (setup.VENV / "pyvenv.cfg").write_text("version = 3.9.18\n")
    with pytest.raises(SystemExit, match="older than 3.10. Delete that folder"):
        setup.main([])


def test_old_python_reads_why(tmp_path):
    """The first lines must parse and run on any Python 3: simulated by lying about the version."""
    code = ("import sys, runpy, collections\n"
            "sys.version_info = (3, 8, 18); sys.version = '3.8.18 (main)'\n"
            f"runpy.run_path({str(setup.ROOT / 'scripts' / 'setup.py')!r}, run_name='__main__')")
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "needs Python 3.10 or newer, and this is 3.8.18" in run.stderr


# -----------------------------------------------------------------------------
# What stands in the way gets one line with the next step

def said_by_exit(work, *args):
    with pytest.raises(SystemExit) as caught:
        work(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_python_without_ensurepip_is_told_how_to_get_it(venv, monkeypatch):
    monkeypatch.setattr(setup, "VENV_PYTHON", setup.VENV / "bin" / "python")
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    assert "sudo apt install python3-venv" in said_by_exit(setup.main, [])
    assert venv == []


@pytest.mark.parametrize("build, free, enough", [("cpu", 1.9e9, False), ("cpu", 2.1e9, True), ("cu130", 7e9, False),
                                                 ("rocm6.4", 7e9, False), ("", 2.1e9, True)])
def test_disk_that_cannot_hold_the_packages_stops_before_pip(venv, monkeypatch, build, free, enough):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, int(free)))
    argv = [f"--torch-build={build}"]
    if enough:
        setup.main(argv)
        monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
        setup.main([*argv, "--dev"])  # what is added to an installation is small
    else:
        assert f"has {free / 1e9:.1f} GB of disk left" in said_by_exit(setup.main, argv)
        assert pip_calls(venv) == []


def test_folder_that_is_no_environment_is_named(venv):
    (setup.VENV / "pyvenv.cfg").unlink()
    assert "has no pyvenv.cfg. Delete that folder" in said_by_exit(setup.main, [])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]"])
def test_damaged_stamp_installs_again(venv, content):
    setup.STAMP.write_bytes(content)
    setup.main([])
    assert len(pip_calls(venv)) == 1


@pytest.mark.parametrize("build", ["../x", "a" * 1000, "1_000", "cpu;id", "\x1b[31m"])
def test_a_build_that_cannot_be_is_refused_before_anything_is_made(build, monkeypatch, capsys):
    monkeypatch.setattr(setup, "ensure_venv", lambda: pytest.fail("nothing may be made"))
    with pytest.raises(SystemExit) as stop:
        setup.main([f"--torch-build={build}"])
    assert stop.value.code == 2 and "expected a name like cpu" in capsys.readouterr().err
