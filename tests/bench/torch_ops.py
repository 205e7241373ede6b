"""PyTorch's times on the shapes of ops.txt, for comparison with cpu_ops.lua.

    python3 tests/bench/torch_ops.py [build/crescent]

It prints medians, and minima in brackets (more meaningful on a busy machine). If the program is
given, it runs cpu_ops.lua first and prints both with their ratio (below 1: Crescent is faster).
Threads: CR_THREADS, else all cores. Each operation is timed as a PyTorch model runs it: NCHW convolutions, F.linear, F.scaled_dot_product_attention on [B h T d]
reshaped from [B T C] and back, temporal attention on [B HW F C] made contiguous from [B F HW C].
"""
import json
import math
import os
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("CR_THREADS", os.cpu_count())))
torch.set_grad_enabled(False)
here = os.path.dirname(os.path.abspath(__file__))


def median_time(fn, seconds=0.15):
    for _ in range(3):
        fn()
    times, start = [], time.perf_counter()
    while (len(times) < 7 or time.perf_counter() - start < seconds) and len(times) < 1000:
        t = time.perf_counter()
        fn()
        times.append((time.perf_counter() - t) * 1e3)
    times.sort()
    return times[(len(times) - 1) // 2], times[0]


def linear(m, k, n):
    w, b, x = torch.randn(n, k), torch.randn(n), torch.randn(m, k)
    return lambda: F.linear(x, w, b)


def conv(n, h, w, c, o, k, s, g=1):
    x, weight, b = torch.randn(n, c, h, w), torch.randn(o, c // g, k, k), torch.randn(o)
    return lambda: F.conv2d(x, weight, b, stride=s, padding=k // 2, groups=g)


def heads_first(x, heads):
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attention(b, t, s, c, heads):
    q, k, v = torch.randn(b, t, c), torch.randn(b, s, c), torch.randn(b, s, c)

    def run():
        y = F.scaled_dot_product_attention(heads_first(q, heads), heads_first(k, heads), heads_first(v, heads))
        return y.transpose(1, 2).reshape(b, t, c)

    return run


def temporal(b, f, hw, c, heads):
    qkv = [torch.randn(b, f, hw, c) for _ in range(3)]

    def run():
        q, k, v = (heads_first(x.transpose(1, 2).reshape(b * hw, f, c), heads) for x in qkv)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(b, hw, f, c)

    return run


def geglu(m, d):
    x = torch.randn(m, 2 * d)

    def run():
        a, g = x.chunk(2, dim=-1)
        return a * F.gelu(g)

    return run


def main():
    ours = {}
    if len(sys.argv) > 1:
        out = subprocess.run([sys.argv[1], os.path.join(here, "cpu_ops.lua"), "--json"], check=True, capture_output=True)
        ours = json.loads(out.stdout)
    logs = []
    for line in open(os.path.join(here, "ops.txt")):
        name = line.split("#")[0].strip()
        if not name:
            continue
        kind, *numbers = name.split()
        median, least = median_time(globals()[kind](*map(int, numbers)))
        text = f"{name:32s} torch {median:8.3f} ({least:8.3f}) ms"
        if name in ours:
            m, l = ours[name]
            text += f"   ours {m:8.3f} ({l:8.3f}) ms   ratio {m / median:5.2f} ({l / least:5.2f})"
            logs.append((math.log(m / median), math.log(l / least)))
        print(text, flush=True)
    if logs:
        means = [math.exp(sum(x) / len(logs)) for x in zip(*logs)]
        print(f"geometric mean of the ratios: {means[0]:.2f} ({means[1]:.2f})")


main()
