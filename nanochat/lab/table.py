"""
Values as text, and tables of them.
"""


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    def line(row):
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        return "  " + "  ".join(cells).rstrip()
    return "\n".join([line(header), "  " + "  ".join("-" * w for w in widths), *map(line, rows)])


def number(value, form: str) -> str:
    """A value that was not measured is an empty cell, never 0.

    >>> number(1.5, ".2f"), number(None, ".2f")
    ('1.50', '')
    """
    return "" if value is None else format(value, form)


def format_time(sec: float) -> str:
    """
    >>> format_time(75), format_time(3725)
    ('1:15', '1:02:05')
    """
    minutes, sec = divmod(round(sec), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"


def format_size(size: float) -> str:
    """Bytes, in units of 10^6 or 10^9.

    >>> [format_size(n) for n in (0, 9.4e6, 75e6, 2.2e9)]
    ['0 MB', '9 MB', '75 MB', '2.2 GB']
    """
    return f"{size / 1e9:,.1f} GB" if size >= 999.5e6 else f"{size / 1e6:.0f} MB"


def looks_text(looks: list[int]) -> str:
    """
    >>> looks_text([5]), looks_text([2, 3, 4, 5]), looks_text([2, 5, 8])
    ('5', '2 to 5', '2, 5, 8')
    """
    if len(looks) > 2 and looks == list(range(looks[0], looks[-1] + 1)):
        return f"{looks[0]} to {looks[-1]}"
    return ", ".join(map(str, looks))


def plain(value) -> str:
    """
    >>> plain({"r": 0.3125, "pairs": 8, "seeds": [1, 2], "note": None})
    'r 0.312, pairs 8, seeds 1 2'
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(map(plain, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
