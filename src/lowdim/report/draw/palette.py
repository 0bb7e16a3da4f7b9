"""Colours of the report, once for the page and once for its charts, in light and in dark.

Blue means zeros and their shares, orange means damage and cost: the pair that every common colour-vision
deficiency keeps apart. A chart is drawn with the light values, which then become CSS variables, so that the
reader's theme decides.
"""

from __future__ import annotations

_NAMED = {
    # name: (light, dark). Values of one mode are all different: a colour is found again by its value.
    "paper": ("#fdfdfc", "#14171b"),
    "wash": ("#f5f5f3", "#1c2025"),
    "line": ("#e4e5e4", "#2c3239"),
    "ink": ("#1a2027", "#e8ebef"),
    "muted": ("#5b6570", "#a2acb7"),
    "faint": ("#8b949e", "#727c87"),
    "blue": ("#1d62a8", "#74b3f2"),
    "orange": ("#b04e0c", "#f0975a"),
    "green": ("#1a7a55", "#5cc598"),
    "caution": ("#fff6e9", "#2a2117"),
}
_RAMPS = {
    # Even steps of lightness in OKLab, from almost paper to almost ink.
    "zeros": (
        "#e9f1fa #c6dcf2 #a3c6e9 #80b1df #5b9bd5 #467eb6 #326398 #1e487a #0c2f5e",
        "#1c2836 #253c56 #2e5278 #37689c #3f7fc1 #669ad1 #8bb5e1 #b0d0f0 #d6ebff",
    ),
    "cost": (
        "#fdf0e3 #f7d7bc #f1be94 #e9a46b #e08a3c #c2702d #a4561f #873d11 #6b2503",
        "#2e231a #4f3520 #734825 #995b29 #c06f2a #d18d58 #e1aa80 #f0c8a7 #ffe6cf",
    ),
}
STEPS = 9


def _table() -> dict[str, tuple[str, str]]:
    table = dict(_NAMED)
    for ramp, (light, dark) in _RAMPS.items():
        for step, pair in enumerate(zip(light.split(), dark.split(), strict=True)):
            table[f"{ramp}{step}"] = pair
    return table


COLOURS = _table()
_VARIABLE = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}


def colour(name: str) -> str:
    """Return the light value of a named colour, the one that charts are drawn with.

    Example:
        >>> colour("blue")
        '#1d62a8'
    """
    return COLOURS[name][0]


def ramp(name: str) -> list[str]:
    """Return the light values of a sequential ramp, lowest first.

    Example:
        >>> len(ramp("zeros"))
        9
    """
    return [colour(f"{name}{step}") for step in range(STEPS)]


def variable(value: str) -> str:
    """Return the CSS variable that stands for a light value, or the value itself if it is none of ours.

    Example:
        >>> variable("#1d62a8"), variable("none")
        ('var(--blue)', 'none')
    """
    return _VARIABLE.get(value.lower(), value)


def css_variables(mode: int) -> str:
    """Return the declarations of every colour; ``mode`` is 0 for light and 1 for dark.

    Example:
        >>> css_variables(1).split(";")[0]
        '--paper:#14171b'
    """
    return ";".join(f"--{name}:{pair[mode]}" for name, pair in COLOURS.items())
