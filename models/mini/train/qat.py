"""Trains a quantized generator: `python -m train.qat --checkpoint . --quantized DIR8 --out DIR --data DATA --run RUN`.

DIR8 is what `crescent quantize` wrote of the checkpoint. The student computes with that folder's codes as the program
does, with the same scales, which stay; the teacher is the checkpoint itself. The student learns to predict what the
teacher predicts, from the windows that the generator was trained on (train/unet.py); through rounding the gradient goes
straight (Bengio et al. 2013, arXiv 1308.3432). OUT gets the file with the new codes, its biases and norms trained too;
all else of the folder is DIR8's. `--try N`: N steps on drawn windows, without data, to see that it runs.
"""

import argparse
import json
import os
import shutil

import torch
from safetensors import safe_open
from torch.nn.utils import parametrize

from . import diffusion, networks

GROUP = 64  # inputs that share one int4 scale
FILE = 'latentsync_unet.safetensors'


def straight(x, rounded):
    """rounded, with the gradient of x."""
    return x + (rounded - x).detach()


def as_fp8(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


class Codes(torch.nn.Module):
    """A layer's dequantized weight. part: the layer's tensors in the file."""

    def __init__(self, part, shape):
        super().__init__()
        taps = [1] * (len(shape) - 2)
        codes, scale = part['weight'], part['scale']
        self.format = 'int8' if codes.dtype == torch.int8 else 'int4' if scale.dim() == codes.dim() and scale.dim() > 1 else 'fp8'
        self.inputs, self.most = shape[1], {'int8': 127, 'int4': 7, 'fp8': 448}[self.format]
        if self.format == 'int4':  # [N G], [N kh kw G] -> [N K], [N K kh kw]
            wide = scale.repeat_interleave(GROUP, -1)[..., :self.inputs]
            scale = (wide if wide.dim() == 2 else wide.permute(0, 3, 1, 2)).reshape(shape[0], shape[1], *shape[2:])
        else:
            scale = scale.view(-1, 1, *taps)
        divisor = part.get('input', part.get('smooth'))
        self.static = 'input' in part
        self.register_buffer('scale', scale.float().clamp(min=1e-30))
        self.register_buffer('divisor', divisor.float() if divisor is not None else None)
        low = part['up'].float() @ part['down'].float() if 'up' in part else None
        self.register_buffer('low', low.view(shape[0], shape[1], *taps) if low is not None else None)

    def whole(self, w):
        """The quantized weight before rounding."""
        if self.low is not None:
            w = w - self.low
        if self.divisor is not None:
            w = w * self.divisor.view(1, -1, *[1] * (w.dim() - 2))
        return (w / self.scale).clamp(-self.most, self.most)

    def rounded(self, w):
        v = self.whole(w)
        return straight(v, as_fp8(v) if self.format == 'fp8' else v.round())

    def forward(self, w):
        q = self.rounded(w) * self.scale
        if self.divisor is not None:
            q = q / self.divisor.view(1, -1, *[1] * (w.dim() - 2))
        return q if self.low is None else q + self.low

    def seen(self, x):
        """The layer's input after quantization, [... K]."""
        if self.format == 'int4':
            return x
        v = x if self.divisor is None else x / self.divisor
        scale = 1 if self.static else v.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30) / self.most
        v = (v / scale).clamp(-self.most, self.most)
        v = straight(v, as_fp8(v) if self.format == 'fp8' else v.round()) * scale
        return v if self.divisor is None else v * self.divisor

    def stored(self, w):
        """The integers in the file's format."""
        v = self.rounded(w.detach())
        if self.format == 'fp8':
            return v.to(torch.float8_e4m3fn).view(torch.uint8)
        if self.format == 'int8':
            return v.round().to(torch.int8)
        v = v.round().to(torch.int16) & 15
        return (v[:, 0::2] | v[:, 1::2] << 4).to(torch.uint8)


def read(path):
    with safe_open(path, 'pt') as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}


def of_checkpoint(folder):
    """The generator of a folder, in float32, and its configuration."""
    with open(folder + '/unet.json') as f:
        settings = json.load(f)
    settings.pop('sampling', None)
    net = networks.UNet3D(networks.Settings(settings))
    state, _ = read(f'{folder}/{FILE}')
    shapes = {name: p.shape for name, p in net.state_dict().items()}
    state = {name: t.float().view(shapes.get(name, t.shape)) for name, t in state.items()}
    missing, surplus = net.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith('.pe')]
    if missing or surplus:
        raise SystemExit(f'{folder}/{FILE}: {(missing + surplus)[0]} does not fit the network')
    return net, settings


def quantized(net, tensors):
    """Lets a network's layers compute with a file's codes; returns them by their names."""
    layers, parts = {}, {}
    for key, t in tensors.items():
        name, _, field = key.rpartition('.')
        parts.setdefault(name, {})[field] = t
    for name, module in list(net.named_modules()):
        part = parts.get(name, {})
        if 'scale' in part:
            codes = Codes(part, tuple(module.weight.shape))
            module.register_forward_pre_hook(lambda _, args, codes=codes: (codes.seen(args[0]), *args[1:]))
            parametrize.register_parametrization(module, 'weight', codes)
            layers[name] = (module, codes)
    if not layers:
        raise SystemExit('the quantized folder contains no quantized weights')
    return layers


def drawn(settings, batch, frames, side, g, device):
    """Windows of random numbers: what is shown to the generator, timesteps, tokens."""
    channels, table = settings['out_channels'], diffusion.alphas(device)
    rest = settings['in_channels'] - channels
    t = torch.randint(diffusion.STEPS, (batch,), device=device, generator=g)
    def randn(*shape):
        return torch.randn(*shape, device=device, generator=g)
    noisy = diffusion.add_noise(randn(batch, frames, side, side, channels), randn(batch, 1, side, side, channels), t, table)
    return torch.cat([noisy, randn(batch, frames, side, side, rest)], dim=-1), t, randn(batch, frames, 50, settings['cross_attention_dim'])


def windows_of(args, settings, g):
    """An endless source of windows: the training data's, or drawn ones."""
    if args.attempt:
        while True:
            yield drawn(settings, 1, 2, 8, g, args.device)
    from . import checkpoint, common, unet
    from .dataset import Dataset
    from .latents import Latents
    run = common.Run('qat', args)
    data = Dataset(args.data, args.device)
    autoencoder = checkpoint.load(args.run, 'vae')
    vae = networks.AutoencoderKL(autoencoder['config']).to(args.device).eval().requires_grad_(False)
    vae.load_state_dict(autoencoder['ema'])
    latents, table = Latents(vae, data, args, run, views=1), diffusion.alphas(args.device)
    while not run.over():
        _, _, _, target, cond, tokens = unet.draw(data, latents, args.batch, g)
        t = unet.random_times(args.batch, args.device, g)
        kept = torch.rand(args.batch, 1, 1, 1, device=args.device, generator=g) >= unet.DROPPED
        yield torch.cat([diffusion.add_noise(target, unet.noise_like(target, g), t, table), cond], dim=-1), t, tokens * kept


def relative(student, teacher, windows):
    """Relative L2 error of the student's predictions against the teacher's."""
    with torch.no_grad():
        off = sum(((student(*w) - teacher(*w)) ** 2).sum() for w in windows)
        return (off / sum((teacher(*w) ** 2).sum() for w in windows)).sqrt().item()


def write(out, source, student, layers, tensors, metadata):
    """The folder with the student's codes and values, in the dtypes that it has."""
    from safetensors.torch import save_file
    os.makedirs(out, exist_ok=True)
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILE))
    made = dict(tensors)
    for name, p in student.named_parameters():
        if name in made and '.parametrizations.' not in name:
            made[name] = p.detach().cpu().view(made[name].shape).to(made[name].dtype)
    for name, (module, codes) in layers.items():
        key = name + '.weight'
        made[key] = codes.stored(module.parametrizations.weight.original).cpu().view(made[key].shape)
    path = f'{out}/{FILE}'
    save_file({k: v.contiguous() for k, v in made.items()}, path + '.part', metadata)
    os.replace(path + '.part', path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', default='.', help='folder of the teacher')
    parser.add_argument('--quantized', required=True, help='folder that crescent quantize wrote for it')
    parser.add_argument('--out', required=True)
    parser.add_argument('--data', help='folder that data.py wrote')
    parser.add_argument('--run', help='folder with vae.pt')
    parser.add_argument('--try', dest='attempt', type=int, default=0, metavar='N', help='N steps on random windows')
    parser.add_argument('--minutes', type=float, default=5.0)
    parser.add_argument('--steps', type=int, default=10 ** 9)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--lr', type=float, default=2e-5)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args(argv)
    if not args.attempt and not (args.data and args.run):
        parser.error('--data and --run, or --try N')
    torch.manual_seed(args.seed)
    g = torch.Generator(args.device).manual_seed(args.seed)
    teacher, settings = of_checkpoint(args.checkpoint)
    student, _ = of_checkpoint(args.checkpoint)
    tensors, metadata = read(f'{args.quantized}/{FILE}')
    layers = quantized(student, tensors)
    teacher, student = teacher.to(args.device).eval().requires_grad_(False), student.to(args.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0)
    source = windows_of(args, settings, g)
    held = [next(source) for _ in range(2)]
    before, step = relative(student, teacher, held), 0
    for shown, t, tokens in source:
        if step >= (args.attempt or args.steps):
            break
        loss = ((student(shown, t, tokens) - teacher(shown, t, tokens)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f'step {step}: {loss.item():.3g}', flush=True)
    print(f'{len(layers)} quantized layers, {step} steps: relative L2 error {before:.4f} before, {relative(student, teacher, held):.4f} after')
    write(args.out, args.quantized, student, layers, tensors, metadata)


if __name__ == '__main__':
    main()
