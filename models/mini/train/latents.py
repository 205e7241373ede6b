"""Every face's latents, encoded once: the posterior of the whole face and of the face with the mouth
region blanked out, in several views (view 0: as it is; others: mirrored, in other colours)."""

import torch

from . import alignment, common, config
from .dataset import pixels


def composite(made, truth, mask):
    """Combines a decoded face with the input, as the pipeline does: decoded inside of the mask, input outside."""
    return made * (1 - mask) + truth * mask


class Latents:
    """mean, logvar f16 [views N h w C] of whole and masked faces; drawing adds the posterior's noise."""

    def __init__(self, vae, data, args, run, views=2, splits=('train', 'test')):
        self.vae, self.data, self.views = vae, data, views
        self.factor = vae.config.scaling_factor
        device = data.device
        self.mask = alignment.mask(config.SIZE).to(device)
        self.small_mask = self.mask[::config.FACTOR, ::config.FACTOR].contiguous()
        rows, columns = slice(64, 112), slice(32, 96)
        self.region = 1 - self.mask
        self.region[rows, columns] *= 3
        self.region = self.region / self.region.mean()
        self.clip_of = torch.zeros(len(data.crops), dtype=torch.long, device=device)
        for i, c in enumerate(data.clips):
            self.clip_of[c['first']:c['first'] + c['frames']] = i
        # Colours of each view and clip: gains per channel and a shift; view 0 is unchanged.
        g = torch.Generator('cpu').manual_seed(args.seed)
        n = len(data.clips)

        def spread(width, channels):
            return width * (torch.rand(views, n, channels, generator=g) - 0.5)

        gain, shift = 1 + spread(0.25, 1) + spread(0.15, 3), spread(0.3, 1)
        gain[0], shift[0] = 1, 0
        self.gain, self.shift = gain.to(device), shift.to(device)
        side, channels = config.SIZE // config.FACTOR, vae.config.latent_channels
        shape = (views, len(data.crops), side, side, 2 * channels)
        self.whole = torch.empty(shape, dtype=torch.float16, device=device)
        self.blank = torch.empty(shape, dtype=torch.float16, device=device)
        encode = common.compiled(lambda x: torch.cat(vae.encode(x), dim=-1), args, run)
        numbers = data.frame_numbers(*splits)
        size = min(512 if device != 'cpu' else 16, len(numbers))
        with torch.no_grad(), common.autocast(args):
            for view in range(views):
                for part in numbers.split(size):
                    # Only full batches, so that one compiled graph suffices.
                    full = torch.cat([part, part[:1].expand(size - len(part))])
                    x = self.pictures(full[:, None], torch.full((size,), view, device=device))[:, 0]
                    self.whole[view, part] = encode(x)[:len(part)].half()
                    self.blank[view, part] = encode(x * self.mask)[:len(part)].half()

    def pictures(self, numbers, view):
        """Faces [n k H W 3] in [-1, 1]; numbers [n k], view [n]."""
        x = pixels(self.data.crops[numbers])
        clip = self.clip_of[numbers]
        at = view[:, None].expand_as(clip)
        x = x * self.gain[at, clip][:, :, None, None] + self.shift[at, clip][:, :, None, None]
        mirrored = (view % 2 == 1).view(-1, 1, 1, 1, 1)
        return torch.where(mirrored, x.flip(-2), x).clamp(-1, 1)

    def draw(self, numbers, view, g=None):
        """Scaled latents of whole and of masked faces, draws from the posteriors; g None: their means."""
        out = []
        for table in (self.whole, self.blank):
            mean, logvar = table[view[:, None], numbers].float().chunk(2, dim=-1)
            if g is not None:
                mean = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, device=mean.device, generator=g)
            out.append(mean * self.factor)
        return out

    def condition(self, masked, reference):
        """What stands beside the noisy latents: mask, masked and reference latents [B F h w 1 + 2 C]."""
        B, N, h, w, _ = masked.shape
        mask = self.small_mask.view(1, 1, h, w, 1).expand(B, N, h, w, 1)
        return torch.cat([mask, masked, reference], dim=-1)

    def decode(self, x, fast=None):
        """Scaled latents [B F h w C] to pictures [B F H W 3]; fast: a compiled vae.decode."""
        return (fast or self.vae.decode)((x / self.factor).flatten(0, 1)).float().unflatten(0, x.shape[:2])
