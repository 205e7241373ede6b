#!/usr/bin/env python3
"""PyTorch's side of networks.lua: the reference networks on a CPU, timed, their outputs saved for comparison.

usage: torch_networks.py REF [--threads N] [--only unet,vae,whisper] [--config unet.json]

REF holds LatentSync's `latentsync/` and diffusers' `diffusers/` as importable folders. Weights and inputs are made from
their names by a formula (tests/support/formula.lua is the other copy), so both sides compute the same thing. For each network
it prints `NAME FILE.npy`, its output in PyTorch's layout, then for each line `go` on its input the seconds of one run;
any other line ends the network. So the other side can take turns, and both see the same machine.
"""
import argparse, json, os, sys, tempfile, time

import torch_stubs

ap = argparse.ArgumentParser()
ap.add_argument("ref")
ap.add_argument("--threads", type=int, default=0)
ap.add_argument("--only", default="unet,vae,whisper")
ap.add_argument("--config")
args = ap.parse_args()
sys.path.insert(0, args.ref)

# Packages that the reference imports but that its networks do not use: where one is missing, an empty one of its name.
UNUSED = {"decord", "kornia", "insightface", "imageio", "matplotlib", "cv2", "ffmpeg", "soundfile", "tqdm", "torchvision",
          "transformers", "tiktoken", "more_itertools", "omegaconf", "python_speech_features", "scenedetect",
          "mediapipe", "av", "librosa"}
torch_stubs.install(UNUSED)

import numpy as np
import torch
import diffusers.utils.import_utils

# Whatever version of it is installed, diffusers' networks can do without.
diffusers.utils.import_utils._transformers_available = False

if args.threads:
    torch.set_num_threads(args.threads)


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
    elif len(shape) >= 2:
        v = v * (3 / (n / shape[0])) ** 0.5
    else:
        v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def fill(model, prefix=""):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(formula(prefix + name, tuple(p.shape), "weight"))
    return model.eval()


def measure(name, f):
    handle, path = tempfile.mkstemp(suffix=".npy")
    os.close(handle)
    np.save(path, f().float().contiguous().numpy())
    print(name, path, flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start = time.perf_counter()
        f()
        print(time.perf_counter() - start, flush=True)


only = args.only.split(",")
with torch.no_grad():
    if "unet" in only:
        import diffusers.models.attention as attention
        if not hasattr(attention, "AdaLayerNorm"):
            from diffusers.models.normalization import AdaLayerNorm
            attention.AdaLayerNorm = AdaLayerNorm
        from latentsync.models.unet import UNet3DConditionModel
        config = json.load(open(args.config))
        unet = fill(UNet3DConditionModel(**config))
        x = formula("input:sample", (2, config["in_channels"], 16, 32, 32))
        x[1] = x[0]
        audio = formula("input:audio", (2, 16, 50, config["cross_attention_dim"]))
        audio[0] = 0

        def step():
            deaf, hearing = unet(x, 481, encoder_hidden_states=audio).sample.chunk(2)
            return deaf + 1.5 * (hearing - deaf)

        measure("unet", step)
        del unet
    if "vae" in only:
        from diffusers import AutoencoderKL
        vae = fill(AutoencoderKL(in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4,
                                 up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[128, 256, 512, 512],
                                 layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=256))
        latent = formula("input:latent", (1, 4, 32, 32))
        measure("vae", lambda: vae.decode(latent).sample)
        del vae
    if "whisper" in only:
        from latentsync.whisper.whisper.model import AudioEncoder
        encoder = fill(AudioEncoder(80, 1500, 384, 6, 4), "encoder.")
        mel = formula("input:mel", (1, 80, 3000))
        # The reference stacks the embeddings in numpy; here they stay tensors.
        measure("whisper", lambda: torch.from_numpy(encoder(mel, include_embeddings=True)[1]).squeeze(0))
