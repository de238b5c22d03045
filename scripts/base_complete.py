"""
Complete text with a base model, again and again, loading it once:

    python -m scripts.base_complete
    python -m scripts.base_complete -g d12 -p "The capital of France is" -m 32

Type or paste text after `> `, and end it with a line that says ###. The prompt comes back in gray, and its completion
streams behind it. Ctrl-C stops a completion. At the `> `, Ctrl-C or Ctrl-D ends the command. Notes on loading, and on
prompts that were cut, go to stderr, so that stdout holds only text.
"""

import argparse
import contextlib
import io
import sys

from nanochat.command_line import Defaults, Parser
from nanochat.options import hyphenate
from nanochat.stage import BASE

GRAY, RESET = "\033[90m", "\033[0m"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="base_complete", allow_abbrev=False,
                    description="Complete text with a base model, once or again and again.",
                    formatter_class=Defaults)
    parser.add_argument("-g", "--model-tag", help="folder of the checkpoint (default: the deepest d<N>)")
    parser.add_argument("-s", "--step", type=int, help="step of the checkpoint (default: the newest whole one)")
    parser.add_argument("-p", "--prompt", help="complete this text, then end")
    parser.add_argument("-m", "--max-tokens", type=int, default=256, help="most tokens in a completion")
    parser.add_argument("-t", "--temperature", type=float, default=0.8,
                        help="temperature of sampling; 0 = always the likeliest token")
    parser.add_argument("-k", "--top-k", type=int, default=50, help="sample among this many tokens (0 = all)")
    parser.add_argument("--seed", type=int, default=42,
                        help="seed of the first completion; each later completion takes the next number")
    parser.add_argument("--delimiter", default="###", help="the line that ends a prompt")
    parser.add_argument("--device-type", choices=("", "cuda", "cpu", "mps"), default="",
                        help="device to run on; empty = autodetect")
    return parser


def check(args):
    for name, ok, expected in (("max-tokens", args.max_tokens >= 1, "at least 1"),
                               ("top-k", args.top_k >= 0, "0 or more"),
                               ("temperature", 0 <= args.temperature < float("inf"), "0 or more"),
                               ("seed", args.seed >= 0, "0 or more")):
        if not ok:
            raise ValueError(f"--{name}={getattr(args, name.replace('-', '_'))}: expected {expected}")


def note(message: str):
    print(f"note: {message}", file=sys.stderr, flush=True)


def prompt_tokens(tokenizer, text: str, room: int) -> list[int]:
    """BOS and the last tokens of the text, `room` in all: the end of the text matters most for the completion."""
    ids = tokenizer.encode(text)
    if len(ids) + 1 > room:
        note(f"the prompt has {len(ids)} tokens; the last {room - 1} were kept")
        ids = ids[len(ids) - (room - 1):]
    return [tokenizer.get_bos_token_id(), *ids]


def printable(text: str) -> str:
    """Without the control characters that a model may write: they would move the cursor or color the terminal."""
    return "".join(c if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0") else "\N{REPLACEMENT CHARACTER}"
                   for c in text)


class Completer:
    """A loaded model and the settings for sampling from it."""

    def __init__(self, args):
        from nanochat.checkpoint_manager import find_largest_model, load_model
        from nanochat.common import get_base_dir
        from nanochat.device import select_device, select_dtype
        from nanochat.engine import Engine
        device = select_device(args.device_type)
        dtype, why = select_dtype("auto", device)
        tag = args.model_tag or find_largest_model(BASE.root(get_base_dir()))
        model, self.tokenizer, meta = load_model(BASE.name, device, tag, args.step, dtype)
        self.engine = Engine(model, self.tokenizer)
        self.sampling = dict(temperature=args.temperature, top_k=args.top_k)
        self.seed = args.seed
        self.max_tokens, context = args.max_tokens, model.config.sequence_len
        if self.max_tokens >= context:
            self.max_tokens = context // 2
            note(f"--max-tokens={args.max_tokens} leaves no room for a prompt in a context of {context} tokens: "
                 f"using {self.max_tokens}")
        self.room = context - self.max_tokens
        note(f"step {meta['step']} of {tag}, {dtype} ({why})")

    def stream(self, text: str):
        """Yield the completion of a text in pieces of whole characters."""
        from nanochat.tokenizer import StreamDecoder
        decoder = StreamDecoder(self.tokenizer)  # never flushed: half a character at the end is not shown
        tokens = prompt_tokens(self.tokenizer, text, self.room)
        self.seed += 1
        for (token,), _ in self.engine.generate(tokens, max_tokens=self.max_tokens, seed=self.seed - 1,
                                                **self.sampling):
            if token in self.engine.end_ids:
                break
            yield printable(decoder.push(token))


def show(completer: Completer, text: str) -> bool:
    """Print prompt and completion; False when Ctrl-C stopped it."""
    gray, reset = (GRAY, RESET) if sys.stdout.isatty() else ("", "")
    print(f"{gray}{text}{reset}", end="", flush=True)
    finished = False
    try:
        for piece in completer.stream(text):
            print(piece, end="", flush=True)
        finished = True
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return finished


def read_prompt(delimiter: str) -> str | None:
    """Lines up to the delimiter; None where the input ends. Text after the last delimiter of a pipe counts too."""
    lines, tty = [], sys.stdin.isatty()
    try:
        while (line := input("" if lines or not tty else "> ")).rstrip() != delimiter:
            lines.append(line)
    except EOFError:
        if tty or not lines:
            return None
    return "\n".join(lines)


def interact(completer: Completer, delimiter: str):
    with contextlib.suppress(ImportError):  # where it exists, input() can edit, and takes lines of over 4,096 bytes
        import readline  # noqa: F401
    while True:
        try:
            text = read_prompt(delimiter)
        except KeyboardInterrupt:
            text = None
        if text is None:
            break
        show(completer, text)
        print()
    if sys.stdin.isatty():
        print()


def main(argv=None) -> int:
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdin, sys.stdout):  # a terminal that is not UTF-8 shows a question mark; the session goes on
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        check(args)
        with contextlib.redirect_stdout(sys.stderr):
            completer = Completer(args)
        if args.prompt is None:
            interact(completer, args.delimiter)
        elif not show(completer, args.prompt):
            return 130
    except (ValueError, OSError) as e:
        parser.error(e)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
