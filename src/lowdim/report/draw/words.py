"""Numbers as a reader wants them: few digits, a unit, a true minus sign."""

from __future__ import annotations

import math

MISSING = "–"


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share as a percentage.

    Example:
        >>> percent(0.6), percent(0.47312), percent(-0.021), percent(None)
        ('60%', '47.3%', '−2.1%', '–')
    """
    if share is None or not math.isfinite(share):
        return MISSING
    return signless(_trim(f"{100 * share:.{digits}f}")) + "%"


def signless(text: str) -> str:
    """Replace a hyphen by a minus sign, and a negative zero by zero.

    Example:
        >>> signless("-2.5"), signless("-0.0"), signless("-8,000")
        ('−2.5', '0.0', '−8,000')
    """
    if text.startswith("-"):
        text = text[1:] if float(text.replace(",", "")) == 0 else "−" + text[1:]
    return text


def number(value: float | None) -> str:
    """Write a number in about three digits.

    Example:
        >>> [number(v) for v in (21.0824, 3.04159, 0.01234, 12345.6, 3.2e9, float("inf"), None)]
        ['21.1', '3.04', '0.0123', '12,346', '3.2e9', '∞', '–']
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and (size >= 1e7 or size < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return signless(f"{_trim(mantissa)}e{int(exponent)}")
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 or not size else 3 - math.ceil(math.log10(size))
    return signless(f"{value:,.{digits}f}")


def tick(value: float) -> str:
    """Write a number on an axis, where trailing zeros say nothing.

    Example:
        >>> tick(0.05), tick(5.0), tick(1000)
        ('0.05', '5', '1,000')
    """
    return _trim(number(value))


def signed(value: float, digits: int) -> str:
    """Write a difference with its sign.

    Example:
        >>> signed(1.5, 1), signed(-0.25, 2)
        ('+1.5', '−0.25')
    """
    text = signless(f"{value:.{digits}f}")
    return text if text.startswith("−") else "+" + text


def size(count: float | None) -> str:
    """Write a number of bytes in decimal units.

    Example:
        >>> size(269_060_552), size(1_420_000_000), size(812)
        ('269 MB', '1.42 GB', '812 bytes')
    """
    if count is None:
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{count:.0f} bytes"


def seconds(value: float | None) -> str:
    """Write a duration.

    Example:
        >>> [seconds(v) for v in (0.412, 3.21, 65, 3720)]
        ['412 ms', '3.2 s', '1 min 5 s', '1 h 2 min']
    """
    if value is None:
        return MISSING
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """Write a count and its noun.

    Example:
        >>> plural(1, "layer"), plural(210, "layer")
        ('1 layer', '210 layers')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clean(text: object) -> str:
    """Return text with unprintable characters (control, bidirectional overrides) made visible.

    Example:
        >>> clean("a" + chr(0x202E) + "b"), clean("tab" + chr(9))
        ('a�b', 'tab�')
    """
    return "".join(char if char.isprintable() else "�" for char in str(text))
