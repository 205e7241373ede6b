#!/usr/bin/env python3
"""Times the upscaling networks in PyTorch on one GPU, in float16 and channels-last, for comparison with bench/cuda_upscale.lua.

usage: torch_upscale.py [--net x4plus,animevideov3] [--mode eager,graph,compile] [--runs 20]

Weights are random: only time and memory are measured. Prints a line for each network, size and mode: median ms, TFLOP/s,
peak GB. `graph` replays a recorded CUDA graph of the eager network, `compile` is torch.compile.
"""
import argparse
import statistics
import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--net", default="animevideov3,x4plus")
parser.add_argument("--mode", default="eager,graph,compile")
parser.add_argument("--runs", type=int, default=20)
args = parser.parse_args()
torch.backends.cudnn.benchmark = True
SIZES = {"x4plus": [(512, 512)], "animevideov3": [(720, 1280), (1080, 1920)]}


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(64 + 32 * i, 32 if i < 4 else 64, 3, padding=1) for i in range(5))

    def forward(self, x):
        seen = [x]
        for step in self.steps[:4]:
            seen.append(F.leaky_relu(step(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.steps[4](torch.cat(seen, 1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Sequential(Dense(), Dense(), Dense())

    def forward(self, x):
        return x + 0.2 * self.dense(x)


class RRDB(nn.Module):
    macs = 17.9e6  # multiply-adds per input pixel

    def __init__(self, blocks=23):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.body = nn.Sequential(*[Block() for _ in range(blocks)], nn.Conv2d(64, 64, 3, padding=1))
        self.up1, self.up2, self.high = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        x = x + self.body(x)
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.high(x), 0.2))


class Compact(nn.Module):
    macs = 0.6196e6

    def __init__(self, layers=16, scale=4):
        super().__init__()
        steps = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
        for _ in range(layers):
            steps += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
        self.steps = nn.Sequential(*steps, nn.Conv2d(64, 3 * scale * scale, 3, padding=1), nn.PixelShuffle(scale))
        self.scale = scale

    def forward(self, x):
        return self.steps(x) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def median_ms(run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(args.runs):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


# Includes the conversion to 8 bits, the last step for a picture.
def picture(net, x):
    return (net(x).clamp(0, 1) * 255).round().to(torch.uint8)


for name in args.net.split(","):
    net = {"x4plus": RRDB, "animevideov3": Compact}[name]().cuda().half().to(memory_format=torch.channels_last).eval()
    for height, width in SIZES[name]:
        x = torch.rand(1, 3, height, width, device="cuda", dtype=torch.half).to(memory_format=torch.channels_last)
        for mode in args.mode.split(","):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with torch.no_grad():
                if mode == "compile":
                    torch._dynamo.reset()
                    compiled = torch.compile(lambda value: picture(net, value))
                    ms = median_ms(lambda: compiled(x))
                elif mode == "graph":
                    for _ in range(3):
                        picture(net, x)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        picture(net, x)
                    ms = median_ms(graph.replay)
                    del graph
                else:
                    ms = median_ms(lambda: picture(net, x))
            rate = 2 * net.macs * height * width / ms * 1e-9
            print(f"{name} {width}x{height} {mode}: {ms:.2f} ms, {rate:.0f} TFLOP/s, "
                  f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB", flush=True)
