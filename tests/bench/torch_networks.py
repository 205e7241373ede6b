#!/usr/bin/env python3
"""Times PyTorch for networks.lua: the reference networks on a CPU; saves their outputs for comparison.

usage: torch_networks.py REF [--threads N] [--only unet,vae,whisper] [--config unet.json]

REF holds LatentSync's `latentsync/` (for the UNet and Whisper) and diffusers' `diffusers/` as importable folders, if Python
has none. Results are in PyTorch's layout; turns.py explains how both programs alternate. The autoencoder runs in both
memory layouts, and the faster one counts.
"""
import argparse, copy, json, sys

import torch_stubs
import turns

ap = argparse.ArgumentParser()
ap.add_argument("ref")
ap.add_argument("--threads", type=int, default=0)
ap.add_argument("--only", default="unet,vae,whisper")
ap.add_argument("--config")
args = ap.parse_args()
sys.path.insert(0, args.ref)

# The reference imports these packages, but its networks do not use them: a missing one is replaced by an empty one.
UNUSED = {"decord", "kornia", "insightface", "imageio", "matplotlib", "cv2", "ffmpeg", "soundfile", "tqdm", "torchvision",
          "transformers", "tiktoken", "more_itertools", "omegaconf", "python_speech_features", "scenedetect",
          "mediapipe", "av", "librosa"}
torch_stubs.install(UNUSED)

import torch
import diffusers.utils.import_utils

# diffusers' networks do not need it, whatever version is installed.
diffusers.utils.import_utils._transformers_available = False

if args.threads:
    torch.set_num_threads(args.threads)


def formula(name, shape, kind="input"):
    return torch.from_numpy(turns.formula(name, shape, kind))


def fill(model, prefix=""):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(formula(prefix + name, tuple(p.shape), "weight"))
    return model.eval()


def measure(name, *forms):
    turns.measure(name, *(lambda f=f: f().float().numpy() for f in forms))


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
        last = copy.deepcopy(vae).to(memory_format=torch.channels_last)
        latent_last = latent.to(memory_format=torch.channels_last)
        measure("vae", lambda: vae.decode(latent).sample, lambda: last.decode(latent_last).sample)
        del vae, last
    if "whisper" in only:
        from latentsync.whisper.whisper.model import AudioEncoder
        encoder = fill(AudioEncoder(80, 1500, 384, 6, 4), "encoder.")
        mel = formula("input:mel", (1, 80, 3000))
        # The reference stacks the embeddings in numpy; here they stay tensors.
        measure("whisper", lambda: torch.from_numpy(encoder(mel, include_embeddings=True)[1]).squeeze(0))
