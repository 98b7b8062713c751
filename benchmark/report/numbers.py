"""Numbers of a report in words that people read: no powers of ten, a unit beside each time."""

from __future__ import annotations


def plain(value: float, digits: int = 3) -> str:
    """A positive number to so many digits, never as a power of ten: "0.25", "17.7", "10,600"."""
    return f"{float(f'{value:.{digits}g}'):,.12f}".rstrip("0").rstrip(".")


def time_text(seconds: float, digits: int = 3) -> str:
    """A time as the paper prints them, "0.42s", and below a tenth of a second in its parts: "62.1ms", "94.8µs"."""
    for limit, factor, unit in ((0.1, 1.0, "s"), (1e-4, 1e3, "ms"), (0.0, 1e6, "µs")):
        if seconds >= limit:
            return f"{plain(seconds * factor, digits)}{unit}"
    raise ValueError(f"A time is not negative, got {seconds}.")
