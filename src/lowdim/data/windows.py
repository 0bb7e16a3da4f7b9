"""Windows of text for measuring perplexity: tokenised once, cut without overlap, the remainder dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.core.lazy import torch
from lowdim.data import sources, tokens, wiki
from lowdim.data.errors import DataError
from lowdim.data.text import Document


@dataclass(frozen=True, eq=False)
class Windows:
    """Token windows and all that says how they were made.

    Attributes:
        input_ids: int64 ``[windows, context]``.
        protocol: source, text hash, context, windows kept and found, tokenizer, start-of-text policy, joint.
    """

    input_ids: torch.Tensor
    protocol: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of windows."""
        return self.input_ids.shape[0]

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.input_ids.shape[1]


def windows(
    source: str | Path | Iterable[Any],
    tokenizer: Any,
    context: int = 2048,
    *,
    limit: int | None = None,
    join: str = "\n\n",
    bos: tokens.Bos = "tokenizer",
) -> Windows:
    r"""Cut a text into evaluation windows, the way perplexity on WikiText-2 is measured.

    The documents are joined, tokenised once and cut into ``floor(tokens / context)`` windows without overlap.

    Args:
        source: "builtin" (the odd-numbered articles of the built-in Wikipedia slice), a file or directory
            that `lowdim.data.text.read` understands, a data set, or texts. Blank rows are documents too.
        tokenizer: the model's tokenizer.
        context: tokens in a window.
        limit: keep at most so many windows, spread evenly over the text.
        join: what stands between documents.
        bos: see `lowdim.data.tokens.Bos`.

    Raises:
        DataError: the text is shorter than one window, or an argument is out of range.
    """
    tokens.check_bos(bos, tokenizer)
    if context < 2 or (limit is not None and limit < 1):
        raise DataError(f"context must be at least 2 and limit at least 1; got context={context}, limit={limit}")
    name, documents = _documents(source)
    text = join.join(tokens.written(tokenizer, document) for document in documents)
    filled = [document for document in documents if not document.blank]
    if not filled:
        raise DataError(f"{name} holds no text: all of its {len(documents)} rows are blank")
    special = "none" if all(document.chat for document in filled) else bos
    ids, start = tokens.encode(tokenizer, text, special), tokens.prefix(tokenizer, bos)
    body = context - len(start)
    found = len(ids) // body
    if found == 0:
        raise DataError(f"the text has {len(ids)} tokens, fewer than one window of {body}; use a shorter context")
    keep = spread(found, found if limit is None else limit)
    rows = [start + ids[i * body : (i + 1) * body] for i in keep]
    protocol = {
        "source": name,
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "context": context,
        "windows": len(keep),
        "windows_in_text": found,
        "tokenizer": tokens.describe(tokenizer),
        "bos": bos,
        "join": join,
    }
    return Windows(torch.tensor(rows, dtype=torch.int64), protocol)


def spread(found: int, limit: int) -> list[int]:
    """Return ``n = min(found, limit)`` evenly spread indices below ``found``: ``floor(k found / n)``.

    Example:
        >>> spread(10, 4)
        [0, 2, 5, 7]
        >>> spread(3, 9)
        [0, 1, 2]
    """
    count = min(found, limit)
    return [k * found // count for k in range(count)]


def _documents(source: str | Path | Iterable[Any]) -> tuple[str, sources.Documents]:
    if isinstance(source, str) and source == "builtin":
        return "builtin", [Document(text=article.text) for article in wiki.evaluation_articles()]
    if isinstance(source, str) and source.startswith("builtin:"):
        raise DataError(f"{source!r} holds questions to calibrate on; perplexity takes 'builtin', a file or texts")
    name, found = sources.read(source, "evaluate on")
    if isinstance(found, sources.Tokens):
        raise DataError(f"perplexity is measured on text, and {name} holds none; give a file, texts or a data set")
    return name, found
