"""Tokens to text as they come, without half characters and without stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet
_CONTEXT = 6  # tokens of the prompt that the first ones are decoded with
_PENDING = 8  # tokens after which bytes that make no character are taken for rubbish
_CHARACTER = 4  # bytes of the longest character


class TextStream:
    r"""Turns tokens into text, piece by piece; the pieces together are the text of all tokens.

    Some tokens are held back: those that end in the middle of a character, and text that may be the beginning of a
    stop string. Special tokens give no text.

    Args:
        tokenizer: of Transformers.
        stop: strings that end the text, special tokens as they are written among them; neither they nor what follows
            is returned.
        prompt: tokens before the first, so that a leading space is seen for what it is.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ends = _special(tokenizer, self._stop)
        self._ids = [int(token) for token in prompt[-_CONTEXT:]]
        self._begin, self._shown = 0, len(self._ids)
        self._before = self._decode(0, self._shown)
        if self._before.endswith(_BROKEN):  # the prompt ends inside a character, which nothing can complete
            self._begin, self._before = self._shown, ""
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        if self.stopped:
            return ""
        if token in self._ends:
            text, self.stopped = self.finish(), True
            return text
        self._ids.append(int(token))
        return self._release(self._settled())

    def finish(self) -> str:
        """Return all that was held back; half characters as U+FFFD."""
        if self.stopped:
            return ""
        end = len(self._ids)
        text = self._release(self._take(self._decode(self._begin, end), end))
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, begin: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _take(self, whole: str, end: int) -> str:
        """Return what the tokens up to ``end`` add, given their text, and count them as shown."""
        new = whole[len(self._before) :]
        if new:  # else the first token with text would lose its leading space
            self._begin = self._shown
            self._before = self._decode(self._begin, end)
        self._shown = end
        return new

    def _settled(self) -> str:
        end = len(self._ids)
        whole = self._decode(self._begin, end)
        if not whole.endswith(_BROKEN):
            return self._take(whole, end)
        if end - self._shown <= _PENDING:
            return ""
        part = self._decode(self._begin, end - _CHARACTER)
        return self._take(part, end - _CHARACTER) if whole.startswith(part) else ""

    def _release(self, new: str) -> str:
        """Return what can no longer become a stop string; keep the rest."""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = _beginning(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _special(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Return the special tokens that are written as one of some texts: they would never be seen in what is decoded."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, told in added.items() if told.special and str(told) in texts)


def _beginning(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string.

    Example:
        >>> _beginning("one two E", ["END", "two"])
        1
    """
    longest = max((len(one) for one in stop), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(one.startswith(text[-size:]) for one in stop):
            return size
    return 0
