"""A triangle rasterizer in plain tensor operations: the same picture on a CPU and on a GPU.

Every triangle proposes the samples of its bounding box (in blocks of 2x2, 4x4 or several of 8x8);
the nearest proposal of each sample wins through one integer minimum, so the order of the work does
not matter and the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TRI_BITS = 24
_FAR = torch.iinfo(torch.int64).max


@dataclass
class Fragments:
    """Proposed samples: frame, triangle, sample position and the three weights, each [P]."""

    frame: Tensor
    tri: Tensor
    x: Tensor
    y: Tensor
    weights: tuple[Tensor, Tensor, Tensor]


# A test that says which fragments of triangles with holes are solid: bool [P].
Test = Callable[[Fragments], Tensor]


@dataclass
class Hits:
    """The visible samples: index into B*H*W, frame, triangle [P], weights [P 3]; depth [B H W]."""

    index: Tensor
    frame: Tensor
    tri: Tensor
    weights: Tensor
    depth: Tensor


class _Blocks:
    """Triangles cut into blocks of size x size samples: rows of frame, triangle, corner."""

    def __init__(self, frame: Tensor, tri: Tensor, x: Tensor, y: Tensor, size: int) -> None:
        self.frame, self.tri, self.x, self.y, self.size = frame, tri, x, y, size


def _tiles(frame: Tensor, tri: Tensor, box: Tensor, size: int) -> _Blocks:
    """Covers boxes [N 4] (first and last sample in x, y) with blocks of the given size."""
    nx = (box[:, 2] - box[:, 0]) // size + 1
    ny = (box[:, 3] - box[:, 1]) // size + 1
    count = nx * ny
    row = torch.repeat_interleave(torch.arange(len(frame), device=frame.device), count)
    first = torch.cumsum(count, 0) - count
    k = torch.arange(len(row), device=frame.device) - first[row]
    x = box[row, 0] + k % nx[row] * size
    y = box[row, 1] + k // nx[row] * size
    return _Blocks(frame[row], tri[row], x, y, size)


def _boxes(corners: Tensor, height: int, width: int) -> Tensor:
    """First and last sample [.. 4] whose centre may lie in triangles with corners [.. 3 2]."""
    low = (corners.amin(-2) - 0.5).ceil()
    high = (corners.amax(-2) - 0.5).floor()
    limit = torch.tensor([width - 1, height - 1], device=corners.device, dtype=corners.dtype)
    low = torch.minimum(low.clamp(min=0), limit + 1)
    high = torch.minimum(high, limit).clamp(min=-1)
    return torch.cat([low, high], -1).to(torch.int64)


def _fragments(
    blocks: _Blocks, screen: Tensor, tris: Tensor, height: int, width: int
) -> tuple[Fragments, Tensor]:
    """Samples of the blocks that lie in their triangles, and their depths [P]."""
    size, device = blocks.size, screen.device
    step = torch.arange(size, device=device)
    x = (blocks.x[:, None, None] + step[None, None, :]).expand(-1, size, size).flatten(1)
    y = (blocks.y[:, None, None] + step[None, :, None]).expand(-1, size, size).flatten(1)
    p = [screen[blocks.frame, tris[blocks.tri, i]] for i in range(3)]
    fx, fy = x + 0.5, y + 0.5

    def edge(a: Tensor, b: Tensor) -> Tensor:
        return (b[:, 0] - a[:, 0])[:, None] * (fy - a[:, 1:2]) - (b[:, 1] - a[:, 1])[:, None] * (
            fx - a[:, 0:1]
        )

    area = (p[1][:, 0] - p[0][:, 0]) * (p[2][:, 1] - p[0][:, 1])
    area = area - (p[1][:, 1] - p[0][:, 1]) * (p[2][:, 0] - p[0][:, 0])
    w0, w1 = edge(p[1], p[2]) / area[:, None], edge(p[2], p[0]) / area[:, None]
    w2 = 1 - w0 - w1
    inside = (w0 >= 0) & (w1 >= 0) & (w2 >= 0) & (x < width) & (y < height)
    block, cell = inside.nonzero(as_tuple=True)
    w = tuple(t[block, cell] for t in (w0, w1, w2))
    depth = sum(w[i] * p[i][block, 2] for i in range(3))
    found = Fragments(blocks.frame[block], blocks.tri[block], x[block, cell], y[block, cell], w)
    return found, depth


def _select(f: Fragments, keep: Tensor) -> Fragments:
    return Fragments(
        f.frame[keep], f.tri[keep], f.x[keep], f.y[keep], tuple(w[keep] for w in f.weights)
    )


def rasterize(
    screen: Tensor,
    tris: Tensor,
    height: int,
    width: int,
    shown: Tensor,
    two_sided: Tensor,
    holes: Tensor | None = None,
    test: Test | None = None,
) -> Hits:
    """Which triangle each sample sees.

    screen [B V 3]: position in samples (x right, y down) and depth in 0..1, smaller is nearer;
    tris [T 3]; shown bool [B T] or [1 T]; two_sided bool [T]; holes bool [T]: triangles whose
    fragments `test` must accept.
    """
    frames, device = screen.shape[0], screen.device
    corners = screen[:, tris][..., :2]
    a, b, c = corners.unbind(2)
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1])
    area = area - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    box = _boxes(corners, height, width)
    extent = (box[..., 2:] - box[..., :2]).amax(-1)
    solid = shown & ((area < -1e-6) | (two_sided & (area > 1e-6)))
    solid = solid & (box[..., 2] >= box[..., 0]) & (box[..., 3] >= box[..., 1])
    nearest = torch.full((frames * height * width,), _FAR, dtype=torch.int64, device=device)
    for low, high, size in ((0, 2, 2), (2, 4, 4), (4, 1 << 30, 8)):
        frame, tri = (solid & (extent >= low) & (extent < high)).nonzero(as_tuple=True)
        if len(frame) == 0:
            continue
        found, depth = _fragments(
            _tiles(frame, tri, box[frame, tri], size), screen, tris, height, width
        )
        if holes is not None and test is not None:
            keep = ~holes[found.tri]
            doubtful = (~keep).nonzero(as_tuple=True)[0]
            keep[doubtful] = test(_select(found, doubtful))
            found, depth = _select(found, keep), depth[keep]
        index = (found.frame * height + found.y) * width + found.x
        key = ((depth.clamp(0, 1) * (1 << 30)).to(torch.int64) << _TRI_BITS) | found.tri
        nearest.scatter_reduce_(0, index, key, "amin")
    return _read(nearest, screen, tris, (frames, height, width))


def _read(nearest: Tensor, screen: Tensor, tris: Tensor, shape: tuple[int, int, int]) -> Hits:
    """Unpacks the winners and gives each its weights again."""
    frames, height, width = shape
    index = (nearest != _FAR).nonzero(as_tuple=True)[0]
    key = nearest[index]
    tri = key & ((1 << _TRI_BITS) - 1)
    frame = index // (height * width)
    x = (index % width) + 0.5
    y = (index // width % height) + 0.5
    p = [screen[frame, tris[tri, i]] for i in range(3)]

    def edge(a: Tensor, b: Tensor) -> Tensor:
        return (b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (b[:, 1] - a[:, 1]) * (x - a[:, 0])

    area = (p[1][:, 0] - p[0][:, 0]) * (p[2][:, 1] - p[0][:, 1])
    area = area - (p[1][:, 1] - p[0][:, 1]) * (p[2][:, 0] - p[0][:, 0])
    w0, w1 = edge(p[1], p[2]) / area, edge(p[2], p[0]) / area
    depth = torch.where(nearest == _FAR, 1.0, (nearest >> _TRI_BITS).float() / (1 << 30))
    return Hits(index, frame, tri, torch.stack([w0, w1, 1 - w0 - w1], 1), depth.view(shape))
