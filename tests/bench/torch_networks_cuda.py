#!/usr/bin/env python3
"""Times PyTorch for cuda_networks.lua: the reference networks on a GPU in float16, and their float16 error.

usage: torch_networks_cuda.py REF [--size 256,512] [--part unet,vae] [--mode eager,graph,compile] [--runs N] [--error]
                                  [--golden FILE]

REF holds LatentSync's `latentsync/` and `configs/` and diffusers' `diffusers/` as importable folders. Weights are made
from their names by a formula (tests/support/formula.lua is the other copy). Each measurement is one line of JSON on stdout:
{"name": "unet step 256", "mode": "graph", "ms": ..., "gib": ...}, or with --error {"name": "unet", "error": ...}, a
relative L2 error of the output in float16 against the golden values (without --golden: against float32 here).
"""
import argparse, json, math, sys, time

import torch_stubs

ap = argparse.ArgumentParser()
ap.add_argument("ref")
ap.add_argument("--size", default="256,512")
ap.add_argument("--part", default="unet,vae")
ap.add_argument("--mode", default="eager,graph,compile")
ap.add_argument("--runs", type=int, default=10)
ap.add_argument("--error", action="store_true")
ap.add_argument("--golden")
ap.add_argument("--device", default="cuda")
args = ap.parse_args()
sys.path.insert(0, args.ref)

# The reference imports these packages, but its networks do not use them: a missing one is replaced by an empty one.
# Others are not replaced, because packages that check for them must not find them.
UNUSED = {"decord", "kornia", "insightface", "imageio", "matplotlib", "cv2", "ffmpeg", "omegaconf", "torchvision", "tqdm"}
torch_stubs.install(UNUSED)

import torch
import yaml
import diffusers.utils.import_utils

# diffusers' networks do not need them, whatever versions are installed.
diffusers.utils.import_utils._transformers_available = diffusers.utils.import_utils._peft_available = False
import diffusers.models.attention as attention

if not hasattr(attention, "AdaLayerNorm"):
    from diffusers.models.normalization import AdaLayerNorm
    attention.AdaLayerNorm = AdaLayerNorm

dev, half = torch.device(args.device), torch.half
sizes, parts = [int(s) for s in args.size.split(",")], args.part.split(",")
modes = [m for m in args.mode.split(",") if m]


def say(**figure):
    print(json.dumps(figure), flush=True)


# ---- the formula, in int64 that wraps around as uint64 would ----

def signed(x):
    x &= 0xFFFFFFFFFFFFFFFF
    return x - (1 << 64) if x >> 63 else x


def shifted(x, n):
    return (x >> n) & ((1 << (64 - n)) - 1)


def splitmix(x):
    x = x + signed(0x9E3779B97F4A7C15)
    x = (x ^ shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shifted(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ shifted(x, 31)


def formula(name, shape, kind="input"):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    n = math.prod(shape)
    salt = splitmix(torch.tensor([1], dtype=torch.int64, device=dev))
    z = splitmix((salt ^ signed(h)) + torch.arange(n, dtype=torch.int64, device=dev))
    v = shifted(z, 40).double() * 2.0**-23 - 1
    if kind == "input":
        v = v * 3**0.5
    elif len(shape) >= 2:
        v = v * (3 / (n / shape[0])) ** 0.5
    else:
        v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
    return v.float().reshape(shape)


def moved(model, **where):
    """Module.to, without the checks and imports of diffusers' version."""
    return torch.nn.Module.to(model, **where)


def fill(model):
    model = moved(model, device=dev).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(formula(name, tuple(p.shape), "weight"))
    return model


def relative(a, b):
    if a.dim() > 1 and b.dim() == 1:  # a golden value that is thinned: every seventh number
        a = a.reshape(-1)[::-(-a.numel() // b.numel())]
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def wanted(key, own):
    """The golden value of a key, or PyTorch's own float32 output."""
    if not args.golden:
        return own
    from safetensors import safe_open
    with safe_open(args.golden, "pt") as f:
        name = next(k for k in f.keys() if k == key or k.startswith(key + "@"))
        return f.get_tensor(name).to(dev)


# ---- timing ----

def median_ms(f):
    for _ in range(3):
        f()
    torch.cuda.synchronize()
    times = []
    for _ in range(args.runs):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    times.sort()
    return times[len(times) // 2]


def report(name, mode, f):
    f()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    ms = median_ms(f)
    say(name=name, mode=mode, ms=ms, gib=torch.cuda.max_memory_allocated() / 2**30)


def recorded(f):
    """f's work as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        f(), f()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    return graph


def exactly(on):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not on
    torch.backends.cudnn.benchmark = not on


def run_unet():
    from latentsync.models.unet import UNet3DConditionModel
    config = yaml.safe_load(open(f"{args.ref}/configs/unet/stage2.yaml"))["model"]
    config["norm_eps"] = float(config["norm_eps"])
    unet = fill(UNet3DConditionModel(**config))
    if args.error:
        exactly(True)
        x, audio = formula("input:sample", (2, 13, 16, 32, 32)), formula("input:audio", (2, 16, 50, 384))
        own = unet(x, 481, encoder_hidden_states=audio).sample
        want = wanted("unet_full.out.r256.t481", own)
        say(name="unet float32", error=relative(own, want))
        unet = moved(unet, dtype=half)
        say(name="unet", error=relative(unet(x.half(), 481, encoder_hidden_states=audio.half()).sample, want))
        del own, want
    unet = moved(unet, dtype=half)
    exactly(False)

    def inputs(size):
        side = size // 8
        return (torch.randn(2, 13, 16, side, side, device=dev, dtype=half), torch.tensor(481, device=dev),
                torch.randn(2, 16, 50, 384, device=dev, dtype=half))

    for size in sizes:
        x, t, audio = inputs(size)
        step = lambda: unet(x, t, encoder_hidden_states=audio)
        if "eager" in modes:
            report(f"unet step {size}", "eager", step)
        if "graph" in modes:
            graph = recorded(step)
            report(f"unet step {size}", "graph", graph.replay)
            del graph
        torch.cuda.empty_cache()
    if "compile" in modes:
        unet = moved(unet, memory_format=torch.channels_last)
        for size in sizes:
            torch._dynamo.reset()
            x, t, audio = inputs(size)
            fast = torch.compile(unet, mode="reduce-overhead")
            start = time.time()
            fast(x, t, encoder_hidden_states=audio)
            torch.cuda.synchronize()
            print(f"compiled for {size} in {time.time() - start:.0f} s", file=sys.stderr, flush=True)
            report(f"unet step {size}", "compile", lambda: fast(x, t, encoder_hidden_states=audio))
        torch._dynamo.reset()


def run_vae():
    from diffusers import AutoencoderKL
    vae = fill(AutoencoderKL(in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4,
                             up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[128, 256, 512, 512],
                             layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=256))
    if args.error:
        exactly(True)
        image, latent = formula("input:image", (1, 3, 256, 256)).clamp(-1, 1), formula("input:latent", (1, 4, 32, 32))

        def outputs(dtype):
            d = vae.encode(image.to(dtype)).latent_dist
            return {"mean": d.mean, "logvar": d.logvar, "dec": vae.decode(latent.to(dtype)).sample}

        own = outputs(torch.float)
        want = {key: wanted(f"vae_full.{key}", value) for key, value in own.items()}
        for key, value in own.items():
            say(name=f"vae {key} float32", error=relative(value, want[key]))
        vae = moved(vae, dtype=half)
        for key, value in outputs(half).items():
            say(name=f"vae {key}", error=relative(value, want[key]))
        del own, want
    vae = moved(vae, dtype=half)
    exactly(False)
    plain = vae.encoder, vae.decoder
    for mode in modes:
        layout = torch.contiguous_format
        if mode == "compile":
            layout = torch.channels_last
            vae = moved(vae, memory_format=layout)
        for size in sizes:
            if mode == "compile":  # compiled again for each size; otherwise the second one is compiled for dynamic sizes, which is slower
                torch._dynamo.reset()
                vae.encoder, vae.decoder = torch.compile(plain[0]), torch.compile(plain[1])
            image = torch.randn(16, 3, size, size, device=dev, dtype=half).to(memory_format=layout)
            latent = torch.randn(16, 4, size // 8, size // 8, device=dev, dtype=half).to(memory_format=layout)
            for name, f in (("encode", lambda: vae.encode(image).latent_dist.mean),
                            ("decode", lambda: vae.decode(latent).sample)):
                if mode == "graph":
                    graph = recorded(f)
                    report(f"vae {name} {size}", mode, graph.replay)
                    del graph
                else:
                    report(f"vae {name} {size}", mode, f)
                torch.cuda.empty_cache()


def main():
    say(name="versions", text=f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    with torch.no_grad():
        if "unet" in parts:
            run_unet()
            torch.cuda.empty_cache()
        if "vae" in parts:
            run_vae()


if __name__ == "__main__":
    main()
