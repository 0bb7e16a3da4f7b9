"""A chart belongs to its page: the page's colours and font, no names of its own that clash."""

import re

import pytest

from lowdim.report.draw.palette import COLOURS, colour
from lowdim.report.draw.svg import draw


def paint(figure, tips):
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=colour("blue"))
    tips.add(axes.scatter([0, 1], [0, 1], color=colour("orange")), ["first <b>", "second & last"])


def test_colours_are_the_page_s():
    svg = draw("a", "Chart", 100, paint)
    assert "var(--blue)" in svg
    assert "var(--orange)" in svg
    assert "var(--muted)" in svg
    assert not re.search(r"(fill|stroke): #", svg)


def test_font_is_the_page_s_and_text_is_text():
    svg = draw("a", "Chart", 100, paint)
    assert "font-family" not in svg
    assert ">0.5</text>" in svg


def test_style_sheet_does_not_leak():
    assert "<style" not in draw("a", "Chart", 100, paint)


def test_size_and_name():
    svg = draw("a", 'Say "cheese" & <smile>', 100, paint, width=300)
    assert 'viewBox="0 0 300 100"' in svg
    assert "max-width:300px" in svg
    assert 'aria-label="Say &quot;cheese&quot; &amp; &lt;smile&gt;"' in svg


def test_texts_of_marks_are_escaped_and_in_order():
    svg = draw("a", "Chart", 100, paint)
    assert re.findall(r"<title>(.*?)</title>", svg) == ["first &lt;b&gt;", "second &amp; last"]


def test_a_text_for_each_mark():
    def wrong(figure, tips):
        tips.add(figure.subplots().scatter([0, 1], [0, 1]), ["only one"])

    with pytest.raises(AssertionError):
        draw("a", "Chart", 100, wrong)


def test_names_of_two_charts_differ():
    first, second = (set(re.findall(r' id="(.*?)"', draw(key, "Chart", 100, paint))) for key in "ab")
    assert first
    assert not first & second


def luminance(value):
    channels = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_is_legible(mode):
    """The contrast that accessibility guidelines (WCAG 2, AA) ask of small text."""
    for ground in ("paper", "wash"):
        for name in ("ink", "muted", "blue", "orange", "green"):
            assert contrast(COLOURS[name][mode], COLOURS[ground][mode]) >= 4.5, (name, ground)
    assert contrast(COLOURS["orange"][mode], COLOURS["caution"][mode]) >= 4.5


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ramp", ["zeros", "cost"])
def test_ramps_go_from_paper_to_ink(mode, ramp):
    steps = [luminance(COLOURS[f"{ramp}{step}"][mode]) for step in range(9)]
    assert steps == sorted(steps, reverse=mode == 0)


def test_each_light_colour_has_one_name():
    values = [light for light, _ in COLOURS.values()]
    assert len(values) == len(set(values))
