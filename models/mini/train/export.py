"""Exports the trained networks as a checkpoint folder that `crescent lipsync --checkpoint` takes.

    python -m train.export --run RUN --out models/mini

    OUT/latentsync_unet.safetensors, unet.json     the generator; the sampling that it was made for,
    OUT/scheduler_config.json                      and its method
    OUT/vae/diffusion_pytorch_model.safetensors, config.json
    OUT/syncnet.safetensors, syncnet.json          for `crescent evaluate`

Averaged (EMA) weights, float16. Whisper is not copied: the fetched tiny.en serves.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

from . import checkpoint, config, networks


def write_json(path, value):
    with open(path + '.part', 'w') as f:
        json.dump(value, f, indent=1)
        f.write('\n')
    os.replace(path + '.part', path)


def write_weights(path, state):
    """Tensors as float16, without the motion modules' sinusoidal tables, which the program computes."""
    tensors = {name: t.detach().cpu().half().contiguous() for name, t in state.items()
               if t.is_floating_point() and not name.endswith('.pe')}
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise SystemExit(f'{path}: {name} contains a value that is not finite; nothing was written')
    save_file(tensors, path + '.part')
    os.chmod(path + '.part', 0o644)
    os.replace(path + '.part', path)
    n = sum(t.numel() for t in tensors.values())
    print(f'{path}: {n / 1e6:.2f} M parameters, {os.path.getsize(path) / 1e6:.2f} MB')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--run', help='folder of the trained checkpoints')
    parser.add_argument('--out', required=True)
    parser.add_argument('--random', action='store_true', help='untrained weights, to measure sizes and times')
    parser.add_argument('--latents', type=int, default=4, help='with --random: channels of the latents')
    parser.add_argument('--guidance', type=float, default=config.SAMPLING['guidance'])
    parser.add_argument('--steps', type=int, default=config.SAMPLING['steps'])
    args = parser.parse_args()
    os.makedirs(args.out + '/vae', exist_ok=True)
    if args.random:
        torch.manual_seed(0)
        unet_config, vae_config = config.unet(args.latents), config.vae(args.latents)
        unet, vae = networks.UNet3D(unet_config), networks.AutoencoderKL(vae_config)
        for p in list(unet.parameters()) + list(vae.parameters()):  # no tensor may stay at zero
            if p.dim() >= 2:
                torch.nn.init.normal_(p, std=(p.numel() / p.shape[0]) ** -0.5)
        unet, vae, sync = unet.state_dict(), vae.state_dict(), None
    else:
        saved = checkpoint.load(args.run, 'unet')
        unet_config, unet = saved['config'], saved['ema']
        saved = checkpoint.load(args.run, 'vae')
        vae_config, vae = saved['config'], saved['ema']
        sync = checkpoint.load(args.run, 'syncnet', missing_ok=True)
    write_weights(args.out + '/latentsync_unet.safetensors', unet)
    sampling = {'size': config.SIZE, 'steps': args.steps, 'guidance': args.guidance}
    write_json(args.out + '/unet.json', {**unet_config, 'sampling': sampling})
    write_json(args.out + '/scheduler_config.json', config.SCHEDULER)
    write_weights(args.out + '/vae/diffusion_pytorch_model.safetensors', vae)
    write_json(args.out + '/vae/config.json', vae_config)
    if sync:
        write_weights(args.out + '/syncnet.safetensors', sync['ema'])
        write_json(args.out + '/syncnet.json', sync['config'])


if __name__ == '__main__':
    main()
