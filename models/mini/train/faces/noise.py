"""Random patterns: tileable noise pictures that shading looks up, and a hash for grain.

Patterns come from a fixed seed through numpy, so they are the same everywhere; what differs between
people is where and how densely the pictures are read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIZE = 512
# Channels of the pattern library.
CLOUD, FINE, PORES, SPOTS, STRANDS, STUBBLE, WRINKLES = range(7)


def _filtered(rng: np.random.Generator, response: np.ndarray) -> np.ndarray:
    """White noise through a frequency response [SIZE SIZE], as zero mean, unit deviation."""
    spectrum = np.fft.fft2(rng.standard_normal((SIZE, SIZE))) * response
    picture = np.fft.ifft2(spectrum).real
    return (picture - picture.mean()) / picture.std()


def _band(low: float, high: float, slope: float) -> np.ndarray:
    """Response 1/f^slope between two frequencies in cycles per picture."""
    f = np.fft.fftfreq(SIZE) * SIZE
    radius = np.maximum(np.hypot(f[:, None], f[None, :]), 1e-6)
    window = 1 / (1 + (low / radius) ** 6) / (1 + (radius / high) ** 6)
    return window * radius**-slope


def _along_v(low_u: float, high_u: float, high_v: float) -> np.ndarray:
    """Response for streaks along v (rows): many across u, long along v."""
    f = np.abs(np.fft.fftfreq(SIZE) * SIZE)
    across = 1 / (1 + (low_u / np.maximum(f, 1e-6)) ** 4) / (1 + (f / high_u) ** 6)
    along = np.exp(-0.5 * (f / high_v) ** 2)
    return along[:, None] * across[None, :]


def _dots(rng: np.random.Generator, count: int, sigma: tuple[float, float]) -> np.ndarray:
    """Soft round dots of random size and strength, 0..1."""
    picture = np.zeros((SIZE, SIZE))
    reach = int(sigma[1] * 4) + 1
    grid = np.arange(-reach, reach + 1)
    for _ in range(count):
        x, y = rng.uniform(0, SIZE, 2)
        s, strength = rng.uniform(*sigma), rng.uniform(0.25, 1)
        dx, dy = grid + int(x) - x, grid + int(y) - y
        dot = strength * np.exp(-0.5 * (dx[None] ** 2 + dy[:, None] ** 2) / s**2)
        rows, columns = (int(y) + grid) % SIZE, (int(x) + grid) % SIZE
        patch = picture[np.ix_(rows, columns)]
        picture[np.ix_(rows, columns)] = np.maximum(patch, dot)
    return picture


def library(device: torch.device) -> Tensor:
    """The patterns [7 SIZE+1 SIZE+1]; the last row and column repeat the first."""
    rng = np.random.default_rng(20240611)
    channels = [
        _filtered(rng, _band(2, 32, 1.3)),
        _filtered(rng, _band(16, 160, 0.8)),
        _dots(rng, 5200, (1.2, 2.4)) * 2 - 0.5,
        _dots(rng, 420, (1.5, 4.5)),
        _filtered(rng, _along_v(24, 120, 5)),
        _dots(rng, 7000, (0.9, 1.5)),
        _filtered(rng, _along_v(3, 20, 2)),
    ]
    tiles = np.stack([np.pad(c, ((0, 1), (0, 1)), mode="wrap") for c in channels])
    return torch.as_tensor(tiles.astype(np.float32), device=device)


def look(patterns: Tensor, channel: int, u: Tensor, v: Tensor) -> Tensor:
    """A pattern at (u, v) in tiles, bilinear and endlessly repeated; shape of u."""
    x, y = (u - u.floor()) * SIZE, (v - v.floor()) * SIZE
    xi = x.to(torch.int64).clamp(max=SIZE - 1)
    yi = y.to(torch.int64).clamp(max=SIZE - 1)
    fx, fy = x - xi, y - yi
    flat = patterns[channel].reshape(-1)
    at = yi * (SIZE + 1) + xi
    top = flat[at] * (1 - fx) + flat[at + 1] * fx
    bottom = flat[at + SIZE + 1] * (1 - fx) + flat[at + SIZE + 2] * fx
    return top * (1 - fy) + bottom * fy


def hashed(index: Tensor, seed: Tensor | int) -> Tensor:
    """A uniform number in 0..1 for each integer (int64, any shape) and seed, by mixing bits."""
    mask = 0xFFFFFFFF
    x = (index * 0x9E3779B1 + seed * 0x85EBCA77) & mask
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & mask
    x = ((x ^ (x >> 12)) * 0x297A2D39) & mask
    x = x ^ (x >> 15)
    return x.float() / 4294967296.0


def normal(index: Tensor, seed: Tensor | int) -> Tensor:
    """Roughly normal numbers: the sum of three uniform ones."""
    total = sum(hashed(index * 3 + k, seed) for k in range(3))
    return (total - 1.5) * 2.0
