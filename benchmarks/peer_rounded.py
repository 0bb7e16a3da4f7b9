"""A model as torchao (not compiled) or OpenVINO rounds and runs it: run by `rivals.py` in an environment of its own."""

import argparse
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

GROUP = 64


def torchao(path: str, kind: str, dtype: str, threads: int) -> tuple[Any, int]:
    """Return Hugging Face's model with rounded weights, in a number type, and the bytes of its tensors."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    int4 = PrototypeInt4WeightOnlyConfig(group_size=GROUP)
    quantize_(model, Int8WeightOnlyConfig() if kind == "int8" else int4)
    held = io.BytesIO()
    torch.save(model.state_dict(), held)
    return model, len(held.getbuffer())


def openvino(path: str, kind: str, dtype: str, threads: int) -> tuple[Any, int]:
    """Return a model converted by optimum-intel, rounded by NNCF, and the bytes of its weights; made once."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    home = Path(sys.prefix) / f"{Path(path).name}-{kind}"
    if not home.exists():
        int4 = {"bits": 4, "sym": True, "group_size": GROUP, "ratio": 1.0}
        rounding = OVWeightQuantizationConfig(**({"bits": 8} if kind == "int8" else int4))
        model = OVModelForCausalLM.from_pretrained(path, export=True, quantization_config=rounding, compile=False)
        model.save_pretrained(home.with_suffix(".tmp"))
        home.with_suffix(".tmp").rename(home)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return OVModelForCausalLM.from_pretrained(home, ov_config=settings), (home / "openvino_model.bin").stat().st_size


def run(model: Any, prompt: list[int], tokens: int) -> dict[str, Any]:
    """Return the seconds of a prompt, and of every step that generates a token."""
    ids, past, seconds = torch.tensor([prompt]), None, []
    for step in range(tokens + 1):
        begun = time.perf_counter()
        mask = torch.ones(1, len(prompt) + step, dtype=torch.long)
        found = model(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True)
        ids, past = found.logits[:, -1:].argmax(-1), found.past_key_values
        seconds.append(time.perf_counter() - begun)
    return {"prefill": seconds[0], "seconds": seconds[1:]}


def perplexity(model: Any, windows: list[list[int]]) -> float:
    """Return the perplexity of windows of tokens, the first of each given."""
    sums = []
    for window in windows:
        ids = torch.tensor([window])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
        sums.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    return math.exp(sum(sums) / len(sums))


def main() -> None:
    """Load and round a model, then answer line by line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=("torchao", "openvino"))
    parser.add_argument("model", help="a directory as Transformers writes it")
    parser.add_argument("kind", choices=("int8", "int4"))
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make = {"torchao": torchao, "openvino": openvino}[given.engine]
    with torch.inference_mode():
        model, size = make(given.model, given.kind, given.dtype, given.threads)
        for line in sys.stdin:
            question = json.loads(line)
            if "windows" in question:
                answer = {"perplexity": perplexity(model, question["windows"]), "bytes": size}
            else:
                answer = run(model, question["prompt"], question["tokens"])
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
