"""LatentSync's face alignment and mask, as in models/latentsync/align.lua (without its rounding)."""

import os
import re

import numpy as np
import torch

TEMPLATE = np.array([[17, 20], [58, 20], [37.5, 40]])


def crop_size(size):
    """Width and height of the crop before it is resized to size x size."""
    r = size / 256 * 2.8
    return int(75 * r), int(100 * r)


def matrices(points, size):
    """points float [F 3 2] (left brow, right brow, nose; pixels) -> float64 [F 2 3], from source pixels to
    the square face of `size`: a similarity, the bias smoothed over frames, then the squeeze."""
    template = TEMPLATE * (size / 256 * 2.8)
    width, height = crop_size(size)
    squeeze = np.array([size / width, size / height])
    q = template - template.mean(0)
    s2 = q.std(ddof=1)
    out, bias = [], None
    for p in np.round(np.asarray(points, dtype=np.float64)):
        centre = p.mean(0)
        p = p - centre
        s1 = p.std(ddof=1)
        u, _, v = np.linalg.svd((p / s1).T @ (q / s2))
        rotation = (u @ v).T
        if np.linalg.det(rotation) < 0:
            v[1] *= -1
            rotation = (u @ v).T
        linear = s2 / s1 * rotation
        new = q[2] / s2 - p[2] / s1
        bias = new if bias is None else 0.2 * bias + 0.8 * new
        shift = template.mean(0) - linear @ centre + bias
        # Pixel centres are at integers; resizing maps edges to edges.
        m = np.concatenate([linear, shift[:, None] + 0.5], axis=1) * squeeze[:, None]
        m[:, 2] -= 0.5
        out.append(m)
    return np.stack(out)


def mask_rows():
    """The fixed mask's rows, from models/latentsync/mask_rows.lua."""
    path = os.path.join(os.path.dirname(__file__), '..', '..', 'latentsync', 'mask_rows.lua')
    with open(path) as f:
        text = f.read().split('return', 1)[1]
    return [[int(n) for n in re.findall(r'\d+', entry)] for entry in re.findall(r'\{([\d,\s]+)\}', text)]


def lanczos(size, taps=4):
    """OpenCV's eight-tap Lanczos interpolation from 256 to `size` as a matrix [size 256]."""
    out = np.zeros((size, 256))
    for i in range(size):
        centre = (i + 0.5) * 256 / size - 0.5
        first = int(np.floor(centre)) - taps + 1
        k = np.arange(first, first + 2 * taps)
        x = centre - k
        w = np.sinc(x) * np.sinc(x / taps)
        np.add.at(out[i], np.clip(k, 0, 255), w / w.sum())
    return out


def mask(size):
    """float32 [size size 1]: 1 keeps, 0 regenerates."""
    full = np.ones((256, 256))
    rows = mask_rows()
    for i, entry in enumerate(rows):
        end = rows[i + 1][0] if i + 1 < len(rows) else 256
        for first, last in zip(entry[1::2], entry[2::2]):
            full[entry[0]:end, first:last + 1] = 0
    m = lanczos(size)
    small = np.floor(np.clip(m @ (full * 255) @ m.T, 0, 255) + 0.5) / 255
    return torch.from_numpy(small.astype(np.float32))[..., None]
