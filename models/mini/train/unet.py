"""Trains the generator: `python -m train.unet --data DATA --run RUN --minutes 8 [--stage 2]`.

As LatentSync is trained (Li et al. 2024): the UNet predicts the noise on a window of 16 frames' latents
from the faces with the mouth region blanked out, reference frames from elsewhere in the clip and the
audio tokens of each frame; the tokens are dropped for a tenth of the windows. Stage 2 also decodes
estimates of the clean latents and asks for the right pixels, edges and mouth features, and that
SyncNet hears and sees the same thing. The mouth counts more than the rest of the region, what is kept
counts little. The autoencoder (RUN/vae.pt) and SyncNet (RUN/syncnet.pt) stay as they are.
Resumes from RUN/unet.pt.
"""

import torch

from . import checkpoint, common, config, diffusion, judging, networks
from .dataset import Dataset
from .latents import Latents, composite
from .sync_network import FRAMES, lips, mouth_windows, sound_windows
from .vae import edges

DROPPED = 0.1  # share of windows without sound
GAMMA = 5.0  # constant of the min-SNR weighting (Hang et al. 2023)
DECODED = 8  # frames per window that stage 2 decodes
PIXELS, EDGES, FEATURES, SYNC = 1.0, 1.0, 0.5, 0.25


def region_weights(mask, device):
    """The loss weight of each latent position, [h w 1]: highest at the mouth, low where the input is kept."""
    w = 0.05 + 0.95 * (1 - mask)
    side = w.shape[0]
    rows, columns = slice(side // 2, side * 7 // 8), slice(side // 4, side * 3 // 4)
    w[rows, columns] *= 3
    return (w / w.mean()).to(device)


def elsewhere(data, clips, starts, g):
    """Starts of reference windows that do not overlap the targets, if the clip is long enough."""
    best = data.start(clips, g)
    for _ in range(6):
        again = data.start(clips, g)
        near = (best - starts).abs() < config.FRAMES
        best = torch.where(near, again, best)
    return best


def draw(data, latents, n, g):
    """A batch: clips, starts, view, target latents, condition [B F h w 9] and tokens."""
    device = data.device
    clips = data.choose('train', n, g)
    starts = data.start(clips, g)
    view = torch.randint(latents.views, (n,), device=device, generator=g)
    numbers = data.window(clips, starts)
    target, masked = latents.draw(numbers, view, g)
    reference, _ = latents.draw(data.window(clips, elsewhere(data, clips, starts, g)), view, g)
    return clips, starts, view, target, latents.condition(masked, reference), data.tokens(clips, starts).float()


def noise_like(x, g):
    """Noise like that of sampling, where all frames of a window start from the same noise image. With fully shared
    noise the differences between frames would be visible to the network, which they are not during sampling. With noise
    that is half shared, the network relies too much on its mean over the frames, and the seed tints the face. So half of
    the windows get fully shared noise plus noise of each frame's own with half that variance; the others get noise that
    is half shared, or not shared (as stochastic methods add it)."""
    own = torch.randn(x.shape, device=x.device, generator=g)
    common = torch.randn(x[:, :1].shape, device=x.device, generator=g)
    kind = torch.rand(len(x), 1, 1, 1, 1, device=x.device, generator=g)
    shared = torch.where(kind < 0.5, 1.0, torch.where(kind < 0.75, 0.5, 0.0))
    return torch.where(kind < 0.75, 0.5, 1.0).sqrt() * own + shared.sqrt() * common


def random_times(n, device, g):
    """Timesteps: half of them arbitrary, half from the default sampling."""
    grid = torch.tensor(diffusion.timesteps(config.SAMPLING['steps']), device=device)
    some = grid[torch.randint(len(grid), (n,), device=device, generator=g)]
    anything = torch.randint(diffusion.STEPS, (n,), device=device, generator=g)
    return torch.where(torch.rand(n, device=device, generator=g) < 0.5, some, anything)


def pixel_losses(latents, decode, sync, data, estimate, clips, starts, view, t, table):
    """Stage 2's losses on decoded estimates [B F h w C]: pixels, edges, features, sync."""
    offset = (config.FRAMES - DECODED) // 2
    numbers = data.window(clips, starts)[:, offset:offset + DECODED]
    truth = latents.pictures(numbers, view)
    made = composite(latents.decode(estimate[:, offset:offset + DECODED], decode), truth, latents.mask)
    trust = table[t].sqrt()  # estimates from much noise are blurred means, so they count less
    difference = (made - truth).abs() * latents.region
    pixel = (difference.mean(dim=(1, 2, 3, 4)) * trust).mean()
    scale = (trust / trust.mean()).view(-1, 1, 1, 1, 1)
    a, b = (made * scale).flatten(0, 1), (truth * scale).flatten(0, 1)
    edge = edges(a, b) * trust.mean()
    seen, true = mouth_windows(lips(made)).flatten(0, 1), mouth_windows(lips(truth)).flatten(0, 1)
    early = sync.netcnnlip[:7]  # the first two convolutions
    shown, wanted = early(seen.permute(0, 4, 1, 2, 3)), early(true.permute(0, 4, 1, 2, 3))
    windows = DECODED - FRAMES + 1
    by_window = trust.repeat_interleave(windows)
    feature = ((shown - wanted).abs().mean(dim=(1, 2, 3, 4)) * by_window).mean() / wanted.abs().mean()
    sound = sync.sound(sound_windows(data.sound(clips, starts + offset, windows)).flatten(0, 1))
    apart = 1 - (sync.mouth(seen) * sound).sum(-1)
    return pixel, edge, feature, (apart * by_window).mean()


def main(argv=None):
    parser = common.options(__doc__, minutes=8.0, batch=64, lr=5e-4)
    parser.add_argument('--stage', type=int, default=1, choices=(1, 2))
    parser.add_argument('--views', type=int, default=2, help='how often every face is encoded, each time with other colours')
    parser.add_argument('--only', help='train only parameters with this in their name, such as attn2, the cross-attention to the sound')
    parser.add_argument('--afresh', action='store_true',
                        help='go on from the averaged weights, with a new optimizer and a new average: a short piece on '
                        'other data, which would not be seen in an average over thousands of steps')
    parser.add_argument('--guidance', type=float, default=config.SAMPLING['guidance'], help='guidance scale of the samples')
    args = parser.parse_args(argv)
    run = common.Run('unet', args)
    device = args.device
    data = Dataset(args.data, device)
    autoencoder = checkpoint.load(args.run, 'vae')
    vae = networks.AutoencoderKL(autoencoder['config']).to(device).eval().requires_grad_(False)
    vae.load_state_dict(autoencoder['ema'])
    latents = Latents(vae, data, args, run, views=args.views)
    run.log(f'{len(data.crops)} faces encoded in {args.views} views')
    judge = judging.Judge(args, data, latents)

    saved = checkpoint.load(args.run, 'unet', missing_ok=True)
    settings = saved['config'] if saved else config.unet(vae.config.latent_channels)
    net = networks.UNet3D(settings).to(device)
    if saved:
        net.load_state_dict(saved['ema' if args.afresh else 'weights'])
    if args.only:
        for name, p in net.named_parameters():
            p.requires_grad_(args.only in name)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = common.optimizer_of(trained, args)
    step = first = saved['step'] if saved else 0
    resumed = saved and not args.afresh and checkpoint.load_optimizer(args.run, 'unet', optimizer, saved)
    run.log(f'{sum(p.numel() for p in trained) / 1e6:.2f} M parameters, step {step}'
            + (', optimizer resumed' if resumed else ''))
    average = checkpoint.Average(net, 0.9995, saved and not args.afresh and saved['ema'])
    ema = networks.UNet3D(settings).to(device).eval()
    g = torch.Generator(device).manual_seed(args.seed + step)
    table = diffusion.alphas(device)
    weights = region_weights(latents.small_mask.cpu(), device)
    fast, decode = common.compiled(net, args, run), common.compiled(vae.decode, args, run)

    def predict(shown, t, tokens):
        with common.autocast(args):
            return ema(shown, t, tokens).float()

    def save():
        ema.load_state_dict(average.state)
        checkpoint.save(args.run, 'unet', config=settings, weights=net.state_dict(), ema=average.state,
                        step=step, optimizer=optimizer, stage=args.stage)
        run.log(f'saved at step {step}')

    while step - first < args.steps and not run.over(reserve=25 if args.minutes > 2 else 0):
        clips, starts, view, target, cond, tokens = draw(data, latents, args.batch, g)
        kept = torch.rand(args.batch, 1, 1, 1, device=device, generator=g) >= DROPPED
        t = random_times(args.batch, device, g)
        noise = noise_like(target, g)
        noisy = diffusion.add_noise(target, noise, t, table)
        common.set_rate(optimizer, args.lr * run.rate_factor(step - first if not resumed else 10 ** 6))
        with common.autocast(args):
            eps = fast(torch.cat([noisy, cond], dim=-1), t, tokens * kept).float()
        snr = table[t] / (1 - table[t])
        importance = (snr.clamp(max=GAMMA) / snr).view(-1, 1, 1, 1, 1)
        loss = plain = (importance * weights * (eps - noise) ** 2).mean()
        parts = ()
        if args.stage == 2:
            estimate = diffusion.clean(noisy, eps, t, table)
            with common.autocast(args):
                parts = pixel_losses(latents, decode, judge.sync, data, estimate, clips, starts, view, t, table)
            loss = loss + PIXELS * parts[0] + EDGES * parts[1] + FEATURES * parts[2] + SYNC * parts[3]
        norm = common.descend(loss, optimizer, average, trained)
        step += 1
        if run.due(step):
            more = ''.join(f' {n} {v.item():.4f}' for n, v in zip(('pixels', 'edges', 'features', 'sync'), parts))
            run.log(f'step {step}: noise {plain.item():.4f}{more} gradient {norm.item():.2f}, {run.rate:.2f} steps/s')
            if not torch.isfinite(loss):
                raise SystemExit('the loss is not finite; the last checkpoint is kept')
        if run.save_due():
            save()
            if run.share() < 0.9:
                run.log(judge(predict, table, args.guidance, clips=8))
    save()
    run.log(judge(predict, table, args.guidance, clips=16, sheet=args.run + '/unet.png'))


if __name__ == '__main__':
    main()
