"""
scripts.base_complete: at a terminal, in a pipe, and with whole characters only. Run:

    python -m pytest tests/test_base_complete.py
"""

import codecs
import io
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_base import STEP, TAG, make_tiny_base

from nanochat.checkpoint_manager import load_model
from nanochat.engine import Engine
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer
from scripts import base_complete

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 4096  # long enough for a completion to be stopped half-way


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("complete") / "base", CONTEXT)


@pytest.fixture
def tiny(tiny_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tiny_base))
    return tiny_base


def completer(*argv):
    return base_complete.Completer(base_complete.build_parser().parse_args(argv))


class Terminal:
    """base_complete behind a pseudo-terminal; `screen` is all it has shown."""

    def __init__(self, *argv):
        pty = pytest.importorskip("pty")
        self.fd, inside = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-m", "scripts.base_complete", *argv], cwd=ROOT, stdin=inside,
                                        stdout=inside, stderr=subprocess.PIPE, start_new_session=True,
                                        preexec_fn=self._control)
        os.close(inside)
        self.screen, self.decoder = "", codecs.getincrementaldecoder("utf-8")("strict")

    @staticmethod
    def _control():  # make it the controlling terminal, so that \x03 arrives as SIGINT
        import fcntl
        import termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def send(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, condition, timeout_sec=60):
        end = time.monotonic() + timeout_sec
        while not condition(self.screen):
            assert time.monotonic() < end, f"not in time; the screen shows {self.screen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.screen += self.decoder.decode(os.read(self.fd, 65536))


def test_session_at_a_terminal(tiny):
    terminal = Terminal("-m", "4000", "--seed", "3")
    terminal.wait_for(lambda screen: screen.endswith("> "))
    terminal.send("the lantern\nof house\n###\n")
    echo = "\x1b[90mthe lantern\r\nof house\x1b["
    terminal.wait_for(lambda screen: len(screen.partition(echo)[2]) > 20)  # it streams
    terminal.send("\x03")  # Ctrl-C: the completion stops, the session goes on
    terminal.wait_for(lambda screen: screen.endswith("\r\n> "))
    stopped = len(terminal.screen)
    terminal.send("again\n###\n")
    terminal.wait_for(lambda screen: len(screen[stopped:].partition("\x1b[90magain\x1b[")[2]) > 20)
    terminal.send("\x03")
    terminal.wait_for(lambda screen: screen.endswith("\r\n> "))
    terminal.send("\x04")  # Ctrl-D leaves
    assert terminal.process.wait(timeout=60) == 0
    assert b"Traceback" not in terminal.process.stderr.read()
    os.close(terminal.fd)


def expected_completion(prompt, max_tokens):
    """Prompt and greedy completion by the engine alone."""
    model, tokenizer, _ = load_model("base", "cpu", TAG, STEP)
    tokens = tokenizer.encode(prompt, prepend="<|bos|>")
    rows, _ = Engine(model, tokenizer).generate_batch(tokens, max_tokens=max_tokens, temperature=0)
    text = b"".join(map(tokenizer.decode_single_token_bytes, rows[0][1:])).decode("utf-8", errors="replace")
    return base_complete.printable(text)


def test_one_shot_prints_prompt_and_completion_without_colors(tiny, capsys):
    assert base_complete.main(["-p", "the 北風 lantern", "-m", "24", "-t", "0"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out and out.endswith("\n")
    whole = expected_completion("the 北風 lantern", 24)
    assert out[:-1] in (whole, whole.rstrip("\ufffd")) and len(out) > 30  # half a character at the end is not shown
    assert f"step {STEP} of {TAG}" in err and "Autodetected" in err


def test_pipe_completes_each_prompt_and_what_follows_the_last_delimiter(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n###  \n\n###\nthree"))
    monkeypatch.setattr(base_complete.Completer, "stream", lambda self, text: iter([f"<{text!r}>"]))
    assert base_complete.main(["-m", "4"]) == 0
    assert capsys.readouterr().out == "one\ntwo<'one\\ntwo'>\n\n<''>\n\nthree<'three'>\n\n"


def test_another_delimiter(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n###\nEND\n"))
    monkeypatch.setattr(base_complete.Completer, "stream", lambda self, text: iter([f"<{text!r}>"]))
    assert base_complete.main(["-m", "4", "--delimiter", "END"]) == 0
    assert capsys.readouterr().out == "one\n###<'one\\n###'>\n\n"


class FakeEngine:
    end_ids = {-1}

    def __init__(self, said):
        self.said, self.calls = said, []

    def generate(self, tokens, **kwargs):
        self.calls.append((tokens, kwargs))
        return (([token], [1]) for token in self.said)


def test_characters_come_out_whole(tiny):
    complete = completer()
    tokenizer = get_tokenizer()
    said = [tokenizer.enc.encode_single_token(bytes([b])) for b in "a🌊é".encode()]
    complete.engine = FakeEngine([*said, *said[1:3]])  # ends within a character
    assert list(complete.stream("")) == ["a", "", "", "", "🌊", "", "é", "", ""]


def test_control_characters_of_the_model_do_not_reach_the_terminal():
    assert base_complete.printable("a\x1b[31m\tb\r\n\x07\x9bé") == "a\ufffd[31m\tb\ufffd\n\ufffd\ufffdé"


def test_a_token_that_ends_the_row_is_not_shown(tiny):
    complete = completer()
    a = get_tokenizer().encode("a")[0]
    complete.engine = FakeEngine([a, -1, a])
    assert list(complete.stream("x")) == ["a"]


def test_prompt_begins_with_bos_and_keeps_its_tail(tiny, capsys):
    complete = completer("-m", "4000")
    complete.engine = FakeEngine([])
    tokenizer = get_tokenizer()
    bos = tokenizer.get_bos_token_id()
    text = " ".join(map(str, range(1000)))
    ids = tokenizer.encode(text)
    list(complete.stream(text))
    list(complete.stream("short"))
    assert complete.engine.calls[0][0] == [bos, *ids[-95:]]  # 96 = context - max tokens, BOS included
    assert complete.engine.calls[1][0] == [bos, *tokenizer.encode("short")]
    assert f"the prompt has {len(ids)} tokens; the last 95 were kept" in capsys.readouterr().err
    seeds = [kwargs["seed"] for _, kwargs in complete.engine.calls]
    assert seeds == [42, 43] and complete.engine.calls[0][1]["max_tokens"] == 4000


def test_more_tokens_than_the_context_are_cut_with_a_note(tiny, capsys):
    complete = completer("-m", str(CONTEXT))
    assert complete.max_tokens == complete.room == CONTEXT // 2
    assert f"--max-tokens={CONTEXT} leaves no room for a prompt" in capsys.readouterr().err


def test_ctrl_c_in_one_shot_mode_exits_130(tiny, capsys, monkeypatch):
    def stream(self, text):
        yield "half"
        raise KeyboardInterrupt
    monkeypatch.setattr(base_complete.Completer, "stream", stream)
    assert base_complete.main(["-p", "x"]) == 130
    assert capsys.readouterr().out == "xhalf\n"


@pytest.mark.parametrize("argv, message", [
    (["-m", "0"], "--max-tokens=0: expected at least 1"), (["-t", "-1"], "--temperature=-1.0"),
    (["-k", "-2"], "--top-k=-2"), (["-g", "nope", "-p", "x"], "no whole checkpoint in"),
    (["-s", "3", "-p", "x"], "steps in this folder: [7]")])
def test_bad_input_is_one_line_and_status_2(tiny, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        base_complete.main(argv)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("base_complete: error: ") and message in last


def test_no_checkpoint_and_wrong_tokenizer_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        base_complete.main(["-p", "x"])
    assert "python -m scripts.base_train" in capsys.readouterr().err
    base = make_tiny_base(tmp_path / "base", 64)
    shutil.rmtree(base / "tokenizer")
    RustBPETokenizer.train_from_iterator(["other text " * 9], 266).save(base / "tokenizer")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    with pytest.raises(SystemExit) as stop:
        base_complete.main(["-p", "x"])
    assert stop.value.code == 2 and "is not the one that" in capsys.readouterr().err
