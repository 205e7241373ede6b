"""Checks networks.py against reference values: `python -m train.check GOLDEN_FOLDER`.

The folder holds golden.safetensors and unet_nano.json, made by the reference programs on weights and
inputs that a formula makes (see formula.lua for it).
"""

import json
import sys

import numpy as np
import torch
from safetensors import safe_open

from . import networks


def formula(name, shape, salt=1):
    """The formula's numbers in [-1, 1) for a tensor's name (tests/support/formula.lua)."""
    mask = (1 << 64) - 1

    def splitmix64(x):
        x = (x + np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    h = 0xcbf29ce484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001b3) & mask
    with np.errstate(over='ignore'):
        start = np.uint64(h) ^ splitmix64(np.array([salt], dtype=np.uint64))[0]
        z = splitmix64(start + np.arange(int(np.prod(shape)), dtype=np.uint64))
    v = (z >> np.uint64(40)).astype(np.float64) * 2.0 ** -24 * 2 - 1
    return torch.from_numpy(v.reshape(shape))


def fill(network):
    """The formula's weights in place of a network's own; float32 values held in float64."""
    network.double()
    for name, p in network.named_parameters():
        v = formula(name, tuple(p.shape))
        if p.dim() >= 2:
            v = v * (3 / (p.numel() / p.shape[0])) ** 0.5
        elif name.endswith('weight'):
            v = 1 + 0.1 * v
        else:
            v = 0.1 * v
        p.data = v.float().double()
    return network


def given(name, shape):
    return (formula('input:' + name, shape) * 3 ** 0.5).float().double()


def error(ours, golden):
    golden = golden.double()
    return ((ours - golden).norm() / golden.norm()).item()


@torch.no_grad()
def main(folder):
    golden = safe_open(folder + '/golden.safetensors', 'pt')
    with open(folder + '/unet_nano.json') as f:
        unet = fill(networks.UNet3D(json.load(f)))
    sample = given('sample', (2, 13, 8, 16, 16)).permute(0, 2, 3, 4, 1)
    tokens = given('audio', (2, 8, 50, 64))
    worst = 0
    for key in sorted(golden.keys()):
        if key.startswith('unet_nano.out.t'):
            t = torch.full((2,), float(key[len('unet_nano.out.t'):]))
            out = unet(sample, t, tokens).permute(0, 4, 1, 2, 3)
            e = error(out, golden.get_tensor(key))
            worst = max(worst, e)
            print(f'{key}: relative difference {e:.2e}')
    vae = fill(networks.AutoencoderKL(dict(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[32, 64, 64, 64],
        layers_per_block=1, norm_num_groups=32)))
    image = given('image', (2, 3, 64, 64)).clamp(-1, 1).permute(0, 2, 3, 1)
    mean, logvar = vae.encode(image)
    decoded = vae.decode(given('latent', (2, 4, 8, 8)).permute(0, 2, 3, 1))
    for key, ours in (('mean', mean), ('logvar', logvar), ('dec', decoded)):
        e = error(ours.permute(0, 3, 1, 2), golden.get_tensor('vae_nano.' + key))
        worst = max(worst, e)
        print(f'vae_nano.{key}: relative difference {e:.2e}')
    return 0 if worst < 1e-6 else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
