"""How fast, and in how much memory, text becomes the tokens that a pre-training reads: split, tokenizer, tokens.

    python benchmarks/pretrain_corpus.py ~/corpus
    python benchmarks/pretrain_tokens.py ~/corpus/corpus.jsonl --json benchmarks/results/pretrain_tokens.json

The documents are those of a corpus over and over with 2% of their words exchanged, so that no two are equal; they, and
the tokens, are in a directory that is deleted afterwards. Every stage is timed in one child process, whose memory is
that of the whole process, torch and the tokens that it maps among it; a child that only imports says what that costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lowdim.runs.clock import peak_memory

VOCABULARY = 4096


def write(corpus: Path, file: Path, size: float) -> None:
    """Write so many bytes of documents, as JSON lines."""
    draw, texts = random.Random(0), [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()]
    with file.open("w", encoding="utf-8") as out:
        written = 0
        while written < size:
            for text in texts:
                words = text.split(" ")
                for _ in range(max(1, len(words) // 50)):
                    words[draw.randrange(len(words))] = draw.choice(words)
                written += out.write(json.dumps({"text": " ".join(words)}) + "\n")
                if written >= size:
                    break


def measured(file: Path | None) -> dict[str, Any]:
    """Make the tokens of a file; return the seconds of each stage, and the peak of memory behind it."""
    from lowdim.data.corpus import cache
    from lowdim.data.corpus.split import Corpus

    found: dict[str, Any] = {"imports": {"peak_bytes": peak_memory()}}
    if file is None:
        return found
    made: dict[str, Any] = {}
    stages = {
        "split": lambda: Corpus([str(file)], 0.005).split(),
        "tokenizer": lambda: cache.learnt(made["split"], VOCABULARY),
        "tokens": lambda: cache.tokenised(made["split"], made["tokenizer"]).facts,
    }
    for name, work in stages.items():
        wall, busy = time.perf_counter(), time.process_time()
        made[name] = work()
        found[name] = {
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - busy, 1),
            "peak_bytes": peak_memory(),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    facts = made["tokens"]
    return {
        **found,
        "bytes": file.stat().st_size,
        "made": {key: facts["train"][key] + facts["validation"][key] for key in ("documents", "tokens")},
    }


def child(file: str, home: Path) -> dict[str, Any]:
    """Measure in a process of its own, whose cache is in a directory."""
    words = [sys.executable, __file__, "--measure", file]
    done = subprocess.run(words, env=os.environ | {"LOWDIM_CACHE": str(home)}, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure, print and write."""
    from lowdim.core.machine import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measured(Path(given.measure) if given.measure else None)))
        return
    runs = []
    for size in given.gigabytes:
        with tempfile.TemporaryDirectory() as home:
            write(given.corpus, Path(home) / "text.jsonl", 1e9 * size)
            runs.append(child(str(Path(home) / "text.jsonl"), Path(home) / "cache"))
            print(json.dumps(runs[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
