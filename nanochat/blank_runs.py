r"""
Texts with a million blanks in a row, which the regular expressions of tiktoken and rustbpe cannot split.

The part `\s+(?!\S)` of the split pattern puts every blank of a run on a stack. The libraries panic at 1,000,000 blanks.
Example: of "x", two million spaces and "y" the pattern makes the pieces "x", all spaces but the last, and " y".
So it does with every run that no line end follows, whatever stands around it:

- a piece starts where the run starts, because no piece has a blank after anything but blanks;
- the run without its last blank is a piece, or the whole run at the end of a text;
- the last blank starts a piece, and what follows is split as if it stood alone.

Therefore a text may be cut at both ends of such a piece, and its tokens stay the same to the last bit. A line end after
a run is no trouble: `\s*[\r\n]` takes both without a stack. Never imports torch.
"""

import re

LONGEST = 900_000  # a longer run is cut out; shorter ones take the ordinary way
# Unicode's White_Space without line ends. Python's \s has four characters more (0x1C to 0x1F), which Rust's has not.
_BLANK = r"[\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_RUN = re.compile(f"(?<!{_BLANK}){_BLANK}{{{LONGEST + 1},}}")


def cut(text: str) -> list[tuple[str, bool]]:
    """[(part of the text, whether it is one piece of blanks)]: the parts joined are the text. [] without a long run."""
    if len(text) <= LONGEST:
        return []
    parts, start = [], 0
    for run in _RUN.finditer(text):
        if text[run.end():run.end() + 1] in ("\r", "\n"):
            continue
        end = run.end() if run.end() == len(text) else run.end() - 1
        parts += [(text[start:run.start()], False), (run[0][:end - run.start()], True)]
        start = end
    return [*parts, (text[start:], False)] if parts else []


def for_training(texts):
    """Yield the texts for a trainer that counts pieces. Parts of a cut text follow each other.

    The trainer takes no piece without splitting it. So a piece of blanks comes in parts of LONGEST, which loses one
    pair of blanks in 900,000.
    """
    for text in texts:
        for part, is_piece in cut(text) or [(text, False)]:
            if is_piece:
                yield from (part[i:i + LONGEST] for i in range(0, len(part), LONGEST))
            else:
                yield part
