"""
A value of every option that is valid and not its default, found from the declaration alone, for test_config.py: an
option that is added needs no line there.
"""

import dataclasses

from nanochat.options import check_options, declared


def candidates(o) -> list:
    """Values of the option's type that its own check accepts, without its default."""
    if o.type is bool:
        found = [not o.default]
    elif o.choices:
        found = list(o.choices)
    elif o.type is str:
        found = ["a_b c", "a_b"]
    else:
        found = [1, 0.5, 2, 128, 2 * o.default, 2 ** 16, 0, -1]
        found = [o.type(value) for value in found if o.type is float or value == int(value)]
    if o.check and o.check.example is not None:
        found.insert(0, o.check.example)
    return [value for value in found if value != o.default and (not o.check or o.check.passes(value))]


def needed_by(options, name) -> list[str]:
    """Every option that has to be given beside `name`, and beside those in turn."""
    found, todo = [], list(options[name].needs)
    while todo:
        other = todo.pop(0)
        if other != name and other not in found:
            found.append(other)
            todo += options[other].needs
    return found


def example(cls, name, validate=check_options):
    """({option: value} that has to stand beside it, value of `name`), valid together; None where there is none."""
    options = declared(cls)
    company = {other: candidates(options[other])[0] for other in needed_by(options, name)}
    for value in candidates(options[name]):
        try:
            validate(dataclasses.replace(cls(), **company, **{name: value}))
            return company, value
        except ValueError:
            pass
    return None


def examples(cls, validate=check_options) -> dict:
    """{name: (company, value)} of every option that accepts more than its default."""
    found = {name: example(cls, name, validate) for name in declared(cls)}
    return {name: pair for name, pair in found.items() if pair}


def refused_values(o) -> list:
    """Values of the option's type that its own check refuses."""
    numbers = [-1, -2, -0.5, 0, 1.5, 2 ** 63, 10 ** 31]
    pool = {str: ["", "a/b", "a b", ".x", "x,", "?"], bool: [True, False]}.get(o.type, numbers)
    values = [o.type(value) for value in pool if o.type is not int or value == int(value)]
    return [value for value in values if o.check and value != o.default and not o.check.passes(value)]
