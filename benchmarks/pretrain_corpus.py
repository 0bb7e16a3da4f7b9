"""The documentation corpus of ``benchmarks/pretrain.py``: clean prose of Debian packages, as JSON lines.

    python benchmarks/pretrain_corpus.py ~/corpus

Packages are fetched with apt-get into the folder, opened there and not installed; those that the archive no longer has
are left out, and said. Prose is paragraphs of more than 80 characters, four fifths letters and blanks, each once.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

ENTRIES = 50  # of a dictionary, in a document


def paragraphs(text: str, seen: set[int]) -> str:
    """Return the prose of a text."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        plain = sum(c.isalpha() or c == " " for c in line)
        if len(line) > 80 and plain > 0.8 * len(line) and hash(line) not in seen:
            seen.add(hash(line))
            kept.append(line)
    return "\n".join(kept)


def files(pattern: str, strip: str = "") -> Callable[[Path], Iterator[str]]:
    """Return what reads every file of a package that fits a pattern, each a document."""

    def read(root: Path) -> Iterator[str]:
        for path in sorted(root.glob(pattern)):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = data.decode("utf-8", "replace")
            yield re.sub(strip, "", text) if strip else text

    return read


def kernel(root: Path) -> Iterator[str]:
    """Read the documentation of Linux."""
    for ending in ("rst.gz", "txt.gz"):
        yield from files(f"usr/share/doc/linux-doc-*/Documentation/**/*.{ending}")(root)


def dictionary(root: Path) -> Iterator[str]:
    """Read the entries of Webster's dictionary, some to a document."""
    text = gzip.decompress(next(root.glob("usr/share/dictd/gcide.dict.dz")).read_bytes()).decode("utf-8", "replace")
    text = re.sub(r"\[.*?\]|\{|\}|\\", "", text)
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text)]
    yield from ("\n\n".join(entries[i : i + ENTRIES]) for i in range(0, len(entries), ENTRIES))


def glosses(root: Path) -> Iterator[str]:
    """Read the glosses of WordNet, some to a document."""
    for path in sorted(root.glob("usr/share/wordnet/data.*")):
        lines = path.read_text("latin1").splitlines()
        found = [line.partition(" | ")[2].strip() for line in lines if not line.startswith("  ")]
        yield from ("\n".join(found[i : i + 4 * ENTRIES]) for i in range(0, len(found), 4 * ENTRIES))


PACKAGES: dict[str, tuple[Callable[[Path], Iterator[str]], bool]] = {  # reader, and whether paragraphs are filtered
    "linux-doc-6.1": (kernel, True),
    "python3.11-doc": (files("usr/share/doc/python3.11/html/_sources/**/*.txt"), True),
    "perl-doc": (files("usr/share/perl/*/pod/*.pod", r"[A-Z]<<?|>"), True),
    "dict-gcide": (dictionary, True),
    "wordnet-base": (glosses, False),
}


def fetched(name: str, home: Path) -> Path | None:
    """Return a package's files, or None where it cannot be had."""
    root = home / name
    if root.exists():
        return root
    done = subprocess.run(["apt-get", "download", "-q", name], cwd=home, capture_output=True, text=True, check=False)
    package = next(home.glob(f"{name}_*.deb"), None)
    if done.returncode or package is None:
        print(f"{name}: not to be had ({done.stderr.strip().splitlines()[-1:]})")
        return None
    print(f"{name}: {package.name} sha256 {hashlib.sha256(package.read_bytes()).hexdigest()}")
    subprocess.run(["dpkg", "-x", package, root], check=True)
    return root


def main() -> None:
    """Write ``HOME/corpus.jsonl``; print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    home: Path = parser.parse_args().home
    home.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    with (home / "corpus.jsonl").open("w", encoding="utf-8") as out:
        for name, (read, prose) in PACKAGES.items():
            root, count, size = fetched(name, home), 0, 0
            for text in read(root) if root else ():
                clean = paragraphs(text, seen) if prose else text
                if len(clean) > 200:
                    out.write(json.dumps({"text": clean, "source": name}) + "\n")
                    count, size = count + 1, size + len(clean)
            print(f"{name}: {count:,} documents, {size / 1e6:.1f} MB")
    print(f"{home / 'corpus.jsonl'}: sha256 {hashlib.sha256((home / 'corpus.jsonl').read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
