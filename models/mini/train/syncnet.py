"""Trains the small SyncNet: `python -m train.syncnet --data DATA --run RUN --minutes 3`.

Five frames of a mouth and 0.2 s of sound: each mouth must find its sound among those of its own clip at
other times and of other clips, and each sound its mouth (cross-entropy over cosine similarities; van den
Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018). Trained on the splits
`sync` and `train`: none of their faces, voices and sentences is in the test set. Resumes from RUN/syncnet.pt.
"""

import torch
import torch.nn.functional as F

from . import checkpoint, common
from .dataset import Dataset, pixels
from .sync_network import FRAMES, SETTINGS, SyncNet, judge, lips, mouth_windows, sound_windows

SPACING = 3  # frames between the windows of a clip that are discriminated
WINDOWS = 12  # windows per clip


def vary(x, g):
    """Aligned faces [B F H W 3] in [-1, 1], each clip with its own place, size, colours and sharpness; a
    mirror image half of the time; places tremble from frame to frame as a detector's do."""
    B, N, H, W, _ = x.shape
    device = x.device

    def rand(*shape):
        return torch.rand(*shape, device=device, generator=g)

    def spread(*shape):
        return rand(*shape) * 2 - 1

    zoom = torch.exp(0.1 * spread(B, 1))
    angle = 0.08 * spread(B, 1)
    theta = torch.zeros(B, N, 2, 3, device=device)
    theta[..., 0, 0], theta[..., 0, 1] = zoom * angle.cos(), -zoom * angle.sin()
    theta[..., 1, 0], theta[..., 1, 1] = zoom * angle.sin(), zoom * angle.cos()
    tremble = 0.006 * rand(B, 1, 1) * torch.randn(B, N, 2, device=device, generator=g)
    theta[..., 2] = 0.06 * spread(B, 1, 2) + tremble
    theta[..., :, 0] *= torch.where(rand(B) < 0.5, -1.0, 1.0)[:, None, None]
    flat = x.reshape(B * N, H, W, 3).permute(0, 3, 1, 2)
    grid = F.affine_grid(theta.reshape(B * N, 2, 3), flat.shape, align_corners=False)
    y = F.grid_sample(flat, grid, 'bilinear', 'border', align_corners=False)
    small = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode='bilinear')
    blur = (rand(B, 1, 1, 1, 1) * 1.5 - 0.5).clamp(min=0).expand(-1, N, -1, -1, -1).reshape(B * N, 1, 1, 1)
    y = (y + blur * (small - y)).permute(0, 2, 3, 1).reshape(x.shape)
    shape = (B, 1, 1, 1, 1)
    y = y * (1 + 0.3 * spread(*shape)) * (1 + 0.1 * spread(B, 1, 1, 1, 3)) + 0.2 * spread(*shape)
    y = y + 0.04 * rand(*shape) * torch.randn(y.shape, device=device, generator=g)
    return y.clamp(-1, 1)


def vary_sound(x, g):
    """MFCC windows [B W 20 13], whose coefficients vary by some 15 within a clip: loudness and a microphone's or a
    voice's colour (the same for all of a clip) change nothing, neither do how lively it speaks and noise."""
    def some(*shape):
        return torch.rand(len(x), *shape, device=x.device, generator=g)

    def normal(*shape):
        return torch.randn(len(x), *shape, device=x.device, generator=g)

    liveliness = 1 + 0.15 * normal(1, 1, 1)
    colour = 6 * some(1, 1, 1) * normal(1, 1, x.shape[-1])
    return x * liveliness + colour + 3 * some(1, 1, 1) * normal(*x.shape[1:])


def batch(data, clips, g, varied=True):
    """Mouth windows [B W 5 h w 3] and sound windows [B W 20 13] of random pieces of clips."""
    length = SPACING * (WINDOWS - 1) + FRAMES
    starts = data.start(clips, g, length)
    frames = pixels(data.crops[data.window(clips, starts, length)])
    if varied:
        frames = vary(frames, g)
    mouth = mouth_windows(lips(frames))[:, ::SPACING]
    sound = sound_windows(data.sound(clips, starts, length - FRAMES + 1))[:, ::SPACING]
    return mouth, vary_sound(sound, g) if varied else sound


def contrast(mouth, sound, scale):
    """Cross-entropy both ways; mouth, sound [B W D] of length 1."""
    m, s = mouth.flatten(0, 1), sound.flatten(0, 1)
    logits = scale * m @ s.T
    labels = torch.arange(len(m), device=m.device)
    # Besides the whole batch, a clip's own windows alone, which tests timing and not the speaker.
    own = scale * torch.einsum('bwd,bvd->bwv', mouth, sound)
    mine = torch.arange(mouth.shape[1], device=m.device).expand(mouth.shape[:2]).flatten()
    both = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    clip = F.cross_entropy(own.flatten(0, 1), mine) + F.cross_entropy(own.transpose(1, 2).flatten(0, 1), mine)
    right = (own.argmax(-1).flatten() == mine).float().mean()
    return both / 2 + clip / 2, right


@torch.no_grad()
def embeddings(net, data, clip):
    """All of one clip's embeddings: mouth [n D], sound [n D]."""
    c = data.clips[clip]
    at = torch.tensor([clip], device=data.device)
    start = torch.zeros(1, dtype=torch.long, device=data.device)
    frames = pixels(data.crops[c['first']:c['first'] + c['frames']])[None]
    mouth = mouth_windows(lips(frames))[0]
    sound = sound_windows(data.sound(at, start, len(mouth)))[0]
    return torch.cat([net.mouth(x) for x in mouth.split(128)]), torch.cat([net.sound(x) for x in sound.split(512)])


@torch.no_grad()
def evaluate(net, data, split='test', most=40):
    """True pairs, shifted sound and another clip's sound: shares of right offsets, confidences."""
    net.eval()
    pairs = [embeddings(net, data, i) for i in data.split[split].tolist()[:most]]
    right, moved, own, other = [], [], [], []
    for i, (mouth, sound) in enumerate(pairs):
        offset, confidence, _ = judge(mouth, sound)
        right.append(abs(offset) <= 1)
        own.append(confidence)
        shift = i % 11 - 5
        if shift:
            a, b = (mouth[shift:], sound) if shift > 0 else (mouth, sound[-shift:])
            moved.append(abs(judge(a, b)[0] - (offset - shift)) <= 1)
        if len(pairs) > 1:
            other.append(judge(mouth, pairs[(i + 1) % len(pairs)][1])[1])
    net.train()

    def mean(values):
        return sum(values) / max(len(values), 1)

    return {'right': mean(right), 'moved': mean(moved), 'confidence': mean(own), 'mismatched': mean(other)}


def main(argv=None):
    parser = common.options(__doc__, minutes=3.0, batch=48, lr=1e-3)
    parser.add_argument('--sharpest', type=float, default=20, help='maximum factor of the cosines in the loss')
    args = parser.parse_args(argv)
    run = common.Run('syncnet', args)
    data = Dataset(args.data, args.device)
    data.split['seen'] = torch.cat([data.split['sync'], data.split['train']])
    saved = checkpoint.load(args.run, 'syncnet', missing_ok=True)
    net = SyncNet().to(args.device)
    scale = torch.nn.Parameter(torch.tensor(2.5, device=args.device))
    if saved:
        net.load_state_dict(saved['weights'])
        scale.data.fill_(saved['scale'])
    optimizer = common.optimizer_of([*net.parameters(), scale], args, weight_decay=0.05)
    step = first = saved['step'] if saved else 0
    resumed = saved and checkpoint.load_optimizer(args.run, 'syncnet', optimizer, saved)
    run.log(f'{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, step {step}')
    average = checkpoint.Average(net, 0.998, saved and saved['ema'])
    ema = SyncNet().to(args.device)
    g = torch.Generator(args.device).manual_seed(args.seed + step)
    length = SPACING * (WINDOWS - 1) + FRAMES

    def save():
        ema.load_state_dict(average.state)
        checkpoint.save(args.run, 'syncnet', config=SETTINGS, weights=net.state_dict(), ema=average.state,
                        step=step, optimizer=optimizer, scale=scale.item())
        e = evaluate(ema, data)
        run.log(f'saved at step {step}: test clips: offset within 1 frame {e["right"]:.3f}, after a shift '
                f'{e["moved"]:.3f}, confidence {e["confidence"]:.3f}, mismatched {e["mismatched"]:.3f}')

    def loss_of(mouth, sound):
        shape = mouth.shape[:2]
        return contrast(net.mouth(mouth.flatten(0, 1)).float().unflatten(0, shape),
                        net.sound(sound.flatten(0, 1)).float().unflatten(0, shape), scale.exp().clamp(max=args.sharpest))

    while step - first < args.steps and not run.over(reserve=5 if args.minutes > 0.5 else 0):
        clips = data.choose('seen', args.batch, g, length)
        mouth, sound = batch(data, clips, g)
        common.set_rate(optimizer, args.lr * run.rate_factor(step - first if not resumed else 10 ** 6))
        with common.autocast(args):
            loss, right = loss_of(mouth, sound)
        common.descend(loss, optimizer, average)
        step += 1
        if run.due(step):
            run.log(f'step {step}: loss {loss.item():.3f}, found within the clip {right.item():.3f}, '
                    f'scale {scale.exp().item():.1f}, {run.rate:.1f} steps/s')
        if run.save_due():
            save()
    save()


if __name__ == '__main__':
    main()
