"""
stdout and stderr that survive what happens to them. Every command gets them before it prints anything.

Three things happen to the output of a command. The encoding lacks a character (`> log.txt` on Windows is cp1252). The
reader goes away (`python -m scripts.arch | head -1`, a terminal that is closed). The disk of the log file is full.
Python answers each with an exception in the middle of the work.

Here a character that cannot be encoded becomes a question mark. A reader that went away ends a command quietly, as
Ctrl-C does. A training goes on without its output (`undisturbed`), so that no print can end it.
"""

import contextlib
import errno
import io
import os
import sys

STDOUT = "<stdout>"  # the name in an OSError, as Python calls the stream
READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe, a terminal, a descriptor that was closed


class OutputClosed(KeyboardInterrupt):
    """The reader of stdout is gone. A KeyboardInterrupt, so that a command stops its children and saves first."""


class Stream(io.TextIOWrapper):
    """A standard stream whose write and flush raise OutputClosed where the reader is gone, else OSError, and only once:
    from then on they go nowhere. As stderr it raises nothing, because no command fails for a message."""
    silent = False

    def write(self, text):
        with self._rescued():
            super().write(text)
        return len(text)

    def flush(self):
        with self._rescued():
            super().flush()

    @contextlib.contextmanager
    def _rescued(self):
        try:
            yield
        except OSError as e:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is still buffered, and the flush at exit, must not fail again
            os.close(nowhere)
            if not self.silent:
                raise OutputClosed(str(e)) if e.errno in READER_GONE else OSError(e.errno, e.strerror, STDOUT) from None


def take_over():
    """Replace sys.stdout and sys.stderr by streams of this kind. Called once, as a command starts."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if old is None:  # the descriptor was closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif type(old) is io.TextIOWrapper:
            errors = "replace" if name == "stdout" else "backslashreplace"
            facts = dict(encoding=old.encoding, line_buffering=old.line_buffering, write_through=old.write_through)
            new = Stream(old.detach(), errors=errors, **facts)
            new.silent = name == "stderr"
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


class _Undisturbed:
    """A stream whose write and flush never raise. The first failure is told on stderr."""

    def __init__(self, stream, told: list):
        self.stream, self.told = stream, told

    def write(self, text) -> int:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self._try(lambda: self.stream.write(text.encode("ascii", "replace").decode()))
        except (Exception, OutputClosed) as e:
            self._tell(e)
        return len(text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, work):
        try:
            work()
        except (Exception, OutputClosed) as e:
            self._tell(e)

    def _tell(self, e):
        if isinstance(e, (OSError, OutputClosed)) and not self.told:
            self.told.append(e)
            with contextlib.suppress(Exception, OutputClosed):
                print(f"Warning: no output from here on ({e}); the run goes on", file=sys.stderr, flush=True)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def undisturbed():
    """Within this context no print raises. A signal handler may print too, in the middle of another print."""
    before, told = (sys.stdout, sys.stderr), []
    sys.stdout, sys.stderr = (_Undisturbed(stream, told) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
