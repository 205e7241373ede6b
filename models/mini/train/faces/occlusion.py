"""How much of the sky each vertex sees, measured once on the base mesh with depth pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .head import SKIN, Head
from .raster import rasterize

_SIDE = 256
_DIRECTIONS = 40
_BIAS = 0.035


def directions(count: int) -> Tensor:
    """Evenly spread unit vectors [count 3] (a Fibonacci sphere)."""
    k = torch.arange(count) + 0.5
    height = 1 - 2 * k / count
    angle = math.pi * (1 + math.sqrt(5)) * k
    ring = (1 - height * height).sqrt()
    return torch.stack([ring * angle.cos(), height, ring * angle.sin()], 1)


def basis(to: Tensor) -> Tensor:
    """Rotations [N 3 3] whose third row points along `to` [N 3]."""
    helper = torch.where(
        to[:, 1:2].abs() < 0.9,
        torch.tensor([[0.0, 1.0, 0.0]], device=to.device),
        torch.tensor([[1.0, 0.0, 0.0]], device=to.device),
    )
    x = torch.nn.functional.normalize(torch.cross(helper, to, dim=1), dim=1)
    return torch.stack([x, torch.cross(to, x, dim=1), to], 1)


def depth_pictures(
    vertices: Tensor,
    tris: Tensor,
    shown: Tensor,
    to: Tensor,
    centre: Tensor,
    reach: float,
    side: int,
) -> tuple[Tensor, Tensor]:
    """Depth [B side side] of meshes [B V 3] seen from directions `to` [B 3], parallel, within
    `reach` of the centre [B 3], of triangles shown (bool [T] or [B T]); and the vertices' own
    places there [B V 3] (samples, depth).
    """
    local = (vertices - centre[:, None]) @ basis(to).transpose(1, 2)
    screen = torch.stack(
        [
            (local[..., 0] / reach + 1) * side / 2,
            (1 - local[..., 1] / reach) * side / 2,
            0.5 - local[..., 2] / (4 * reach),
        ],
        -1,
    )
    both = torch.ones(len(tris), dtype=torch.bool, device=vertices.device)
    hits = rasterize(screen, tris, side, side, shown if shown.dim() == 2 else shown[None], both)
    return hits.depth, screen


def openness(head: Head) -> Tensor:
    """Share of the sky that each vertex sees [V], weighted by the cosine to its normal."""
    vertices = head.base[None]
    normals = head.normals(vertices)[0]
    shown = head.part == SKIN
    to = directions(_DIRECTIONS).to(head.device)
    centre = torch.tensor([[0.0, 6.9, 0.6]], device=head.device)
    seen = torch.zeros(len(head.base), device=head.device)
    total = torch.zeros_like(seen)
    reach = 2.6
    for one in to:
        depth, place = depth_pictures(vertices, head.tris, shown, one[None], centre, reach, _SIDE)
        x = place[0, :, 0].long().clamp(0, _SIDE - 1)
        y = place[0, :, 1].long().clamp(0, _SIDE - 1)
        nearest = depth[0].view(-1)[y * _SIDE + x]
        lit = (place[0, :, 2] - _BIAS / (4 * reach)) <= nearest
        cosine = (normals @ one).clamp(min=0)
        seen, total = seen + cosine * lit, total + cosine
    return (seen / total.clamp(min=1e-6)).clamp(0.05, 1) ** 0.8


class ShadowPictures:
    """What the first light of each frame sees of a head [B V 3], to tell what lies in shadow."""

    def __init__(
        self,
        vertices: Tensor,
        tris: Tensor,
        shown: Tensor,
        to: Tensor,
        centre: Tensor,
        softness: Tensor,
    ) -> None:
        self.side, self.reach = 160, 1.9
        self.rotation, self.centre = basis(to), centre
        self.depth, _ = depth_pictures(vertices, tris, shown, to, centre, self.reach, self.side)
        self.spread = 0.8 + 1.4 * softness

    def lit(self, frame: Tensor, where: Tensor) -> Tensor:
        """Share of light [P] that reaches places [P 3] of frames [P]: nine looks around."""
        local = (self.rotation[frame] @ (where - self.centre[frame])[..., None])[..., 0]
        x = (local[:, 0] / self.reach + 1) * self.side / 2
        y = (1 - local[:, 1] / self.reach) * self.side / 2
        depth = 0.5 - (local[:, 2] + 0.05) / (4 * self.reach)
        flat, spread = self.depth.view(-1), self.spread[frame]
        total = torch.zeros_like(x)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                total = total + self._free(frame, x + dx * spread, y + dy * spread, depth, flat)
        return total / 9

    def _free(self, frame: Tensor, x: Tensor, y: Tensor, depth: Tensor, flat: Tensor) -> Tensor:
        """Whether nothing lies before a place, blended between the four samples around it."""
        x, y = x - 0.5, y - 0.5
        column, row = x.floor(), y.floor()
        fx, fy = x - column, y - row
        out = torch.zeros_like(x)
        for j, wy in ((0, 1 - fy), (1, fy)):
            for i, wx in ((0, 1 - fx), (1, fx)):
                at = (row.long() + j).clamp(0, self.side - 1) * self.side
                at = frame * self.side**2 + at + (column.long() + i).clamp(0, self.side - 1)
                out = out + wx * wy * (depth <= flat[at])
        beyond = (x < 0) | (y < 0) | (x > self.side - 2) | (y > self.side - 2)
        return torch.where(beyond, 1.0, out)
