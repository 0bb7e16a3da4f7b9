"""DeepSparse on a stack of pruned matrices: run by `runtime.py` in an environment of its own (Python 3.11)."""

import argparse
import json
import os
import sys
import time

import numpy as np
import onnx
from deepsparse import Engine
from onnx import TensorProto, helper, numpy_helper


def graph(weights: np.ndarray) -> onnx.ModelProto:
    """Return y = W_n relu( ... relu(W_1 x)) as an ONNX model; weights: fp32 [layers, n, n]."""
    nodes, constants, name = [], [], "x"
    for index, weight in enumerate(weights):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"h{index}"]))
        nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"]))
        name = f"r{index}"
    width = weights.shape[1]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
    made = helper.make_graph(nodes, "stack", [x], [y], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def main() -> None:
    """Compile the stack, then answer each line with the seconds of some passes through it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", help="fp32 [layers, n, n] in a .npy file")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine greets on stdout
    weights = np.load(given.weights, mmap_mode="r")
    path = given.weights + ".onnx"
    onnx.save(graph(weights), path)
    engine = Engine(path, batch_size=1, num_cores=given.threads)
    os.unlink(path)
    for line in sys.stdin:
        question = json.loads(line)
        x = np.full((1, weights.shape[1]), 1.0, dtype=np.float32) if "x" not in question else None
        x = x if x is not None else np.asarray([question["x"]], dtype=np.float32)
        seconds = []
        for _ in range(question["passes"]):
            begun = time.perf_counter()
            (y,) = engine.run([x])
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": seconds, "y": y[0].tolist()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
