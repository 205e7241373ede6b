"""PyTorch eager beside cuda_tensors.lua in one run: python3 tests/bench/torch_tensors.py PROGRAM

Prints milliseconds of both and their ratio (below 1: ours is faster)."""
import json
import os
import subprocess
import sys

import torch

here = os.path.dirname(os.path.abspath(__file__))


def time_of(fn):
    for _ in range(5):
        fn()
    torch.cuda.synchronize()
    times = []
    for _ in range(15):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(4):
            fn()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 4)
    return sorted(times)[len(times) // 2]


def rows(size, shape):
    x, y = torch.randn(shape, device='cuda'), torch.randn(shape, device='cuda')
    half, mask = x.half(), x > 0
    index = torch.randperm(shape[0], device='cuda')
    flat = x.view(-1)
    return {f'{size} {name}': fn for name, fn in {
        'add': lambda: x + y, 'mul f16': lambda: half * 2, 'exp': lambda: x.exp(), 'log1p': lambda: mask.log1p(),
        'remainder': lambda: x.remainder(0.7), 'clamp': lambda: x.clamp(-1, 1), 'where': lambda: torch.where(mask, x, y),
        'to f16': lambda: x.half(), 'transpose': lambda: x.t().contiguous(), 'cat': lambda: torch.cat([x, y], 1),
        'index_select': lambda: x.index_select(0, index), 'sum': lambda: x.sum(), 'mean rows': lambda: x.mean(1),
        'max columns': lambda: x.amax(0), 'var rows': lambda: x.var(1), 'softmax': lambda: x.softmax(-1),
        'cumsum': lambda: x.cumsum(1), 'sort': lambda: x.sort(1), 'topk 10': lambda: x.topk(10, 1),
        'sort all': lambda: flat.sort(), 'cumsum all': lambda: flat.cumsum(0)}.items()}


out = subprocess.run([sys.argv[1], os.path.join(here, 'cuda_tensors.lua'), '--json'], check=True, capture_output=True)
ours = json.loads(out.stdout.splitlines()[-1])
worse = 0
for size, shape in (('large', (4096, 8192)), ('small', (32, 64))):
    for name, fn in rows(size, shape).items():
        torch_ms = time_of(fn)
        ratio = ours[name] / torch_ms
        worse += ratio > (1.1 if size == 'large' else 1.2)
        print(f'{name:28s} ours {ours[name]:9.4f}  torch {torch_ms:9.4f} ms  ratio {ratio:5.2f}', flush=True)
print(f'{worse} beyond the bar (1.1 of large, 1.2 of small ones)')
