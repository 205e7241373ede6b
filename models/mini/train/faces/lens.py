"""From light to a stored picture: blur, tone curve, sharpening, grain, compression.

Pictures are float [B H W 3].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import noise

_LUMA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)  # ITU-T T.81, table K.1
_CHROMA = torch.full((8, 8), 99.0)
_CHROMA[:4, :4] = torch.tensor(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]], dtype=torch.float32
)


def shrink(picture: Tensor, factor: int) -> Tensor:
    """Averages factor x factor samples."""
    if factor == 1:
        return picture
    b, h, w, c = picture.shape
    return picture.view(b, h // factor, factor, w // factor, factor, c).mean((2, 4))


def blur(picture: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, sigma [B] in pixels (up to about 2), edges repeated."""
    reach = 5
    k = torch.arange(-reach, reach + 1, device=picture.device)
    weights = torch.exp(-0.5 * (k / sigma.clamp(min=0.05)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    for dim in (1, 2):
        n = picture.shape[dim]
        total = 0
        for i in range(2 * reach + 1):
            at = (torch.arange(n, device=picture.device) + i - reach).clamp(0, n - 1)
            total = total + picture.index_select(dim, at) * weights[:, i, None, None, None]
        picture = total
    return picture


def develop(
    light: Tensor, exposure: Tensor, contrast: Tensor, saturation: Tensor, white: Tensor
) -> Tensor:
    """Linear light to sRGB values 0..1 with a soft shoulder; the numbers are [B] or [B 3]."""
    x = light * (exposure[:, None] * white)[:, None, None, :]
    x = torch.where(x < 0.6, x, 0.6 + 0.4 * (1 - torch.exp(-(x - 0.6) / 0.4)))
    x = torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
    grey = (x * torch.tensor((0.30, 0.59, 0.11), device=x.device)).sum(-1, keepdim=True)
    x = grey + (x - grey) * saturation[:, None, None, None]
    return (0.46 + (x - 0.46) * contrast[:, None, None, None]).clamp(0, 1)


def sharpen(picture: Tensor, amount: Tensor) -> Tensor:
    """Unsharp mask, as cameras do; amount [B]."""
    soft = blur(picture, torch.full_like(amount, 0.9))
    return (picture + (picture - soft) * amount[:, None, None, None]).clamp(0, 1)


def grain(picture: Tensor, amount: Tensor, seed: Tensor) -> Tensor:
    """Sensor noise, stronger in the dark; amount and seed (int64) [B]."""
    b, h, w, c = picture.shape
    index = torch.arange(h * w * c, device=picture.device).view(1, h, w, c)
    value = noise.normal(index, seed.view(b, 1, 1, 1))
    return (picture + value * amount[:, None, None, None] * (1.35 - picture)).clamp(0, 1)


def _dct(device: torch.device) -> Tensor:
    k, n = torch.arange(8, device=device)[:, None], torch.arange(8, device=device)[None]
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) * 0.5
    basis[0] *= math.sqrt(0.5)
    return basis


def _quantized(plane: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Blocks of 8 x 8 through the cosine transform and back; plane [B H W], 0..255."""
    b, h, w = plane.shape
    basis = _dct(plane.device)
    blocks = (plane - 128).view(b, h // 8, 8, w // 8, 8).permute(0, 1, 3, 2, 4)
    table = (table.to(plane.device) * scale[:, None, None]).clamp(min=1)[:, None, None]
    found = torch.round(basis @ blocks @ basis.T / table) * table
    back = basis.T @ found @ basis
    return back.permute(0, 1, 3, 2, 4).reshape(b, h, w) + 128


def jpeg(picture: Tensor, quality: Tensor) -> Tensor:
    """JPEG's losses (quality [B] in 1..100, colours at half size); 0..1 in and out."""
    b, h, w, _ = picture.shape
    down, right = -h % 16, -w % 16
    full = torch.nn.functional.pad(picture.permute(0, 3, 1, 2), (0, right, 0, down), "replicate")
    r, g, bl = (full * 255).unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * bl
    cb, cr = (bl - y) * 0.564 + 128, (r - y) * 0.713 + 128
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    y = _quantized(y, _LUMA, scale)

    def colour(plane: Tensor) -> Tensor:
        half = plane.view(b, plane.shape[1] // 2, 2, plane.shape[2] // 2, 2).mean((2, 4))
        half = _quantized(half, _CHROMA, scale)[:, None]
        return torch.nn.functional.interpolate(
            half, scale_factor=2, mode="bilinear", align_corners=False
        )[:, 0]

    cb, cr = colour(cb) - 128, colour(cr) - 128
    rgb = torch.stack([y + cr / 0.713, y - 0.344 * cb - 0.714 * cr, y + cb / 0.564], -1) / 255
    return rgb[:, :h, :w].clamp(0, 1)
