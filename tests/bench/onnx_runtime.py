"""Runs an ONNX network alternately in onnxruntime and in Crescent: the difference of the results, and the times.

    python tests/bench/onnx_runtime.py MODEL.onnx 1,3,480,640 [RUNS [IMAGE.npy]]

A typical difference: on five photographs the error of CenterFace's output 538 (values up to 4 to 5), compared with float64, was
4.6e-6 to 5.3e-5 in Crescent and 4.9e-6 to 1.7e-5 in onnxruntime; Crescent's was smaller on two of the five. Direct sums instead of
Winograd's method, or split sums of 1x1 convolutions, hardly change it: the network amplifies rounding errors of its first layers,
which are equal within flat areas.

Needs onnx, onnxruntime and numpy from PyPI. IMAGE.npy: the first input, instead of noise in 0 .. 255. Both use two threads.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime

onnxruntime.set_default_logger_severity(4)
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
program = os.path.join(root, "build", "crescent")
path, shape = sys.argv[1], [int(s) for s in sys.argv[2].split(",")]
runs = int(sys.argv[3]) if len(sys.argv) > 3 else 5

model = onnx.load(path)
entry = model.graph.input[0]
for k, dim in enumerate(entry.type.tensor_type.shape.dim):
    dim.dim_value = shape[k]
for out in model.graph.output:
    out.type.tensor_type.ClearField("shape")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.log_severity_level = 4
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
x = np.load(sys.argv[4]) if len(sys.argv) > 4 else np.random.RandomState(0).rand(*shape).astype(np.float32) * 255
x = np.ascontiguousarray(x, np.float32)
want = session.run(None, {entry.name: x})

with tempfile.TemporaryDirectory() as folder:
    np.save(folder + "/x.npy", x)
    subprocess.run([program, "onnx", path, "--in", f"{entry.name}={folder}/x.npy", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    for out, y in zip(model.graph.output, want):
        z = np.load(f"{folder}/{out.name.replace('/', '_')}.npy")
        off = np.abs(z - y).max()
        print(f"{out.name}: {list(y.shape)}, error {off:.2e}, {off / np.abs(y).max():.2e} of the largest value")

best = [float("inf"), float("inf")]
for _ in range(runs):
    for _ in range(4):
        start = time.perf_counter()
        session.run(None, {entry.name: x})
        best[0] = min(best[0], 1e3 * (time.perf_counter() - start))
    line = subprocess.run([program, "tests/bench/onnx.lua", "--model", os.path.abspath(path), "--shape", sys.argv[2], "--runs", "4"],
                          check=True, capture_output=True, text=True, cwd=root, env={**os.environ, "CR_THREADS": "2"}).stdout
    best[1] = min(best[1], float(re.search(r"least ([\d.]+)", line).group(1)))
print(f"minimum of {4 * runs} runs, two threads: onnxruntime {best[0]:.1f} ms, Crescent {best[1]:.1f} ms, {best[0] / best[1]:.2f} x its speed")
