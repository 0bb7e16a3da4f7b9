"""llama.cpp through its C API: run by `runtime.py` in an environment of its own."""

import argparse
import ctypes
import json
import os
import sys
import time

import llama_cpp as ll


def main() -> None:
    """Load a GGUF file, then answer each line with the seconds of every token that was generated greedily."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(given.gguf.encode(), ll.llama_model_default_params())
    settings = ll.llama_context_default_params()
    settings.n_ctx, settings.n_batch = 1024, 512
    settings.n_threads = settings.n_threads_batch = given.threads
    context = ll.llama_init_from_model(model, settings)
    sampler = ll.llama_sampler_init_greedy()
    for line in sys.stdin:
        question = json.loads(line)
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        prompt = question["prompt"]
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        begun = time.perf_counter()
        assert ll.llama_decode(context, ll.llama_batch_get_one(ids, len(prompt))) == 0
        token = ll.llama_sampler_sample(sampler, context, -1)
        prefill = time.perf_counter() - begun
        seconds = []
        for _ in range(question["tokens"]):
            one = (ctypes.c_int32 * 1)(token)
            begun = time.perf_counter()
            assert ll.llama_decode(context, ll.llama_batch_get_one(one, 1)) == 0
            token = ll.llama_sampler_sample(sampler, context, -1)
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"prefill": prefill, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
