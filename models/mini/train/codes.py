"""Weights as codes of 8 or 4 bits, for training: what cr.quant and models/quantize compute, with a gradient."""

import torch
from safetensors import safe_open

GROUP = 64                                                 # inputs that share one of int4's scales
SHARES = (1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)       # of the largest magnitude, as in models/quantize/rounding.lua
MOST = {'int8': 127, 'int4': 7, 'fp8': 448}


def read(path):
    """A file's tensors and its metadata."""
    with safe_open(path, 'pt') as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}


def straight(x, rounded):
    """rounded, with the gradient of x."""
    return x + (rounded - x).detach()


def as_fp8(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def nearest_scales(w, most, group):
    """For rows w [R K] a scale of each group of neighbours: that of SHARES whose rounding loses least. [R K]."""
    pad = -w.shape[1] % group
    x = torch.nn.functional.pad(w, (0, pad)).unflatten(1, (-1, group))
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    least = scale = None
    for share in SHARES:
        s = largest * (share / most)
        off = (x - (x / s).round().clamp(-most, most) * s).square().sum(-1, keepdim=True)
        scale = s if least is None else torch.where(off < least, s, scale)
        least = off if least is None else torch.minimum(off, least)
    return scale.expand_as(x).flatten(1)[:, :w.shape[1]]


class Codes(torch.nn.Module):
    """A layer's weight as its codes stand for it. part: the layer's tensors in the file; afresh: of these only the
    format counts, and the scales follow the weight."""

    def __init__(self, part, weight, afresh):
        super().__init__()
        shape, codes, scale = tuple(weight.shape), part['weight'], part['scale']
        self.shape, self.taps, self.rounding, self.afresh = shape, [1] * (len(shape) - 2), True, afresh
        self.format = 'int8' if codes.dtype == torch.int8 else 'int4' if scale.dim() == codes.dim() and scale.dim() > 1 else 'fp8'
        self.most = MOST[self.format]
        divisor = None if afresh else part.get('input', part.get('smooth'))
        self.static = 'input' in part and not afresh
        low = part['up'].float() @ part['down'].float() if 'up' in part and not afresh else None
        self.register_buffer('scale', None if afresh else self.spread(scale.float()).clamp(min=1e-30))
        self.register_buffer('divisor', divisor.float() if divisor is not None else None)
        self.register_buffer('low', low.view(shape[0], shape[1], *self.taps) if low is not None else None)

    def spread(self, scale):
        """The file's scales in the shape of the weight, [N K] or [N K kh kw]."""
        if self.format != 'int4':
            return scale.view(-1, 1, *self.taps)
        wide = scale.repeat_interleave(GROUP, -1)[..., :self.shape[1]]  # [N G], [N kh kw G]
        return (wide if wide.dim() == 2 else wide.permute(0, 3, 1, 2)).reshape(self.shape)

    @torch.no_grad()
    def scales(self, w):
        if not self.afresh:
            return self.scale
        if self.format == 'int4':
            rows = w.movedim(1, -1)
            s = nearest_scales(rows.reshape(-1, self.shape[1]), self.most, GROUP)
            return s.view(rows.shape).movedim(-1, 1)
        return nearest_scales(w.flatten(1), self.most, w[0].numel())[:, :1].view(-1, 1, *self.taps)

    def by_input(self, x):
        return x.view(1, -1, *self.taps)

    def whole(self, w, scale):
        """Codes, not yet rounded."""
        if self.low is not None:
            w = w - self.low
        if self.divisor is not None:
            w = w * self.by_input(self.divisor)
        return w / scale

    def back(self, v, scale):
        """What codes stand for."""
        w = v * scale
        if self.divisor is not None:
            w = w / self.by_input(self.divisor)
        return w if self.low is None else w + self.low

    def rounded(self, w, scale):
        v = self.whole(w, scale).clamp(-self.most, self.most)
        return straight(v, as_fp8(v) if self.format == 'fp8' else v.round())

    def forward(self, w):
        if not self.rounding:
            return w
        scale = self.scales(w)
        return self.back(self.rounded(w, scale), scale)

    def start(self, codes, w):
        """The weight nearest to w whose codes are the file's."""
        if self.format == 'fp8':
            return w
        q = codes
        if self.format == 'int4':
            q = torch.stack([codes & 15, codes >> 4], 2).flatten(1, 2).to(torch.int8)
            q = q - 16 * (q > 7)
        q = q.float().view(self.shape)
        v = self.whole(w, self.scale)
        return self.back(torch.minimum(torch.maximum(v, q - 0.45), q + 0.45), self.scale)

    def seen(self, x):
        """The layer's input as it is quantized, [... K]."""
        if self.format == 'int4' or not self.rounding:
            return x
        v = x if self.divisor is None else x / self.divisor
        scale = 1 if self.static else v.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30) / self.most
        v = (v / scale).clamp(-self.most, self.most)
        v = straight(v, as_fp8(v) if self.format == 'fp8' else v.round()) * scale
        return v if self.divisor is None else v * self.divisor

    @torch.no_grad()
    def stored(self, w):
        """The codes as the file has them."""
        v = self.rounded(w, self.scale)
        if self.format == 'fp8':
            return v.to(torch.float8_e4m3fn).view(torch.uint8)
        if self.format == 'int8':
            return v.round().to(torch.int8)
        v = v.round().to(torch.int16) & 15
        return (v[:, 0::2] | v[:, 1::2] << 4).to(torch.uint8)
