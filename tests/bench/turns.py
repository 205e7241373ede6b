"""Shared by the other programs of networks.lua: formula weights and inputs, and alternating runs.

Weights and inputs are made from their names (tests/support/formula.lua is the other copy), so both sides compute the same.
"""
import os, sys, tempfile, time

import numpy as np


def splitmix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def formula(name, shape, kind="input"):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        start = np.uint64(h) ^ splitmix(np.array([1], np.uint64))[0]
        z = splitmix(start + np.arange(n, dtype=np.uint64))
    v = (z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1
    if kind == "input":
        v = v * 3**0.5
    elif kind == "weight" and len(shape) >= 2:
        v = v * (3 / (n / shape[0])) ** 0.5
    elif kind == "weight":
        v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
    return v.astype(np.float32).reshape(shape)


def seconds(f):
    """Wall and CPU seconds of one run."""
    wall, own = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - wall, time.process_time() - own


def measure(name, *forms):
    """Prints `NAME FILE.npy`, the result of the first variant. Then, for each line `go` on stdin, it prints the seconds of a
    run of the fastest variant; any other line ends the network. A variant is a function that returns an array."""
    handle, path = tempfile.mkstemp(suffix=".npy")
    os.close(handle)
    np.save(path, np.ascontiguousarray(forms[0](), dtype=np.float32))
    best = min(forms, key=lambda f: min(seconds(f)[1] for _ in range(2)))
    print(name, path, flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            break
        print(*seconds(best), flush=True)
