"""Made-up runs, as `lowdim prune` would leave them on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowdim.report.pruning.page import render

Json = dict[str, Any]

LLAMA = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
GPT2 = {
    "attn.c_attn": (768, 2304),
    "attn.c_proj": (768, 768),
    "mlp.c_fc": (768, 3072),
    "mlp.c_proj": (3072, 768),
}
MOE = {
    "self_attn.q_proj": (64, 64),
    **{f"mlp.experts.{e}.{kind}": (32, 64) for e in range(16) for kind in ("up_proj", "down_proj")},
}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def noise(*parts: object) -> float:
    """A number in [-1, 1] that depends on the arguments alone."""
    return int(digest(*parts)[:8], 16) / 0x7FFFFFFF - 1


def make_manifest(
    *,
    blocks: int = 30,
    shapes: dict[str, tuple[int, int]] = LLAMA,
    prefix: str = "model.layers",
    source: str = "builtin:smollm2-135m",
    sparsity: float = 0.6,
) -> Json:
    """A run with OWL: outlying first blocks keep more, the errors grow with depth."""
    layers, values = {}, {}
    for block in range(blocks):
        depth = block / max(blocks - 1, 1)
        for kind, (rows, cols) in shapes.items():
            name, numel = f"{prefix}.{block}.{kind}", rows * cols
            value = 2.2 * math.exp(-6 * depth) + 0.6 * depth + 0.5 + 0.35 * noise(kind) + 0.2 * noise(block, kind)
            share = min(max(sparsity + 0.075 - 0.07 * max(value, 0), 0.2), 0.95)
            nonzeros = round(numel * (1 - share))
            error = 0.03 * math.exp(1.4 * depth + 0.5 * noise(kind, "e") + 0.3 * noise(block, kind, "e"))
            values[name] = round(max(value, 0.05) / 100, 6)
            layers[name] = {
                "numel": numel,
                "nonzeros": nonzeros,
                "sparsity": 1 - nonzeros / numel,
                "block": block,
                "target": round(share, 4),
                "error": round(error, 6),
            }
    total, kept = (sum(layer[key] for layer in layers.values()) for key in ("numel", "nonzeros"))
    return {
        "schema": 1,
        "lowdim": "0.1.0",
        "recipe": {
            "score": {"name": "wanda", "variant": False},
            "repair": {"name": "sparsegpt", "damping": 0.01, "block": 128},
            "allocation": {"name": "owl", "m": 5.0, "lam": 0.08, "pooling": "layer"},
            "pattern": {"name": "unstructured", "group": "auto", "block": 128},
            "refine": {"name": "dsnot"},
            "sparsity": sparsity,
            "calibration": "builtin",
            "samples": 32,
            "context": 512,
            "seed": 0,
            "storage": "packed",
        },
        "seed": 0,
        "storage": "packed",
        "model": {
            "source": source,
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "dtype": "bfloat16",
            "files": {"SmolLM2-135M-Instruct.Q4_1.gguf": digest("model")},
        },
        "data": {
            "calibration": {
                "source": "builtin (wiki articles, even numbers)",
                "hash": digest("data"),
                "samples": 32,
                "context": 512,
                "tokens": 16384,
                "format": "plain",
            }
        },
        "versions": {
            "lowdim": "0.1.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "numpy": "2.4.6",
            "python": "3.11.7",
        },
        "layers": layers,
        "skipped": [
            {"name": "model.embed_tokens", "reason": "embeddings are not pruned"},
            {"name": "lm_head", "reason": "tied to the embedding"},
        ],
        "sparsity": {
            "target": sparsity,
            "prunable": 1 - kept / total,
            "model": (total - kept) / (total * 1.267),
        },
        "allocation": {"name": "owl", "values": values},
        "fallbacks": [
            {"layer": name, "what": "damping raised", "detail": "0.01 to 0.1, the Hessian was singular"}
            for name in list(layers)[:3]
        ],
        "hashes": {
            "masks": {name: digest(name) for name in layers},
            "files": {name: digest(name) for name in ("config.json", "model.safetensors", "tokenizer.json")},
        },
        "evaluation": {
            "perplexity": {
                "protocol": {
                    "text": digest("text"),
                    "context": 512,
                    "tokens": 65536,
                    "tokenizer": {"tokens": 49152, "hash": digest("tokenizer")[:16]},
                    "join": "\n\n",
                    "dtype": "bfloat16",
                    "bos": False,
                },
                "dense": 19.31,
                "sparse": 64.18,
                "difference": {"mean": 1.2011, "stderr": 0.0094},
            },
            "tasks": {
                "ARC easy": {
                    "dense": 0.548,
                    "sparse": 0.421,
                    "difference": -0.127,
                    "stderr": 0.021,
                    "questions": 570,
                },
                "BoolQ": {
                    "dense": 0.598,
                    "sparse": 0.611,
                    "difference": 0.013,
                    "stderr": 0.017,
                    "questions": 400,
                },
                "HellaSwag": {
                    "metric": "acc_norm",
                    "dense": 0.423,
                    "sparse": 0.342,
                    "difference": -0.081,
                    "stderr": 0.015,
                    "questions": 1000,
                },
                "PIQA": {
                    "dense": 0.676,
                    "sparse": 0.611,
                    "difference": -0.065,
                    "stderr": 0.019,
                    "questions": 500,
                },
            },
        },
        "probes": {
            "outliers": {
                str(m): [
                    scale
                    * (2.4 * math.exp(-0.4 * b) + 0.6 + 0.5 * (b / max(blocks - 1, 1)) ** 3 + 0.1 * noise(b, m))
                    / 100
                    for b in range(blocks)
                ]
                for m, scale in ((3, 2.1), (5, 1.0), (7, 0.5), (10, 0.22))
            },
            "alpha": {
                name: 2.6 + 1.8 * entry["block"] / max(blocks - 1, 1) + 0.7 * noise(name, "alpha")
                for name, entry in layers.items()
            },
        },
    }


def bare() -> Json:
    """The least that a manifest may hold."""
    model = {"source": "models/tiny", "architecture": "LlamaForCausalLM", "dtype": "float32"}
    return {"schema": 1, "lowdim": "0.1.0", "storage": "dense", "model": model}


def make_run() -> Json:
    return {
        "stages": [
            {"name": "read the model", "seconds": 2.4, "peak_mb": 412},
            {"name": "measure the dense model", "seconds": 31.7, "peak_mb": 903},
            {"name": "choose sparsities", "seconds": 18.2, "peak_mb": 640},
            {"name": "prune", "seconds": 74.9, "peak_mb": 988},
            {"name": "measure the sparse model", "seconds": 33.1, "peak_mb": 911},
            {"name": "write", "seconds": 0.9, "peak_mb": 430},
        ],
        "machine": {
            "cpu": "Intel Xeon @ 2.60GHz",
            "cores": 2,
            "threads": 2,
            "ram_gb": 24.0,
            "platform": "Linux 6.18",
        },
        "speed": {"dense_tokens_per_s": 38.1, "sparse_tokens_per_s": 37.6, "note": "one sequence, 64 tokens"},
        "size": {
            "dense_bytes": 269_060_552,
            "sparse_bytes": 141_204_096,
            "pruned_layers_bits_per_weight": 7.41,
        },
        "command": "lowdim prune builtin:smollm2-135m runs/owl60 --method sparsegpt --sparsity 0.6 "
        "--allocation owl --set allocation.pooling=layer --set allocation.lam=0.08 --refine dsnot "
        "--samples 32 --context 512 --storage packed",
    }


def make_bench(quality: bool = True) -> Json:
    """What `lowdim bench` found on the pruned model, three dtypes of it."""
    layers, models = [], []
    for dtype, size, top in (("bf16", 16, 2.1), ("int8", 8, 3.6), ("int4", 4, 5.0)):
        for sparsity in (0.0, 0.3, 0.5, 0.6, 0.7, 0.9):
            speed = top * (1 + 0.9 * sparsity)
            layers.append(
                {
                    "names": ["gate_proj", "up_proj"],
                    "count": 60,
                    "rows": 1536,
                    "cols": 576,
                    "engine": "lowdim",
                }
                | {
                    "dtype": dtype,
                    "sparsity": sparsity,
                    "kernel": f"packed {dtype}, avx512",
                    "over_torch": speed,
                }
                | {
                    "microseconds": 100 / speed,
                    "bytes": 1000,
                    "bandwidth_share": 0.5,
                    "over_dense": speed / top,
                }
            )
        for sparsity in (0.0, 0.6):
            models.append(
                {"engine": "lowdim", "dtype": dtype, "sparsity": sparsity, "backend": "native", "reason": ""}
                | {"tokens_per_s": 60 * top * (1 + 0.4 * sparsity), "quartiles": [90.0, 130.0]}
                | {
                    "prefill_tokens_per_s": 500.0,
                    "prompt": 256,
                    "bytes_per_token": round(17e6 * size * (1 - 0.8 * sparsity)),
                }
                | {
                    "bandwidth_share": 0.4,
                    "kernels": {f"packed {dtype}, avx512": 210, "dense int8, avx512": 1},
                }
                | {"over_torch": 3.0, "over_dense": 1 + 0.4 * sparsity, "prefill_over_torch": 0.97}
                | {"perplexity": (19.3 if not sparsity else 64.2) + 16 / size if quality else None}
            )
    models.insert(
        0,
        models[0]
        | {
            "engine": "torch",
            "backend": "generate",
            "tokens_per_s": 38.1,
            "over_torch": 1.0,
            "over_dense": None,
        },
    )
    return {
        "schema": 1,
        "lowdim": "0.1.0",
        "subject": {"name": "runs/owl60", "random_weights": False, "random_zeros": False, "zeros": 0.6},
        "machine": {"cpu": "Intel Xeon @ 2.60GHz", "threads": 2},
        "level": "avx512",
        "build": "gcc 12.2.0, OpenMP",
        "bandwidth": 38.2e9,
        "layers": layers,
        "models": models,
        "notes": ["This is a small model: most of the gain is the runtime's."],
        "protocol": {},
    }


def write_run(folder: Path, manifest: Json, run: Json | None = None, name: str = "owl60") -> Path:
    """Leave a run on disk and return its directory."""
    out = folder / name
    out.mkdir(parents=True)
    (out / "lowdim.json").write_text(json.dumps(manifest))
    if run is not None:
        (folder / f"{name}.run.json").write_text(json.dumps(run))
    return out


@pytest.fixture
def manifest() -> Json:
    return make_manifest(blocks=10)


@pytest.fixture
def small() -> Json:
    """A run without a chart, quickly drawn."""
    return bare()


@pytest.fixture
def run() -> Json:
    return make_run()


@pytest.fixture
def bench() -> Json:
    return make_bench()


@pytest.fixture(scope="session")
def page() -> str:
    """The page of the run below, drawn once."""
    return render(make_manifest(blocks=10), make_run(), bench=make_bench(), out="owl60")


@pytest.fixture
def make() -> Callable[..., Json]:
    return make_manifest


@pytest.fixture(params=["llama", "one layer", "gpt2", "deep", "experts", "bare"])
def any_manifest(request: pytest.FixtureRequest) -> Json:
    """Runs of every outline: names, numbers of blocks, and how much was recorded."""
    if request.param == "bare":
        return bare()
    options: dict[str, Json] = {
        "llama": {},
        "one layer": {"blocks": 1, "shapes": {"mlp.up_proj": (4, 4)}},
        "gpt2": {"blocks": 12, "shapes": GPT2, "prefix": "transformer.h"},
        "deep": {"blocks": 80},
        "experts": {"blocks": 24, "shapes": MOE},
    }
    return make_manifest(**options[request.param])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return lambda *args, **kwargs: write_run(tmp_path, *args, **kwargs)
