"""The built-in text: a slice of Wikipedia, cleaned to prose and cut in halves that share no article."""

from __future__ import annotations

import bz2
import functools
import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lowdim.data import assets

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_EMPTY_TAG = re.compile(r"<\w+[^<>]*/>")
_BLOCK_TAG = re.compile(
    r"<(ref|math|gallery|code|source|syntaxhighlight|timeline|score|pre|imagemap|chem|hiero)\b[^<>]*>.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"</?\w[^<>]*>")
_TEMPLATE = re.compile(r"\{\{(?:[^{}]|\{(?!\{)|\}(?!\}))*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]")
_FILE_OR_CATEGORY = re.compile(r":?\s*(file|image|category|media|[a-z]{2,3}(-[a-z]+)?)\s*:", re.IGNORECASE)
_URL = re.compile(r"\[(?:https?:)?//\S+\s*([^\[\]]*)\]")
_QUOTES = re.compile(r"'{2,}")
_HOLLOW = re.compile(r"\s*\((?:[\s,;:]|or|and)*\)")
_BLANKS = re.compile(r"[ \t\xa0]+")
_ORPHAN_BLANK = re.compile(r" (?=[,;]|\.(?!\.))")  # a template went from before the comma
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")
_NOT_PROSE = tuple("*#:;|!={}<")
_SHORTEST = 80


class Article(NamedTuple):
    """A page's title and its prose, paragraphs separated by a newline."""

    title: str
    text: str


def articles() -> tuple[Article, ...]:
    """Return the articles that hold prose, in the order of the dump; the asset is fetched on first use."""
    return _read(assets.path("wiki"))


def calibration_articles() -> tuple[Article, ...]:
    """Return the even-numbered articles, counted from 0: what calibration draws from."""
    return articles()[0::2]


def evaluation_articles() -> tuple[Article, ...]:
    """Return the odd-numbered articles: what perplexity is measured on."""
    return articles()[1::2]


def clean(wikitext: str) -> str:
    r"""Reduce wikitext to paragraphs of prose.

    Comments, references, templates, tables, pictures, headings and lists go; links leave their label; of what
    remains, lines of more than 80 characters that end a sentence are kept.

    Example:
        >>> line = "'''Tin''' is a [[metal|soft metal]]{{cite|x={{y}}}}.<ref>Z</ref>"
        >>> line += " It melts at low heat." * 4
        >>> clean("== Uses ==\n* a list\n" + line)[:42]
        'Tin is a soft metal. It melts at low heat.'
    """
    text = _COMMENT.sub("", html.unescape(wikitext))
    text = _BLOCK_TAG.sub("", _EMPTY_TAG.sub("", text))
    for nested in (_TEMPLATE, _TABLE):
        text = _innermost_first(nested, "", text)
    text = _innermost_first(_LINK, _label, text)
    text = html.unescape(_QUOTES.sub("", _TAG.sub("", _URL.sub(r"\1", text))))
    return "\n".join(filter(_is_prose, map(_tidy, text.splitlines())))


def _tidy(line: str) -> str:
    return _ORPHAN_BLANK.sub("", _BLANKS.sub(" ", _HOLLOW.sub("", line))).strip()


def _label(link: re.Match[str]) -> str:
    inside = link.group(1)
    return "" if _FILE_OR_CATEGORY.match(inside) else inside.rpartition("|")[2]


def _innermost_first(pattern: re.Pattern[str], replacement: object, text: str) -> str:
    found = 1
    while found:
        text, found = pattern.subn(replacement, text)  # type: ignore[call-overload]
    return text


def _is_prose(line: str) -> bool:
    return len(line) > _SHORTEST and not line.startswith(_NOT_PROSE) and bool(_SENTENCE_END.search(line))


@functools.lru_cache(maxsize=2)
def _read(dump: Path) -> tuple[Article, ...]:
    pages = ((title, clean(text)) for title, text in _pages(dump))
    return tuple(Article(title, text) for title, text in pages if text)


def _pages(dump: Path) -> Iterator[tuple[str, str]]:
    with bz2.open(dump) as stream:
        for _, element in ElementTree.iterparse(stream):
            if element.tag.rpartition("}")[2] != "page":
                continue
            text = element.findtext("{*}revision/{*}text") or ""
            if element.findtext("{*}ns") == "0" and not text.lstrip().lower().startswith("#redirect"):
                yield element.findtext("{*}title") or "", text
            element.clear()
