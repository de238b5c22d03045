"""
What a file that is not UTF-8 may be, and what its owner may do. The advice never makes a file worse.

Example: one line of a file in UTF-8 holds a byte 0xE9. `iconv -f WINDOWS-1252` would mend that byte, and spoil each é
of the other lines. So a command to convert the whole file is printed only where no other character would be spoiled.
Bad bytes are never replaced in silence, because the replacements would be trained on. Never imports torch.
"""

import codecs
import gzip
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path

from nanochat.text_walk import shown

BLOCK_BYTES = 1_000_000
_BAD = re.compile("[\udc80-\udcff]")  # what the error handler surrogateescape makes of bytes that are not UTF-8
_GOOD = re.compile("[\u0080-\ud7ff\ue000-\U0010ffff]")
_HALF = re.compile("\udced[\udca0-\udcbf][\udc80-\udcbf]")  # a surrogate, as CESU-8 and some databases write it
_FOREIGN = re.compile("[\udc81\udc8d\udc8f\udc90\udc9d]|[\udc80-\udcff]{4}")  # not in WINDOWS-1252; not in its words
_CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f]")
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}
NO_TEXT = "It holds control characters, so it may be no text at all (line {}): leave it out"


@dataclass
class Survey:
    """What a look through a whole file found. offset, line, value: of the first byte that is not UTF-8."""
    offset: int | None = None
    line: int = 1
    value: int = 0
    start: bytes = b""
    chars: int = 0  # without blanks
    bad: int = 0
    good: int = 0  # characters of UTF-8 beyond ASCII
    halves: int = 0
    foreign: bool = False  # not from a Western European text
    control: bool = False
    tail: bytes = b""  # the bad bytes at the end of the file

    def add(self, text: str, done: int):
        """text: the next part, decoded with surrogateescape; done: bytes before it."""
        if self.offset is None and (found := _BAD.search(text)):
            before = text[:found.start()]
            self.offset, self.value = done + len(before.encode()), ord(found[0]) - 0xdc00
            self.line += before.count("\n")
        elif self.offset is None:
            self.line += text.count("\n")
        self.chars += len(text) - sum(map(text.count, " \n\t\r"))
        self.bad += len(_BAD.findall(text))
        self.good += len(_GOOD.findall(text))
        self.halves += len(_HALF.findall(text))
        self.foreign |= bool(_FOREIGN.search(text))
        self.control |= bool(_CONTROL.search(text))
        if text:
            self.tail = re.search("[\udc80-\udcff]*\\Z", text)[0][-4:].encode("utf-8", "surrogateescape")


def survey(path, suffix: str) -> Survey:
    """Read the text of a file (a .gz is unpacked) block by block."""
    decoder, found, done = codecs.getincrementaldecoder("utf-8")("surrogateescape"), Survey(), 0
    with (gzip.open if suffix.endswith(".gz") else open)(path, "rb") as f:
        while True:
            block = f.read(BLOCK_BYTES)
            found.start = found.start or block[:4]
            text = decoder.decode(block, final=not block)
            found.add(text, done)
            done += len(text.encode("utf-8", "surrogateescape"))
            if not block:
                return found


def _is_cut(s: Survey) -> bool:
    """Whether the only bad bytes are the first bytes of a character, at the end of the file."""
    if s.bad != len(s.tail):
        return False
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(s.tail) == ""
    except UnicodeDecodeError:
        return False


def _convert(path: Path, suffix: str, encoding: str) -> str:
    """The command that converts a file. Each step is && the last, so a step that fails leaves the file as it is."""
    convert, name = f"iconv -f {encoding} -t UTF-8", shlex.quote(str(path))
    if shown(path) != str(path):  # nobody can paste such a name
        return f"{convert} FILE > NEW"
    if suffix.endswith(".gz"):
        return (f"gzip -dc {name} > {name}.raw && {convert} {name}.raw > {name}.utf8 && gzip {name}.utf8 && "
                f"mv {name}.utf8.gz {name} && rm {name}.raw")
    return f"{convert} {name} > {name}.utf8 && mv {name}.utf8 {name}"


def _advice(path: Path, suffix: str, s: Survey) -> str:
    if mark := next((MARKS[mark] for mark in MARKS if s.offset == 0 and s.start.startswith(mark)), ""):
        return f"Convert it (it begins as {mark} does): {_convert(path, suffix, mark)}; or leave it out"
    if s.control and s.foreign and s.bad > s.good:  # in random bytes a few look like a half of a pair, or like UTF-8
        return NO_TEXT.format(s.line)
    if s.halves:
        halves = "1 half of a surrogate pair" if s.halves == 1 else f"{s.halves} halves of surrogate pairs"
        return (f"It holds {halves} as bytes (CESU-8, as of an emoji that was cut), first in line {s.line}: mend those "
                "lines, or leave it out")
    if _is_cut(s):
        return f"It ends inside a character, in line {s.line}, so it may have been cut: get it again, or leave it out"
    if s.good and not (s.foreign and s.bad > s.good):  # in other encodings a few bytes look like UTF-8 by chance
        return (f"Its other {s.good:,} characters beyond ASCII are UTF-8, and converting the file would spoil them: "
                f"mend line {s.line} ({s.bad:,} bad bytes in all), or leave it out")
    if s.control:
        return NO_TEXT.format(s.line)
    if s.foreign or 4 * s.bad > s.chars:
        return (f"Its encoding is not one of Western Europe (line {s.line}): convert it with iconv from the encoding "
                "that it has, or leave it out")
    return ("Convert it (`file` guesses from what; this is from WINDOWS-1252, for text of Western Europe): "
            f"{_convert(path, suffix, 'WINDOWS-1252')}; or leave it out")


def not_utf8(path: Path, suffix: str) -> str:
    """Error message that names the first bad byte, its line, and what to do."""
    try:
        s = survey(path, suffix)
    except (OSError, EOFError, zlib.error) as e:
        return f"{shown(path)} is not UTF-8, and cannot be read again ({e}); run this again"
    if s.offset is None:
        return f"{shown(path)} was changed while it was read; run this again when it is finished"
    return (f"{shown(path)} is not UTF-8: byte 0x{s.value:02x} at offset {s.offset}"
            f"{' of what is packed' * suffix.endswith('.gz')}. {_advice(path, suffix, s)}. Then run this again")
