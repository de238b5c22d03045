"""
The advice of a verdict, `make noise SEEDS=8`, with the options of its comparison: without them another workload would
be banked. A page outlives the shell that it was written from, so here no environment is added (lab/commands.py does).
"""

import re
import shlex

from nanochat.lab.commands import ADVICE
from nanochat.lab.profiles import noise_options
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.sentence import sentence
from nanochat.lab.verdict.facts import Verdict


def bank_options(settings) -> list[str]:
    """The options of scripts.noise that bank for a comparison, from its result file."""
    if not settings.profile:
        return []
    words = shlex.split(settings.command or "")
    data = next((word.removeprefix("--data=") for word in words if word.startswith("--data=")), None)
    return noise_options(settings.profile, data, settings.common_flags or [], settings.jobs)


def with_variables(text: str, options: list[str]) -> str:
    """The text with the options as variables of make.

    >>> with_variables("Run `make noise SEEDS=8`.", ["--profile=smoke-cpu", "--flags=--depth=2 --seed=1"])
    "Run `make noise SEEDS=8 PROFILE=smoke-cpu FLAGS='--depth=2 --seed=1'`."
    """
    pairs = [word.removeprefix("--").split("=", 1) for word in options]
    variables = "".join(f" {name.upper()}={shlex.quote(value)}" for name, value in pairs)
    return re.sub(ADVICE, lambda found: f"make noise SEEDS={found[1] or 8}{variables}", text)


def page_sentence(verdict: Verdict, results: ResultFile) -> str:
    """The sentence of a verdict, for a page or the log."""
    return with_variables(sentence(verdict, results.declaration, results.noise), bank_options(results.settings))
