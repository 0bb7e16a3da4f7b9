"""The wikitext cleaner, and the real slice where it is already in the cache."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from lowdim.data import assets, wiki

LONG = "Tin melts at a low heat and has been worked by people for more than five thousand years, they say"


@pytest.mark.parametrize(
    ("source", "cleaned"),
    [
        (f"{LONG}.", f"{LONG}."),
        (f"{LONG}<!-- hidden\nlines -->.", f"{LONG}."),
        (f"{LONG}&lt;ref name=a&gt;{{{{cite|b}}}}&lt;/ref&gt;.", f"{LONG}."),
        (f"{LONG}<ref name='a' />, and<ref>b</ref> more.", f"{LONG}, and more."),
        (f"'''{LONG}''' {{{{a|{{{{b|c}}}}|d}}}}.", f"{LONG}."),
        (f"{LONG} [[a|b]] and [[c]].", f"{LONG} b and c."),
        (f"{LONG} [http://x.org a site].", f"{LONG} a site."),
        (f"[[File:x.png|thumb|with [[a|link]] inside]]{LONG}.", f"{LONG}."),
        (f"[[Image:x.png|thumb|as [he] said]]{LONG}.", f"{LONG}."),
        (f"[[Category:Metals]]\n[[fr:Étain]]\n{LONG}.", f"{LONG}."),
        (f"{{| class=x\n| {LONG}.\n{{|\n| {LONG}.\n|}}\n|}}\n{LONG}.", f"{LONG}."),
        (f"== {LONG}. ==\n* {LONG}.\n: {LONG}.", ""),
        (f"{LONG} and so on", ""),
        ("Short sentence.", ""),
        (f"{LONG} ({{{{lang|la|stannum}}}}) is.", f"{LONG} is."),
        (f"{LONG}&nbsp;&ndash; it <small>is</small>.", f"{LONG} – it is."),
        (f"{LONG}.\n\n{LONG}!", f"{LONG}.\n{LONG}!"),
    ],
)
def test_clean(source: str, cleaned: str) -> None:
    assert wiki.clean(source) == cleaned


def page(title: str, text: str, space: int = 0) -> str:
    return f"<page><title>{title}</title><ns>{space}</ns><revision><text>{text}</text></revision></page>"


def test_articles_are_numbered_among_those_with_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [
        page("A", f"{LONG}."),
        page("Redirected", "#REDIRECT [[A]]"),
        page("Talk", f"{LONG}.", space=1),
        page("List", "* one"),
        page("B", f"{LONG}!"),
        page("C", f"{LONG}?"),
    ]
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    dump = tmp_path / "dump.bz2"
    dump.write_bytes(bz2.compress(xml.encode()))
    monkeypatch.setattr(assets, "path", lambda name: dump)
    assert [article.title for article in wiki.calibration_articles()] == ["A", "C"]
    assert [article.title for article in wiki.evaluation_articles()] == ["B"]


@pytest.mark.nightly
def test_the_real_slice() -> None:
    found = wiki.articles()
    assert (len(found), found[0].title, found[-1].title) == (100, "Anarchism", "Algorithm")
    assert 2.4e6 < sum(len(article.text) for article in found) < 2.5e6
    everything = "\n".join(article.text for article in found)
    assert not any(mark in everything for mark in ("{{", "}}", "[[", "]]", "<ref", "'''"))
