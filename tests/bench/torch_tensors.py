"""Compares PyTorch eager with cuda_tensors.lua in one run: python3 tests/bench/torch_tensors.py PROGRAM [--only topk,sort]

Prints milliseconds of both and their ratio (below 1: Crescent is faster) as one table; --only: rows whose names contain one of
these words. A ratio above the limit is marked: 1.1 for 64 MB and more, 1.2 for small tensors."""
import argparse
import json
import os
import subprocess

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('program')
parser.add_argument('--only', default='')
args = parser.parse_args()
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
    half, brain, mask, flat = x.half(), x.bfloat16(), x > 0, x.view(-1)
    index, columns = torch.randperm(shape[0], device='cuda'), torch.randperm(shape[1], device='cuda')
    places = torch.randint(shape[0], shape, device='cuda')
    return {f'{size} {name}': fn for name, fn in {
        'add': lambda: x + y, 'mul f16': lambda: half * 2, 'exp': lambda: x.exp(), 'log1p of bool': lambda: mask.log1p(),
        'remainder': lambda: x.remainder(0.7), 'clamp': lambda: x.clamp(-1, 1), 'where': lambda: torch.where(mask, x, y),
        'where f16': lambda: torch.where(mask, half, 0), 'masked_fill': lambda: x.masked_fill(mask, 0),
        'to f16': lambda: x.half(), 'transpose': lambda: x.t().contiguous(), 'cat': lambda: torch.cat([x, y], 1),
        'index_select': lambda: x.index_select(0, index), 'index_select columns': lambda: x.index_select(1, columns),
        'gather': lambda: x.gather(0, places), 'masked_select': lambda: x.masked_select(mask), 'nonzero': lambda: mask.nonzero(),
        'sum': lambda: x.sum(), 'sum bf16': lambda: brain.sum(), 'sum of bool': lambda: mask.sum(),
        'mean rows': lambda: x.mean(1), 'mean columns': lambda: x.mean(0), 'max rows': lambda: x.amax(1),
        'max columns': lambda: x.amax(0), 'argmax rows': lambda: x.argmax(1), 'var rows': lambda: x.var(1),
        'softmax': lambda: x.softmax(-1), 'cumsum': lambda: x.cumsum(1), 'sort': lambda: x.sort(1),
        'sort f16': lambda: half.sort(1), 'topk 10': lambda: x.topk(10, 1), 'topk 10 of columns': lambda: x.topk(10, 0),
        'topk 10 of all': lambda: flat.topk(10), 'topk 1000 of all': lambda: flat.topk(1000), 'sort all': lambda: flat.sort(),
        'cumsum all': lambda: flat.cumsum(0)}.items()}


out = subprocess.run([args.program, os.path.join(here, 'cuda_tensors.lua'), '--json', '--only', args.only], check=True,
                     capture_output=True)
ours = json.loads(out.stdout.splitlines()[-1])
worse = 0
print(f'{"milliseconds":28s} {"ours":>9s} {"torch":>9s} ratio')
for size, shape, bar in (('large', (4096, 8192), 1.1), ('small', (32, 64), 1.2)):
    for name, fn in rows(size, shape).items():
        if name in ours:
            torch_ms = time_of(fn)
            ratio = ours[name] / torch_ms
            worse += ratio > bar
            print(f'{name:28s} {ours[name]:9.4f} {torch_ms:9.4f} {ratio:5.2f}{"  above" if ratio > bar else ""}', flush=True)
for name in ours:
    if name.startswith('step'):
        print(f'{name:28s} {ours[name]:9.4f}')
print(f'{worse} above the limit (1.1 for large tensors, 1.2 for small ones)')
