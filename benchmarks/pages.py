"""Put a measured table into a page of the documentation, between its two markers."""

from __future__ import annotations

import re
from pathlib import Path


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- benchmark: NAME -->`` and ``<!-- /benchmark: NAME -->``.

    Raises:
        SystemExit: the page has no such place.
    """
    begin, end = f"<!-- benchmark: {name} -->", f"<!-- /benchmark: {name} -->"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n{text.strip()}\n{end}",
        old,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{page} has {count} places marked {begin}")
    page.write_text(new, encoding="utf-8")
