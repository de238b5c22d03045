"""
Train a base model. From the root of the repository:

    python -m scripts.base_train --depth=4 --max-seq-len=512 --device-batch-size=4 --total-batch-size=2048 \\
        --num-iterations=20

Exit status: 0 ok, 2 bad input, 3 diverged, 4 out of memory, 130 interrupted (saved first), 1 anything else.
"""

import os
import sys

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# OpenMP threads that wait spin for milliseconds by default: with one core busy elsewhere that made a step five
# times slower. A short spin costs nothing on a quiet machine (dev/LOG.md, 2026-11-21).
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from nanochat.command_line import say_error
from nanochat.config import parse  # noqa: E402
from nanochat.record import EXIT_CODES  # noqa: E402


def main() -> int:
    config = parse(prog="base_train")
    from nanochat.run_facts import print_summary  # after parsing: --help and a mistyped flag need not wait for torch
    from nanochat.streams import undisturbed
    from nanochat.trainer import train
    try:
        facts = train(config, sys.argv[1:])
    except (ValueError, OSError) as e:
        say_error(e, "base_train")
        return 2
    except MemoryError as e:
        say_error(e, "base_train")
        return EXIT_CODES["oom"]
    with undisturbed():
        if facts["status"] == "ok":  # else the reason is the last line
            print_summary(facts)
    return EXIT_CODES[facts["status"]]


if __name__ == "__main__":
    sys.exit(main())
