"""Time pruning against llm-compressor: same model, tokens and threads, one interleaved run.

Every measurement is a whole process: interpreter, imports, loading, pruning, saving. Peak memory is the kernel's
figure for the process. Perplexities are measured afterwards, on the same windows, outside the timing.

    python benchmarks/prune.py --samples 32 128 --repeats 3 --json benchmarks/results/prune.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEER = ("torch==2.13.0", "llmcompressor==0.14.0.1")
REQUIRED = {"wanda": 2.5, "sparsegpt": 3.0}


@dataclass
class Measurement:
    """One process."""

    tool: str
    method: str
    samples: int
    seconds: float
    prune_seconds: float
    peak_mb: float


def measure(command: list[str]) -> tuple[float, float, dict[str, float]]:
    """Run a process to its end; return its wall seconds, its peak resident megabytes, and its last line as JSON."""
    with tempfile.TemporaryFile("w+") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        log.seek(0)
        lines = log.read().strip().splitlines()
    if status != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 1024, json.loads(lines[-1])


def peer_python(home: Path) -> Path:
    """Return the interpreter of llm-compressor's environment, made on first use."""
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    if subprocess.run([python, "-c", "import llmcompressor"], capture_output=True).returncode:
        for package in PEER:
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python


def prepare(scratch: Path, samples: int) -> tuple[Path, Path]:
    """Return the fp32 model's directory and a file of calibration tokens.

    Made in a process of its own: the kernel counts what a parent holds towards its children's peak memory.
    """
    tokens = scratch / f"tokens-{samples}.safetensors"
    code = (
        "import sys; from transformers import AutoTokenizer; from lowdim.data.calibration import calibration\n"
        "from lowdim.models.disk.source import resolve\n"
        "model = resolve('builtin:smollm2-135m', dtype='float32').path\n"
        "tokenizer = AutoTokenizer.from_pretrained(model)\n"
        "calibration('builtin', tokenizer, samples=int(sys.argv[2]), context=512).save(sys.argv[1])\n"
        "print(model)"
    )
    command = [sys.executable, "-c", code, str(tokens), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1]), tokens


def quality_of(path: Path, windows: int) -> dict[str, float]:
    """Return a pruned model's perplexity on held-out articles, 512 tokens a window; and its blocks' zeros.

    It computes in bf16, or in fp32 where the processor has no products of bf16 and would emulate them.
    """
    code = (
        "import sys, torch, lowdim; from transformers import AutoTokenizer; from lowdim.data.windows import windows\n"
        "from lowdim.models.disk.source import resolve\n"
        "tok = AutoTokenizer.from_pretrained(resolve('builtin:smollm2-135m').path)\n"
        "from lowdim.infer.sparse.matrix import multiplies_bf16\n"
        "model = lowdim.load(sys.argv[1], dtype=torch.bfloat16 if multiplies_bf16() else torch.float32)\n"
        "text = windows('builtin', tok, 512, limit=int(sys.argv[2]))\n"
        "linear = [m.weight for b in model.model.layers for m in b.modules() if isinstance(m, torch.nn.Linear)]\n"
        "zeros = sum(int((w == 0).sum()) for w in linear) / sum(w.numel() for w in linear)\n"
        "value = lowdim.perplexity(model, text, tokens_per_batch=512).value\n"
        "import json; print(json.dumps({'perplexity': value, 'zeros': zeros}))"
    )
    command = [sys.executable, "-c", code, str(path), str(windows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all pairs, interleaved, and return the rows."""
    python = peer_python(arguments.peer)
    rows: list[Measurement] = []
    quality: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        prepared = {samples: prepare(scratch, samples) for samples in arguments.samples}
        for repeat in range(arguments.repeats):
            for samples, (model, tokens) in prepared.items():
                for method in arguments.methods:
                    common = ["--method", method, "--sparsity", "0.6", "--threads", str(arguments.threads)]
                    tools = {
                        "lowdim": [sys.executable, HERE / "ours.py"],
                        "llm-compressor": [python, HERE / "peer_llmcompressor.py"],
                    }
                    for tool, start in tools.items():
                        out = scratch / "out"
                        shutil.rmtree(out, ignore_errors=True)
                        seconds, peak, inner = measure([*map(str, start), str(model), str(tokens), str(out), *common])
                        pruning = inner.get("prune", inner.get("total", 0.0))
                        rows.append(Measurement(tool, method, samples, seconds, pruning, peak))
                        print(
                            f"{tool:>15} {method:>10} {samples:>4} x 512 {seconds:7.1f} s {peak:7.0f} MB",
                            flush=True,
                        )
                        if repeat == 0:
                            quality[f"{tool} {method} {samples}"] = quality_of(out, arguments.windows)
    return {"rows": [asdict(row) for row in rows], "quality": quality}


def table(result: dict[str, Any]) -> str:
    """Return medians and ratios as Markdown."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["method"], row["samples"], row["tool"]), []).append(row)

    def median(key: tuple[str, int, str], field: str) -> float:
        return statistics.median(row[field] for row in groups[key])

    lines = [
        "| method | tokens | seconds: ours | llm-compressor | faster | aim | MB: ours | llm-compressor | ratio "
        "| perplexity: ours | llm-compressor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, samples in dict.fromkeys((m, s) for m, s, _ in groups):
        ours, peer = (method, samples, "lowdim"), (method, samples, "llm-compressor")
        seconds, other = median(ours, "seconds"), median(peer, "seconds")
        peak, high = median(ours, "peak_mb"), median(peer, "peak_mb")
        found = [result["quality"][f"{tool} {method} {samples}"] for tool in ("lowdim", "llm-compressor")]
        quality = " | ".join(f"{one['perplexity']:.1f} at {one['zeros']:.2%} zeros" for one in found)
        lines.append(
            f"| {method} | {samples} x 512 | {seconds:.1f} | {other:.1f} | {other / seconds:.2f}x "
            f"| {REQUIRED[method]}x "
            f"| {peak:.0f} | {high:.0f} | {peak / high:.2f} | {quality} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"], choices=list(REQUIRED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--peer", type=Path, default=Path(".venv-llmcompressor"), help="environment, made if missing")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = run(arguments)
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
