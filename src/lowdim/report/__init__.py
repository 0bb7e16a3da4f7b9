"""One self-contained HTML page per run: what was asked, what was done, what it bought and what it cost."""
