"""
Printed commands run as they are pasted, here and on Windows; processes that we start write UTF-8, and we read it.

python -m pytest tests/test_paste.py -q
"""

import ast
import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from nanochat import common, dataset
from nanochat.common import child_environment, paste_command, paste_setting, quote_word
from nanochat.lab import profiles
from nanochat.tokenizer_files import read_tokenizer_json
from tests.test_structure import ROOT, files, name_of

HOSTILE = ["", "a b", "it's", 'say "x"', "$HOME", "`id`", "a;b", "a&b", "a|b>c", "(x)", "*", "a\tb", "~", "#", "!x",
           "%PATH%", "C:\\Users\\My Drive\\", "back\\slash", 'end\\"', "--x=0.5", "a,b",
           "--candidate=x: --flag='a b'", "\u00fc"]


def windows_words(line: str) -> list[str]:
    """The words of a command line by the rules of C programs on Windows, which python.exe is one of.

    2n backslashes before a quote are n of them, and the quote opens or closes; 2n + 1 are n and a quote.
    """
    words, word, quoted, started = [], "", False, False
    for slashes, other in re.findall(r'(\\*)([^\\]?)', line):
        if other == '"':
            word += "\\" * (len(slashes) // 2)
            if len(slashes) % 2:
                word += '"'
            else:
                quoted, started = not quoted, True
        elif other in (" ", "\t") and not quoted:
            word += slashes
            if word or started:
                words.append(word)
            word, started = "", False
        else:
            word += slashes + other
    return words + [word] if word or started else words


@pytest.mark.skipif(os.name != "nt", reason="asks Windows itself")
def test_rules_of_windows_are_those_of_windows():
    split = ctypes.windll.shell32.CommandLineToArgvW
    split.restype = ctypes.POINTER(ctypes.c_wchar_p)
    line, count = "x " + " ".join(quote_word(word, windows=True) for word in HOSTILE), ctypes.c_int()
    found = split(line, ctypes.byref(count))
    assert [found[i] for i in range(count.value)] == windows_words(line)


@pytest.mark.parametrize("windows", [False, True])
def test_every_word_arrives_as_it_is(windows):
    words = ["python", "-m", "scripts.x", *HOSTILE]
    line = paste_command(words, windows=windows)
    assert (windows_words if windows else shlex.split)(line)[1:] == words[1:]
    assert paste_command(shlex.join(words), windows=windows) == line  # a stored command is the same


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_shell_reads_what_is_printed(tmp_path):
    (tmp_path / "python").write_text('#!/bin/bash\nprintf "%s\\0" "$X" "$@"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    line = paste_command(["python", *HOSTILE], {"X": "a 'b' $c"}, windows=False).replace(common.VENV_PYTHON, "python")
    for text in (line, f"{paste_setting('X', chr(39) + ' b', windows=False)}\n{line.partition(' python ')[2]}"):
        text = text if text is line else text.replace("\n", "\npython ")
        env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        said = subprocess.run(["bash", "-c", text], capture_output=True, env=env).stdout.decode().split("\0")
        assert said[1:-1] == HOSTILE and said[0] == ("a 'b' $c" if text is line else "' b")


def test_powershell_splits_no_flag_in_two():
    """PowerShell passes --x=0.5 to a program as two words, and --eval=bpb,sample too, unless they are quoted."""
    for word in ("--x=0.5", "--eval=bpb,sample"):
        assert quote_word(word, windows=True) == f'"{word}"'
    assert quote_word("--depth=4", windows=True) == "--depth=4"


def test_variables_are_set_in_either_shell_of_windows():
    base = r"C:\Users\me\My Drive\it's"
    cmd, powershell = paste_setting("NANOCHAT_BASE_DIR", base, windows=True).splitlines()[1::2]
    assert cmd == f'set "NANOCHAT_BASE_DIR={base}"'  # cmd.exe takes what follows = up to the last quote
    assert powershell == "$env:NANOCHAT_BASE_DIR = 'C:\\Users\\me\\My Drive\\it''s'"
    assert paste_command("python -m scripts.x", {"A": base}, windows=True) == f'set "A={base}" && ' \
        + paste_command("python -m scripts.x", windows=False)


def test_base_dir_with_a_space_is_quoted_in_messages(tmp_path, monkeypatch, capsys):
    base = tmp_path / "My Drive"
    (base / "tokenizer").mkdir(parents=True)
    pickle = base / "tokenizer" / "tokenizer.pkl"
    pickle.write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        read_tokenizer_json(base / "tokenizer")
    assert str(pickle) in shlex.split(str(caught.value).partition("import it once: ")[2])
    with pytest.raises(ValueError) as caught:
        profiles._refuse_foreign_tokenizer(base)
    words = shlex.split(re.search(r"take it over once with (.*), or use", str(caught.value))[1])
    assert f"NANOCHAT_BASE_DIR={base}" in words and str(pickle) in words
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "word " * 40 for i in range(300)), encoding="utf-8")
    assert dataset.main(["--from", str(tmp_path / "a.txt"), "--name", "mine"]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1]) == [
        "export", f"NANOCHAT_BASE_DIR={base / 'lab' / 'mine'}"]


# -----------------------------------------------------------------------------
# Processes and files

def test_child_writes_utf8_whatever_this_process_writes(monkeypatch):
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setenv("GONE", "1")
    code = "import os, sys; print('\\u2588', os.environ['NEW'], 'GONE' in os.environ); open(os.devnull).encoding"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=child_environment(NEW=3, GONE=None))
    assert done.stdout.decode("utf-8").split() == ["\u2588", "3", "False"], done.stderr


CODE = files("nanochat/**/*.py", "scripts/*.py")
STARTS = {"run", "Popen", "call", "check_output", "check_call"}
NOT_PYTHON = {"git", "nvidia-smi", "/usr/sbin/sysctl"}


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def name_of_call(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def words_of_call(call):
    return {keyword.arg: keyword.value for keyword in call.keywords}


def is_binary(call):
    """True for open(path, "rb"), path.open("ab"), and open(path, "ab" if more else "wb")."""
    modes = [node.value for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Constant)]
    return any(re.fullmatch(r"[rwax+]*b[rwax+]*", str(mode)) for mode in modes)


def opens_text(call):
    if isinstance(call.func, ast.Attribute) and call.func.attr == "open":  # path.open(), and not opener.open(url)
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        return not call.args or any(re.fullmatch(r"[rwax+]+", str(mode)) for mode in modes)
    return name_of_call(call) in ("open", "read_text", "write_text", "fdopen") and not is_binary(call)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_text_files_are_opened_with_their_encoding(path):
    """Elsewhere the encoding of a file is that of the user's system: cp1252 on Windows."""
    for call in calls(path):
        assert not opens_text(call) or "encoding" in words_of_call(call), f"{name_of(path)}:{call.lineno}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_output_of_processes_is_read_as_utf8_and_never_ends_a_command(path):
    for call in calls(path):
        words = words_of_call(call)
        if name_of_call(call) in STARTS and getattr(getattr(call.func, "value", None), "id", "") == "subprocess":
            assert not {"text", "universal_newlines"} & words.keys(), f"{name_of(path)}:{call.lineno}: no encoding"
            assert "encoding" not in words or "errors" in words, f"{name_of(path)}:{call.lineno}: no errors="


@pytest.mark.parametrize("path", [path for path in CODE if path.name not in ("setup.py", "smoke.py")], ids=name_of)
def test_python_processes_get_an_environment_that_says_utf8(path):
    """scripts.setup and scripts.smoke start on a bare Python, and their children write to the user's own terminal."""
    source = path.read_text(encoding="utf-8")
    for call in calls(path):
        if name_of_call(call) in STARTS and getattr(getattr(call.func, "value", None), "id", "") == "subprocess":
            first = next((node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)), None)
            if first not in NOT_PYTHON:
                says = re.search(r"child_environment|trainer_environment|runner\.environment", source)
                assert "env" in words_of_call(call) and says, f"{name_of(path)}:{call.lineno}: env=child_environment()"


def test_printed_commands_are_quoted_by_one_function():
    """A path or a value in a printed `python -m` is quoted: f-strings with {…} in such a command are not."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                if re.search(r"python -m [\w.]+ [^(;,`]*\{\}", text):
                    found.append(f"{name_of(path)}:{node.lineno}: {text}")
    assert found == [], "build it with nanochat.common.paste_command"


def test_root_is_where_commands_are_pasted():
    assert common.REPO_ROOT == ROOT
