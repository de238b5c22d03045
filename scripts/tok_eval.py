"""
Bytes per token of the tokenizer on several kinds of text, beside GPT-2's and GPT-4's where they can be downloaded. Run:

    python -m scripts.tok_eval

With more bytes per token the same text is a shorter sequence. Two of the texts are the first row group of the training
shards, which the tokenizer was trained on, and that of the validation shard, which it was not. Each text is also
decoded again and must come back unchanged. tiktoken downloads the published vocabularies; offline, the table has only
ours.
"""

import sys
import threading

from nanochat.command_line import Parser
from nanochat.manifest import split_paths
from nanochat.shards import read_row_group
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

PUBLISHED = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}
DOWNLOAD_TIMEOUT_SEC = 15  # tiktoken sets none: behind a silent firewall it would wait for minutes

NEWS = """
The town council of Eastbrook voted 7-4 on Tuesday night to close the old ferry landing for eighteen months, ending a
dispute that had run since the storm of March 2019. Repairs are expected to cost $2.3 million, about a third of which
will come from the county. "Nobody likes the detour," said Maria Oduya, who runs a bakery on Water Street, "but we've
all seen what the pilings look like at low tide." Commuters will be sent over the Harlan Bridge, some 4.5 miles to the
north; a shuttle bus is to leave every 20 minutes between 6:30 a.m. and 9 p.m.

Opponents, among them two former mayors, argued that the closure should wait until the rail line reopens. They haven't
ruled out taking the matter to court.
"""

KOREAN = """
오늘 아침 시장에는 비가 조금 내렸지만 사람들은 여느 때처럼 일찍 나와 가게 문을 열었다. 생선을 파는 할머니는 "날씨가 궂은 날에
단골손님이 더 많이 온다"며 웃었고, 맞은편 빵집에서는 갓 구운 단팥빵 냄새가 골목 끝까지 퍼졌다.

도서관은 다음 달 1일부터 밤 10시까지 문을 연다. 열람실은 모두 120석이며, 예약은 누리집이나 전화(02-555-0142)로 할 수 있다.
처음 오는 이용자는 신분증을 가지고 와서 회원증을 만들어야 한다.
"""

CODE = '''
def longest_run(values, key=None):
    """Return (start, length) of the longest run of equal items; (0, 0) for no items."""
    best_start, best_length = 0, 0
    start = 0
    for i, value in enumerate(values):
        current = key(value) if key is not None else value
        if i == 0 or current != previous:
            start = i
        if i - start + 1 > best_length:
            best_start, best_length = start, i - start + 1
        previous = current
    return best_start, best_length


if __name__ == "__main__":
    assert longest_run([1, 1, 2, 2, 2, 3]) == (2, 3)
    print({name: longest_run(name, key=str.lower) for name in ("aAb", "xyz", "")})
'''

MATH = (r"""
\begin{lemma}\label{lem:telescope}
Let $a_1, a_2, \dots, a_n$ be positive reals with $\prod_{i=1}^{n} a_i = 1$. Then $\sum_{i=1}^{n} a_i \ge n$.
\end{lemma}
\begin{proof}
Since $\log x \le x - 1$ for all $x > 0$, with equality only at $x = 1$,
\[
  0 = \log \prod_{i=1}^{n} a_i = \sum_{i=1}^{n} \log a_i \le \sum_{i=1}^{n} (a_i - 1) """
        r"""= \Bigl(\sum_{i=1}^{n} a_i\Bigr) - n .
\]
For $n = 2$ this reads $a + \tfrac{1}{a} \ge 2$, that is, $\frac{(a-1)^2}{a} \ge 0$. \qedhere
\end{proof}
""")

SCIENCE = """
A falling raindrop reaches its terminal velocity when drag balances gravity: for a drop of radius r = 1 mm and density
ρ = 1000 kg/m³ that is about 6.5 m/s, whereas a cloud droplet of 10 μm sinks at barely 1 cm/s. \
Between the two regimes the
Reynolds number grows from ~10⁻² to ~10³, so Stokes' law (F = 6πηrv) no longer applies and the drag \
coefficient has to be
taken from experiment. Drops wider than roughly 5 mm flatten, become unstable and break up; hence the size distribution
N(D) = N₀·exp(−ΛD) that Marshall and Palmer fitted to filter-paper measurements falls off so steeply.
"""


def load_published(timeout_sec=DOWNLOAD_TIMEOUT_SEC) -> dict[str, RustBPETokenizer]:
    """{label: tokenizer} of the tokenizers downloaded in time; prints once which could not be downloaded and why."""
    found, errors = {}, []

    def load():
        for label, name in PUBLISHED.items():
            try:
                found[label] = RustBPETokenizer.from_pretrained(name)
            except (OSError, ValueError) as e:  # requests' errors are OSErrors; ValueError: the wrong hash
                errors.append(type(e).__name__)

    thread = threading.Thread(target=load, daemon=True)  # a hanging download must not keep the process alive
    thread.start()
    thread.join(timeout_sec)
    loaded = dict(found)
    missing = [label for label in PUBLISHED if label not in loaded]
    if missing:
        reason = errors[0] if errors else f"no answer in {timeout_sec} s"
        print(f"Left out: {' and '.join(missing)}, which tiktoken could not download ({reason}); "
              "TIKTOKEN_CACHE_DIR may name a folder that has them")
    return loaded


def load_texts() -> dict[str, str]:
    texts = {"news": NEWS, "korean": KOREAN, "code": CODE, "math": MATH, "science": SCIENCE}
    texts = {name: text.strip() for name, text in texts.items()}
    for split in ("train", "val"):
        documents = read_row_group(split_paths(split)[0], 0)
        texts[f"data-{split}"] = "\n".join(text for text in documents if text is not None)
    return {name: text for name, text in texts.items() if text}


def count_tokens(tokenizer, texts: dict[str, str]) -> dict[str, int]:
    counts = {}
    for name, text in texts.items():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, f"text {name!r} does not come back from its tokens"
        counts[name] = len(ids)
    return counts


def format_table(texts, ours: dict[str, int], label=None, theirs=None, color=False) -> str:
    """Tokens and bytes per token of each text; with a baseline also the share of its tokens that ours saves."""
    green, red, reset = ("\033[92m", "\033[91m", "\033[0m") if color else ("", "", "")
    columns = [("Ours", ours)] if label is None else [(label, theirs), ("Ours", ours)]
    lines = [f"{'Text':<12}{'Bytes':>10}" + "".join(f"{name + ' tokens':>15}{'bytes/token':>13}" for name, _ in columns)
             + ("" if label is None else f"{'Saved':>10}  Better")]
    for name, text in texts.items():
        num_bytes = len(text.encode("utf-8"))
        line = f"{name:<12}{num_bytes:>10}" + "".join(f"{c[name]:>15}{num_bytes / c[name]:>13.2f}" for _, c in columns)
        if label is not None:
            saved = (theirs[name] - ours[name]) / theirs[name]
            paint, better = (green, "Ours") if saved > 0 else (red, label) if saved < 0 else ("", "Tie")
            line += f"{paint}{saved:>+10.1%}{reset}  {better}"
        lines.append(line)
    return "\n".join(lines)


def main(argv=None):
    parser = Parser(prog="tok_eval", description="Measure bytes per token on several kinds of text.")
    parser.parse_args(argv)
    try:
        ours, texts = get_tokenizer(), load_texts()
    except (ValueError, OSError) as e:
        parser.error(e)
    published = load_published()
    print("\nVocab sizes:")
    for label, tokenizer in {**published, "Ours": ours}.items():
        print(f"{label}: {tokenizer.get_vocab_size()}")
    our_counts = count_tokens(ours, texts)
    for label, tokenizer in published.items():
        print(f"\nComparison with {label}:")
        try:
            print(format_table(texts, our_counts, label, count_tokens(tokenizer, texts), color=sys.stdout.isatty()))
        except ValueError as e:  # a run of blanks that only our split pattern can take in
            print(f"Left out: {e}")
    if not published:
        print("\n" + format_table(texts, our_counts))


if __name__ == "__main__":
    main()
