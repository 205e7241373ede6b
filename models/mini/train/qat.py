"""Trains the generator for codes: `python -m train.qat --checkpoint . --quantized DIR4 --out DIR --data DATA --minutes 4`.

DIR4 is what `crescent quantize` wrote of the checkpoint. The teacher is the checkpoint as it is; the student computes as
the program does with codes and learns to predict what the teacher predicts. Through rounding the gradient goes straight
(Bengio et al. 2013, arXiv 1308.3432). There are two ways:

- The codes of DIR4 are trained, from what they are; scales, smoothing and branches of low rank stay. OUT gets the folder
  with the new codes and with new biases and norms.
- `--in-place`: the float16 weights are trained so that rounding them to the nearest does little harm, and so that they
  predict the same as before where nobody rounds them. Of DIR4 only the layers' formats matter. OUT gets
  latentsync_unet.safetensors, which can take the place of the checkpoint's.

Training ends, written, after --minutes; it also writes every minute. `--try N`: N steps on drawn windows, without data,
to see that it runs.
"""

import argparse
import json
import os
import shutil

import torch
from torch.nn.utils import parametrize

from . import common, config, diffusion, networks
from .codes import Codes, read

FILE = 'latentsync_unet.safetensors'
DEAF = 0.25  # windows without sound: guidance takes their predictions too


def module_of(make, folder, settings, weights):
    """A network of a checkpoint's folder, in float32."""
    with open(f'{folder}/{settings}') as f:
        net = make({k: v for k, v in json.load(f).items() if k != 'sampling'})
    state, _ = read(f'{folder}/{weights}')
    shapes = {name: p.shape for name, p in net.state_dict().items()}
    state = {name: t.float().view(shapes.get(name, t.shape)) for name, t in state.items()}
    missing, surplus = net.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith('.pe')]
    if missing or surplus:
        raise SystemExit(f'{folder}/{weights}: {(missing + surplus)[0]} does not fit the network')
    return net


def quantized(net, tensors, afresh):
    """Lets a network's layers compute with a file's codes; returns [(name, module, codes)]."""
    layers, parts = [], {}
    for key, t in tensors.items():
        name, _, field = key.rpartition('.')
        parts.setdefault(name, {})[field] = t
    for name, module in list(net.named_modules()):
        part = parts.get(name, {})
        if 'scale' not in part:
            continue
        codes = Codes(part, module.weight, afresh)
        if not afresh:
            with torch.no_grad():
                module.weight.copy_(codes.start(part['weight'], module.weight))
        module.register_forward_pre_hook(lambda _, given, codes=codes: (codes.seen(given[0]), *given[1:]))
        parametrize.register_parametrization(module, 'weight', codes)
        layers.append((name, module, codes))
    if not layers:
        raise SystemExit('the quantized folder contains no quantized weights')
    return layers


def drawn(settings, args, g):
    """An endless source of windows of random numbers: what is shown to the generator, timesteps, tokens."""
    channels, table, side = settings['out_channels'], diffusion.alphas(args.device), 8
    rest = settings['in_channels'] - channels

    def randn(*shape):
        return torch.randn(*shape, device=args.device, generator=g)

    while True:
        t = torch.randint(diffusion.STEPS, (1,), device=args.device, generator=g)
        noisy = diffusion.add_noise(randn(1, 2, side, side, channels), randn(1, 1, side, side, channels), t, table)
        yield torch.cat([noisy, randn(1, 2, side, side, rest)], dim=-1), t, randn(1, 2, 50, settings['cross_attention_dim'])


class Faces:
    """Windows of the training data, and how far the student's finished faces are from the teacher's."""

    def __init__(self, args, run, g):
        from . import unet
        from .dataset import Dataset
        from .latents import Latents
        self.args, self.g, self.draw = args, g, unet
        self.data = Dataset(args.data, args.device)
        vae = module_of(networks.AutoencoderKL, args.checkpoint + '/vae', 'config.json', 'diffusion_pytorch_model.safetensors')
        vae = vae.to(args.device).eval().requires_grad_(False)
        self.latents, self.table = Latents(vae, self.data, args, run, views=1), diffusion.alphas(args.device)
        self.weights = unet.region_weights(self.latents.small_mask.cpu(), args.device)

    def windows(self):
        while True:
            _, _, _, target, cond, tokens = self.draw.draw(self.data, self.latents, self.args.batch, self.g)
            t = self.draw.random_times(len(target), self.args.device, self.g)
            noisy = diffusion.add_noise(target, self.draw.noise_like(target, self.g), t, self.table)
            kept = torch.rand(len(target), 1, 1, 1, device=self.args.device, generator=self.g) >= DEAF
            yield torch.cat([noisy, cond], dim=-1), t, tokens * kept

    def importance(self, t):
        """How much a latent's error counts: as in train/unet.py."""
        snr = self.table[t] / (1 - self.table[t])
        return (snr.clamp(max=self.draw.GAMMA) / snr).view(-1, 1, 1, 1, 1) * self.weights

    @torch.no_grad()
    def psnr(self, student, teacher):
        """Of test windows, sampled by both from the same noise: decibels over the pixels that are made anew."""
        data, latents, device = self.data, self.latents, self.args.device
        clips = data.split['test'][:self.args.judged]
        g = torch.Generator(device).manual_seed(7)
        starts = torch.zeros_like(clips)
        whole, masked = latents.draw(data.window(clips, starts), starts)
        noise = torch.randn(whole[:, :1].shape, device=device, generator=g).expand_as(whole)
        made = []
        for predict in (teacher, student):
            x = diffusion.sample(predict, noise, latents.condition(masked, whole), data.tokens(clips.roll(1), starts).float(),
                                 self.table, config.SAMPLING['steps'], config.SAMPLING['guidance'])
            made.append(latents.decode(x).clamp(-1, 1))
        region = (1 - latents.mask).expand_as(made[0])
        off = ((made[0] - made[1]) ** 2 * region).sum() / region.sum()
        return 10 * torch.log10(4 / off).item()


def relative(student, teacher, windows):
    """Relative L2 error of the student's predictions against the teacher's."""
    with torch.no_grad():
        off = sum(((student(*w) - teacher(*w)) ** 2).sum() for w in windows)
        return (off / sum((teacher(*w) ** 2).sum() for w in windows)).sqrt().item()


class Student:
    """The network that is trained. `rounding` False: nothing is rounded."""

    def __init__(self, net, tensors, afresh):
        self.layers, self.net, self.tensors, self.afresh = quantized(net, tensors, afresh), net, tensors, afresh

    def __call__(self, *window, rounding=True):
        for *_, codes in self.layers:
            codes.rounding = rounding
        return self.net(*window)

    def written(self, teacher):
        """The file's tensors, in the dtypes that it has."""
        weights = {name: module.parametrizations.weight.original for name, module, _ in self.layers}
        made = dict(teacher if self.afresh else self.tensors)
        for name, p in self.net.named_parameters():
            if name in made and '.parametrizations.' not in name:
                made[name] = p.detach().cpu().view(made[name].shape).to(made[name].dtype)
        for name, _, codes in self.layers:
            key = name + '.weight'
            stored = weights[name].detach().half() if self.afresh else codes.stored(weights[name])
            made[key] = stored.cpu().view(made[key].shape)
        return made


def write(args, student, metadata, run):
    from safetensors.torch import save_file
    os.makedirs(args.out, exist_ok=True)
    if not args.in_place:
        shutil.copytree(args.quantized, args.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILE))
    made = student.written(read(f'{args.checkpoint}/{FILE}')[0])
    for name, t in made.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise SystemExit(f'{name} holds a number that is not finite; what was written before stands')
    path = f'{args.out}/{FILE}'
    save_file({k: v.contiguous() for k, v in made.items()}, path + '.part', None if args.in_place else metadata)
    os.replace(path + '.part', path)
    run.log(f'wrote {path}')


def options():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', default='.', help='folder of the teacher')
    parser.add_argument('--quantized', required=True, help='folder that crescent quantize wrote for it')
    parser.add_argument('--out', required=True)
    parser.add_argument('--in-place', action='store_true', help='train the float16 weights to be rounded')
    parser.add_argument('--data', help='folder that data.py wrote')
    parser.add_argument('--try', dest='attempt', type=int, default=0, metavar='N', help='N steps on random windows')
    parser.add_argument('--minutes', type=float, default=5.0)
    parser.add_argument('--steps', type=int, default=10 ** 9)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--judged', type=int, default=4, help='test windows that are sampled to tell the quality')
    parser.add_argument('--lr', type=float, default=1e-4)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    if not args.attempt and not args.data:
        parser.error('--data, or --try N')
    # TF32 keeps as many bits of a number as float16; bfloat16 would hide what rounding to 8 bits does.
    args.run, args.decay, args.no_compile = args.out, True, True
    run = common.Run('qat', args)
    g = torch.Generator(args.device).manual_seed(args.seed)
    teacher = module_of(networks.UNet3D, args.checkpoint, 'unet.json', FILE).to(args.device).eval().requires_grad_(False)
    tensors, metadata = read(f'{args.quantized}/{FILE}')
    student = Student(module_of(networks.UNet3D, args.checkpoint, 'unet.json', FILE), tensors, args.in_place)
    net = student.net.to(args.device)
    faces = None if args.attempt else Faces(args, run, g)
    source = faces.windows() if faces else drawn(teacher.config, args, g)
    held = [next(source) for _ in range(2)]

    def told():
        text = f'relative L2 error {relative(student, teacher, held):.4f}'
        if faces:
            text += f', {faces.psnr(student, teacher):.2f} dB'
        if args.in_place:
            def plain(*window):
                return student(*window, rounding=False)
            text += f'; not rounded {relative(plain, teacher, held):.4f}' + (f', {faces.psnr(plain, teacher):.2f} dB' if faces else '')
        return text

    run.log(f'{len(student.layers)} quantized layers; {told()}')
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0, fused=args.device.startswith('cuda'))
    step = 0
    while step < (args.attempt or args.steps) and not run.over(reserve=10 if args.minutes > 1 else 0):
        window = next(source)
        with torch.no_grad():
            wanted = teacher(*window)
        counts = faces.importance(window[1]) if faces else 1
        loss = (counts * (student(*window) - wanted) ** 2).mean()
        if args.in_place:
            loss = loss + (counts * (student(*window, rounding=False) - wanted) ** 2).mean()
        common.set_rate(optimizer, args.lr * run.rate_factor(step, warmup=50))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        if run.due(step):
            run.log(f'step {step}: loss {loss.item():.3g}, {run.rate:.2f} steps/s')
        if run.save_due():
            write(args, student, metadata, run)
            run.log(told())
    run.log(f'{step} steps; {told()}')
    write(args, student, metadata, run)


if __name__ == '__main__':
    main()
