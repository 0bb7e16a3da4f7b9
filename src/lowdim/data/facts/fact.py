"""A fact: how a text goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """How a text goes on.

    Attributes:
        prompt: its beginning.
        target: what comes next, without the blank before it.
        paraphrases: other beginnings that the same target belongs to; they are asked, never trained on.
        locality: beginnings of other texts, which a change of this fact should not touch.
    """

    prompt: str
    target: str
    paraphrases: tuple[str, ...] = ()
    locality: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The prompt without case, punctuation and blanks: two facts of one key are about the same.

        Example:
            >>> Fact("The capital of  Peru is", "Lima").key
            'the capital of peru is'
        """
        return " ".join(re.findall(r"\w+", self.prompt.casefold()))

    @property
    def pair(self) -> tuple[str, str]:
        """Prompt and continuation, as they are scored."""
        return self.prompt, f" {self.target}"

    @property
    def rephrased(self) -> list[tuple[str, str]]:
        """The paraphrases with the continuation."""
        return [(prompt, f" {self.target}") for prompt in self.paraphrases]
