"""Trains the autoencoder: `python -m train.vae --data DATA --run RUN --minutes 5`.

L1 and the differences of neighbouring pixels at several scales (edges, as a perceptual loss without
a fetched network), and a small Kullback-Leibler term that keeps latents smooth. Besides whole faces it sees
what the generator will show it: faces whose mouth region is blanked out; and, so that real faces are
not far from what was seen, colours, sharpness, noise and sizes are varied. Resumes from RUN/vae.pt.
"""

import torch
import torch.nn.functional as F

from . import alignment, checkpoint, common, config, networks
from .dataset import Dataset, pixels

EDGES, KL, MASKED = 1.0, 1e-3, 0.2
MOUTH_ROWS, MOUTH_COLUMNS = slice(64, 112), slice(32, 96)


def vary(x, g):
    """Pictures [N H W 3] in [-1, 1] with random sizes, mirror images, colours, blur and noise."""
    N, device = len(x), x.device

    def rand(*shape):
        return torch.rand(*shape, device=device, generator=g)

    def some(p):
        return (rand(N, 1, 1, 1) < p).float()

    # Half of them are scaled, shifted and slightly rotated; half of all are mirrored.
    moved = some(0.5).flatten()
    zoom = torch.exp((rand(N) - 0.5) * moved)
    angle = (rand(N) - 0.5) * 0.6 * moved
    theta = torch.zeros(N, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * angle.cos(), -zoom * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin(), zoom * angle.cos()
    theta[:, :, 2] = (rand(N, 2) - 0.5) * 0.5 * moved[:, None]
    theta[:, :, 0] *= torch.where(rand(N) < 0.5, -1.0, 1.0)[:, None]
    y = x.permute(0, 3, 1, 2)
    grid = F.affine_grid(theta, y.shape, align_corners=False)
    y = F.grid_sample(y, grid, 'bilinear', 'reflection', align_corners=False)
    small = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode='bilinear')
    blur = some(0.3) * rand(N, 1, 1, 1)
    y = y + blur * (small - y)
    y = y.permute(0, 2, 3, 1)
    # Colours: contrast, brightness, a tint, saturation.
    on = some(0.7)
    grey = y.mean(-1, keepdim=True)
    y = y + on * (grey - y) * (rand(N, 1, 1, 1) * 1.2 - 0.4)
    y = y * (1 + on * (rand(N, 1, 1, 1) - 0.5) * 0.6) * (1 + on * (rand(N, 1, 1, 3) - 0.5) * 0.3)
    y = y + on * (rand(N, 1, 1, 1) - 0.5) * 0.5
    y = y + some(0.2) * 0.04 * torch.randn(y.shape, device=device, generator=g)
    return y.clamp(-1, 1)


def edges(a, b):
    """Mean absolute difference of the gradients at four scales."""
    total = 0
    for scale in range(4):
        if scale:
            a, b = (F.avg_pool2d(v.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) for v in (a, b))
        d = a - b
        total = total + (d[:, 1:] - d[:, :-1]).abs().mean() + (d[:, :, 1:] - d[:, :, :-1]).abs().mean()
    return total / 4


def psnr(a, b):
    """PSNR in dB of each image [N H W 3] in [-1, 1]: [N]."""
    return -10 * (((a - b) / 2) ** 2).mean(dim=(1, 2, 3)).log10()


@torch.no_grad()
def evaluate(net, data, args, split='test', n=512):
    """Mean PSNR of held-out faces through the posterior's mean, and of their mouths; the latents' spread."""
    net.eval()
    numbers = data.frame_numbers(split)
    numbers = numbers[torch.linspace(0, len(numbers) - 1, min(n, len(numbers))).long()]
    whole, mouth, latents, sheet = [], [], [], []
    for part in numbers.split(64):
        x = pixels(data.crops[part])
        mean, _ = net.encode(x)
        y = net.decode(mean).clamp(-1, 1)
        whole.append(psnr(x, y))
        mouth.append(psnr(x[:, MOUTH_ROWS, MOUTH_COLUMNS], y[:, MOUTH_ROWS, MOUTH_COLUMNS]))
        latents.append(mean)
        sheet.append((x, y))
    x, y = (torch.cat(v) for v in zip(*sheet))
    pick = torch.linspace(0, len(x) - 1, min(12, len(x))).long()
    net.train()
    return {'psnr': torch.cat(whole).mean().item(), 'mouth': torch.cat(mouth).mean().item(),
            'std': torch.cat(latents).std().item(), 'sheet': [x[pick], y[pick]]}


def main(argv=None):
    parser = common.options(__doc__, batch=96, lr=1e-3)
    parser.add_argument('--latents', type=int, default=4, help='channels of the latents')
    parser.add_argument('--decoder', action='store_true',
                        help='train only the decoder, because the generator already depends on the latents')
    args = parser.parse_args(argv)
    run = common.Run('vae', args)
    data = Dataset(args.data, args.device, sound=False)
    saved = checkpoint.load(args.run, 'vae', missing_ok=True)
    settings = saved['config'] if saved else config.vae(args.latents)
    net = networks.AutoencoderKL(settings).to(args.device)
    if saved:
        net.load_state_dict(saved['ema' if args.decoder else 'weights'])
    if args.decoder:
        if not saved:
            raise SystemExit(f'--decoder goes on with {args.run}/vae.pt, which is missing')
        for part in (net.encoder, net.quant_conv):
            part.requires_grad_(False)
    optimizer = common.optimizer_of((p for p in net.parameters() if p.requires_grad), args)
    step = saved['step'] if saved else 0
    resumed = (saved and saved.get('alone', False) == args.decoder
               and checkpoint.load_optimizer(args.run, 'vae', optimizer, saved))
    run.log(f'{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, step {step}'
            + ('' if not saved else ', optimizer resumed' if resumed else ', optimizer anew'))
    average = checkpoint.Average(net, 0.999, saved and saved['ema'])
    ema = networks.AutoencoderKL(settings).to(args.device)
    g = torch.Generator(args.device).manual_seed(args.seed + step)
    numbers = data.frame_numbers('train', 'sync')
    mask = alignment.mask(config.SIZE).to(args.device)
    first = step

    def loss_of(x, noise):
        mean, logvar = net.encode(x)
        y = net.decode(mean + (0.5 * logvar).exp() * noise).float()
        mean, logvar = mean.float(), logvar.float()
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
        return (x - y).abs().mean(), edges(x, y), kl

    fast = common.compiled(loss_of, args, run)
    side = config.SIZE // config.FACTOR

    def save():
        ema.load_state_dict(average.state)
        e = evaluate(ema, data, args)
        if not args.decoder:
            settings['scaling_factor'] = 1 / e['std']
        checkpoint.save(args.run, 'vae', config=settings, weights=net.state_dict(), ema=average.state,
                        step=step, optimizer=optimizer, alone=args.decoder, psnr=e['psnr'], mouth=e['mouth'])
        common.save_sheet(args.run + '/vae.png', e['sheet'])
        run.log(f'saved at step {step}: held-out PSNR {e["psnr"]:.2f} dB, mouth {e["mouth"]:.2f} dB, '
                f'latents\' deviation {e["std"]:.3f}')

    while step - first < args.steps and not run.over(reserve=8 if args.minutes > 0.5 else 0):
        pick = numbers[torch.randint(len(numbers), (args.batch,), device=args.device, generator=g)]
        x = vary(pixels(data.crops[pick]), g)
        blank = (torch.rand(args.batch, 1, 1, 1, device=args.device, generator=g) < MASKED).float()
        x = x * (1 - blank * (1 - mask))
        noise = torch.randn(args.batch, side, side, settings['latent_channels'], device=args.device, generator=g)
        common.set_rate(optimizer, args.lr * run.rate_factor(step - first if not resumed else 10 ** 6))
        with common.autocast(args):
            l1, edge, kl = fast(x, noise)
        loss = l1 + EDGES * edge + KL * kl
        norm = common.descend(loss, optimizer, average, net.parameters())
        step += 1
        if run.due(step):
            run.log(f'step {step}: l1 {l1.item():.4f} edges {edge.item():.4f} kl {kl.item():.2f} '
                    f'gradient {norm.item():.2f}, {run.rate:.1f} steps/s')
            if not torch.isfinite(loss):
                raise SystemExit('the loss is not finite; the last checkpoint is kept')
        if run.save_due():
            save()
    save()


if __name__ == '__main__':
    main()
