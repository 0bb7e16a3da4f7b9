"""llama.cpp through its C API: run by `runtime.py` and `rivals.py` in an environment of its own.

Answers each line of JSON with one: the seconds of a prompt and of every token generated greedily after it, for one
stream or for several at once; or writes the model in another of its kinds.
"""

import argparse
import ctypes
import json
import os
import sys
import time

import llama_cpp as ll

ROOM = 1024
"""Tokens that a stream may hold."""


class Streams:
    """A context in which some sequences are decoded together."""

    def __init__(self, model: ctypes.c_void_p, threads: int, count: int) -> None:
        settings = ll.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = ROOM * count, 512, count
        settings.n_threads = settings.n_threads_batch = threads
        self.context, self.count = ll.llama_init_from_model(model, settings), count
        self.sampler = ll.llama_sampler_init_greedy()

    def run(self, prompt: list[int], tokens: int) -> dict[str, object]:
        """Return the seconds of all prompts, and of every step."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        begun = time.perf_counter()
        chosen = [
            self._feed([(token, at, stream) for at, token in enumerate(prompt)])[0] for stream in range(self.count)
        ]
        prefill, seconds = time.perf_counter() - begun, []
        for step in range(tokens):
            begun = time.perf_counter()
            chosen = self._feed([(token, len(prompt) + step, stream) for stream, token in enumerate(chosen)])
            seconds.append(time.perf_counter() - begun)
        return {"prefill": prefill, "seconds": seconds}

    def _feed(self, entries: list[tuple[int, int, int]]) -> list[int]:
        """Take (token, position, stream) in; return the likeliest token after the last of each stream."""
        last = {stream: place for place, (*_, stream) in enumerate(entries)}
        batch = ll.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for place, (token, at, stream) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, at
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
            batch.logits[place] = last[stream] == place
        assert ll.llama_decode(self.context, batch) == 0
        found = [ll.llama_sampler_sample(self.sampler, self.context, place) for place in last.values()]
        ll.llama_batch_free(batch)
        return found


def requantize(source: str, target: str, ftype: int) -> dict[str, object]:
    """Write a GGUF file in another kind, a number of llama.cpp's ``llama_ftype``."""
    params = ll.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = ftype, True, os.cpu_count()
    assert ll.llama_model_quantize(source.encode(), f"{target}.tmp".encode(), ctypes.byref(params)) == 0
    os.replace(f"{target}.tmp", target)
    return {"written": target}


def main() -> None:
    """Load a GGUF file, then answer line by line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(given.gguf.encode(), ll.llama_model_default_params())
    contexts: dict[int, Streams] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "ftype" in question:
            answer = requantize(given.gguf, question["target"], question["ftype"])
        else:
            count = question.get("streams", 1)
            if count not in contexts:
                contexts[count] = Streams(model, given.threads, count)
            answer = contexts[count].run(question["prompt"], question["tokens"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
