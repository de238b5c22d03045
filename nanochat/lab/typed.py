"""
Whether a value read from JSON fits the type of the field that it is for.

    fits(0.5, float | None)    # True
    fits("0.5", float | None)  # False: text where a number belongs
    fits(float("nan"), float)  # False: Python reads NaN, and no file of ours holds one
"""

import math
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Union, get_args, get_origin


def fits(value, kind) -> bool:
    """A whole number fits float. A bool fits only bool, though Python takes it for an int. An object of its own type
    is checked where it is made, so here any JSON object fits.

    >>> fits([1, 2], list[int]), fits([1, "2"], list[int]), fits(True, int), fits(None, str | None), fits({}, dict)
    (True, False, False, True, True)
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is list:
        return isinstance(value, list) and all(fits(one, args[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, args[1]) for one in value.values())
    if is_dataclass(kind):
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, NoneType if kind is None else kind) and (kind is bool or not isinstance(value, bool))


def shown(kind) -> str:
    """The type as a message names it.

    >>> shown(float | None), shown(list[int])
    ('float or null', 'list of int')
    """
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(shown, get_args(kind)))
    if get_origin(kind) in (list, dict):
        return f"{get_origin(kind).__name__} of {shown(get_args(kind)[-1])}"
    return "null" if kind is NoneType else kind.__name__
