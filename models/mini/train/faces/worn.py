"""What a head wears: hair and beards as layers of strands over the skin, long hair, glasses.

All of it is geometry beside the head's own. Strands are cut out of the layers sample by sample
(`solid`). Letters: I identities, V the head's vertices, W the added ones, P samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import noise
from .head import BEARD, GLASSES, HAIR, SCALP, SKIN, Head
from .skin import Get, Surface, beard_area, smooth

HAIR_LAYERS, BEARD_LAYERS = 6, 4
BALD, BUZZ, SHORT, MEDIUM, LONG, TIED = range(6)
NO_BEARD, SHORT_BEARD, FULL_BEARD, MOUSTACHE, GOATEE = range(5)

# The hairline's height by angle from the front: forehead, temples, before the ear, behind it, nape.
_LINE = (
    (0, 7.99),
    (0.55, 7.97),
    (0.80, 7.82),
    (1.00, 7.50),
    (1.18, 7.20),
    (1.42, 7.12),
    (1.70, 6.85),
    (2.30, 6.58),
    (3.15, 6.48),
)
_EAR = (0.848, 0.37, 0.045, 0.04)  # place and reach of an ear in the texture plane (and mirrored)
_CURTAIN = (33, 15)  # vertices around and down of long hair
_RIM = 40  # vertices around a lens


def above_hairline(place: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Height [V] of vertices over the hairline, negative where no hair grows."""
    angle = np.arctan2(np.abs(place[:, 0]), place[:, 2] - 0.35)
    line = np.interp(angle, [a for a, _ in _LINE], [y for _, y in _LINE])
    u, v, reach_u, reach_v = _EAR
    side = np.minimum(np.abs(texture[:, 1] - v), np.abs(texture[:, 1] - 1 + v))
    ear = (np.abs(texture[:, 0] - u) < reach_u) & (side < reach_v)
    return np.where(ear, -1.0, place[:, 1] - line).astype(np.float32)


@dataclass
class Patch:
    """A piece of the skin that is repeated in layers: the skin's vertices, triangles among them."""

    index: Tensor
    tris: Tensor


def _patch(head: Head, chosen: Tensor) -> Patch:
    """Skin triangles of which any vertex is chosen (bool [V])."""
    tris = head.tris[(head.part == SKIN) & chosen[head.tris].any(1)]
    index, flat = torch.unique(tris, return_inverse=True)
    return Patch(index, flat.view(-1, 3))


def _grid(rows: int, columns: int, closed: bool = False) -> np.ndarray:
    """Triangles of a grid of vertices, row by row; closed joins the last column to the first."""
    out = []
    for r in range(rows - 1):
        for c in range(columns if closed else columns - 1):
            a, b = r * columns + c, r * columns + (c + 1) % columns
            out += [[a, a + columns, b], [b, a + columns, b + columns]]
    return np.array(out)


class Wardrobe:
    """Added vertices and triangles. `tris`, `part` hold the head's own first; `place`, `hair`,
    `shell` are attributes of the added vertices [W]."""

    def __init__(self, head: Head) -> None:
        self.head, device = head, head.device
        above = above_hairline(head.base.cpu().numpy(), head.texture.cpu().numpy())
        self.above = torch.as_tensor(above, device=device)
        skin = head.vertices_of[SKIN]
        x, y = head.base[skin, 0].abs(), head.base[skin, 1]
        self._brow = skin[(x < 0.45) & (x > 0.2) & ((y - 7.45).abs() < 0.06)]
        between = torch.tensor((0.0, 7.30, 1.5), device=device)
        self._bridge = skin[(head.base[skin] - between).norm(dim=1).argsort()[:6]]
        beard = beard_area(head.base, head.lip)
        forehead = (self.above > -0.42) & (head.base[:, 2] > 0.85) & (head.base[:, 1] > 7.56)
        self.scalp = _patch(head, (self.above > -0.08) | forehead)
        self.beard = _patch(head, beard > 0.02)
        tris, parts, places, hairs, shells, sources = [], [], [], [], [], []
        at = len(head.base)
        for patch, part, layers in (
            (self.scalp, SCALP, HAIR_LAYERS),
            (self.beard, BEARD, BEARD_LAYERS),
        ):
            for k in range(layers):
                tris.append(patch.tris + at)
                parts.append(torch.full((len(patch.tris),), part, device=device))
                places.append(head.base[patch.index])
                hairs.append(self.above[patch.index])
                shells.append(torch.full((len(patch.index),), (k + 1) / layers, device=device))
                sources.append(patch.index)
                at += len(patch.index)
        self.layered = torch.cat(sources)
        self._curtain_start = at
        around, down = _CURTAIN
        for k in range(2):
            grid = torch.as_tensor(_grid(down, around), device=device) + at
            tris.append(grid)
            parts.append(torch.full((len(grid),), HAIR, device=device))
            at += around * down
        rims = torch.as_tensor(self._glasses_tris(), device=device)
        tris.append(rims + at)
        parts.append(torch.full((len(rims),), GLASSES, device=device))
        free = 2 * around * down + len(self._glasses_plan()[0])
        self.place = torch.cat(places + [torch.zeros(free, 3, device=device)])
        t = torch.linspace(0, 1, down, device=device)[:, None].expand(down, around).reshape(-1)
        phi = torch.linspace(-1, 1, around, device=device)[None].expand(down, around).reshape(-1)
        for k in range(2):
            start = self._curtain_start - len(head.base) + k * around * down
            self.place[start : start + around * down, 0] = phi
            self.place[start : start + around * down, 1] = t
            self.place[start : start + around * down, 2] = float(k)
        self.hair = torch.cat(hairs + [torch.zeros(free, device=device)])
        self.shell = torch.cat(shells + [torch.ones(free, device=device)])
        self.tris = torch.cat([head.tris] + tris)
        self.part = torch.cat([head.part] + parts)
        self.count = free + len(self.layered)
        self.covered = self._covered()

    def _covered(self) -> Tensor:
        """Skin that every neckline covers (bool [T]), lest it shows through the clothes' folds."""
        corners = self.head.base[self.head.tris]
        top, side = corners[..., 1].amax(1), corners[..., 0].abs().amin(1)
        low = (top < 5.28) | ((top < 5.79) & (side > 0.74))
        out = torch.zeros(len(self.part), dtype=torch.bool, device=low.device)
        out[: len(low)] = low & (self.head.part == SKIN)
        return out

    # ---- shapes -----------------------------------------------------------------------------

    def thickness(self, table: dict[str, Tensor]) -> Tensor:
        """How far the outermost layer of hair lies from the skin: [I S] of the scalp's vertices."""
        style, volume = table["hair_style"], table["hair_volume"]
        top = torch.tensor((0.0, 0.03, 0.24, 0.26, 0.20, 0.06), device=style.device)[style]
        side = torch.tensor((0.0, 0.025, 0.09, 0.20, 0.16, 0.04), device=style.device)[style]
        place = self.head.base[self.scalp.index]
        high = smooth(place[:, 1], 7.3, 8.0)[None]
        body = side[:, None] * (1 - high) + top[:, None] * high
        edge = smooth(self.above[self.scalp.index], -0.02, 0.30)[None]
        return body * volume[:, None] * (0.25 + 0.75 * edge) + 0.006

    def beard_thickness(self, table: dict[str, Tensor]) -> Tensor:
        """The same of beards: [I S]."""
        kind = table["beard"]
        most = torch.tensor((0.0, 0.045, 0.20, 0.06, 0.13), device=kind.device)[kind]
        place = self.head.base[self.beard.index]
        chin = smooth(place[:, 1], 6.75, 6.3)[None]
        return most[:, None] * table["beard_length"][:, None] * (0.35 + 0.65 * chin) + 0.004

    def offsets(self, people: Tensor, table: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """From the skin to the layers' vertices [I L 3]; the free vertices [I F 3]."""
        normals = self.head.normals(people)
        hair = normals[:, self.scalp.index] * self.thickness(table)[..., None]
        beard = normals[:, self.beard.index] * self.beard_thickness(table)[..., None]
        beard[..., 1] -= 0.4 * self.beard_thickness(table)
        layers = [hair * ((k + 1) / HAIR_LAYERS) for k in range(HAIR_LAYERS)]
        layers += [beard * ((k + 1) / BEARD_LAYERS) for k in range(BEARD_LAYERS)]
        free = [self._curtain(people, table, k) for k in range(2)] + [self._glasses(people, table)]
        return torch.cat(layers, 1), torch.cat(free, 1)

    def _curtain(self, people: Tensor, table: dict[str, Tensor], layer: int) -> Tensor:
        """Hair that hangs from the head's sides and back: [I N 3]."""
        scalp = people[:, self.scalp.index]
        half = scalp[..., 0].abs().amax(1)[:, None] * (1.02 + 0.05 * layer)
        back = scalp[..., 2].amin(1)[:, None] - 0.10 - 0.05 * layer
        around, down = _CURTAIN
        t = (
            torch.linspace(0, 1, down, device=people.device)[:, None]
            .expand(down, around)
            .reshape(1, -1)
        )
        s = (
            torch.linspace(-1, 1, around, device=people.device)[None]
            .expand(down, around)
            .reshape(1, -1)
        )
        length = torch.where(table["hair_style"] == LONG, 2.2, 1.25)[:, None]
        length = length * (0.8 + 0.3 * table["hair_volume"][:, None])
        phi = math.pi + s * (math.pi - 1.02 - 0.12 * t)  # 0 is the front
        y = 8.02 - length * t
        volume = table["hair_volume"][:, None]
        swell = (
            1
            + 0.10 * volume * torch.sin(math.pi * (t * 1.1).clamp(0, 1))
            - 0.10 * smooth(t, 0.5, 1.0)
        )
        rise = 1 - (1 - (t * 3).clamp(0, 1)) ** 2 * 0.22
        wave = 0.03 * table["hair_wave"][:, None] * torch.sin(t * 14 + s * 9 + layer)
        x = -(half * swell * rise + wave) * torch.sin(phi)
        middle, cosine = 0.32, torch.cos(phi)
        z = middle + cosine * torch.where(cosine < 0, (middle - back) * swell * rise, 0.62 * rise)
        return torch.stack([x, y.expand_as(x), z], -1)

    # ---- glasses ----------------------------------------------------------------------------

    @staticmethod
    def _glasses_plan() -> tuple[np.ndarray, np.ndarray]:
        """Vertices of a pair of glasses as (kind, side, parameter, ring) and its triangles."""
        plan, tris = [], []
        for side in (1, -1):
            start = len(plan)
            for ring in range(2):
                plan += [(0, side, k / _RIM * 2 * math.pi, ring) for k in range(_RIM)]
            tris.append(_grid(2, _RIM, closed=True) + start)
            start = len(plan)  # the temple, from the rim's outer end to the ear
            plan += [(1, side, along, ring) for along in (0.0, 0.5, 1.0) for ring in range(2)]
            tris.append(_grid(3, 2) + start)
        start = len(plan)
        plan += [(2, 1, along, ring) for along in np.linspace(-1, 1, 5) for ring in range(2)]
        tris.append(_grid(5, 2) + start)
        return np.array(plan, np.float32), np.concatenate(tris)

    def _glasses_tris(self) -> np.ndarray:
        return self._glasses_plan()[1]

    def _glasses(self, people: Tensor, table: dict[str, Tensor]) -> Tensor:
        """Frames before each person's eyes: [I G 3]."""
        plan = torch.as_tensor(self._glasses_plan()[0], device=people.device)
        kind, side, value, ring = plan.unbind(1)
        eye = torch.stack(
            [
                people[:, self.head.group_vertices[g]].mean(1)
                for g in ("helper-l-eye", "helper-r-eye")
            ],
            1,
        )
        apart = ((eye[:, 0, 0] - eye[:, 1, 0]) / 2)[:, None]
        middle, size = eye.mean(1), table["glasses_size"][:, None]
        bar = 0.020 * table["glasses_thick"][:, None]
        power = 2 + 3.0 * (1 - table["glasses_round"][:, None])
        c, s = torch.cos(value)[None], torch.sin(value)[None]
        swell = (c.abs() ** power + s.abs() ** power) ** (-1 / power)
        rx = 0.235 * size + bar * ring
        ry = (0.20 + 0.03 * table["glasses_round"][:, None]) * size * 0.92 + bar * ring
        rim_x = side * (apart + 0.012) + rx * c * swell
        rim_y = middle[:, 1:2] - 0.02 + ry * s * swell
        front = people[:, self._bridge, 2].mean(1) + 0.02
        front = torch.maximum(front, people[:, self._brow, 2].amax(1) + 0.045)[:, None]
        rim_z = front - 0.21 * rim_x**2
        end_x = side * (apart + 0.012 + 0.235 * size + bar)
        ear_x = side * (people[:, self.scalp.index, 0].abs().amax(1)[:, None] + 0.04)
        arm_x = end_x * (1 - value.clamp(0, 1)) + ear_x * value.clamp(0, 1)
        arm_y = middle[:, 1:2] + 0.06 + (ring - 0.5) * bar * 1.6
        arm_z = (front - 0.2 * end_x**2) * (1 - value.clamp(0, 1)) + 0.45 * value.clamp(0, 1)
        gap = apart + 0.012 - 0.225 * size
        bridge_x = gap * value
        bridge_y = middle[:, 1:2] + 0.05 + 0.02 * (1 - value**2) + (ring - 0.5) * bar * 1.3
        x = torch.where(kind == 0, rim_x, torch.where(kind == 1, arm_x, bridge_x))
        y = torch.where(kind == 0, rim_y, torch.where(kind == 1, arm_y, bridge_y))
        z = torch.where(kind == 0, rim_z, torch.where(kind == 1, arm_z, front + 0.01))
        return torch.stack([x, y, z], -1)

    # ---- what is there ----------------------------------------------------------------------

    def shown(self, table: dict[str, Tensor]) -> Tensor:
        """Which triangles each person shows: bool [I T]."""
        style, part = table["hair_style"][:, None], self.part[None]
        shown = torch.ones(len(style), len(self.part), dtype=torch.bool, device=part.device)
        shown &= ~self.covered[None]
        shown &= (part != SCALP) | (style != BALD)
        shown &= (part != BEARD) | (table["beard"][:, None] != NO_BEARD)
        shown &= (part != GLASSES) | (table["glasses"][:, None] > 0.5)
        hanging = (style == LONG) | (style == MEDIUM)
        own = torch.arange(len(self.part), device=part.device) >= len(self.head.part)
        shown &= (part != HAIR) | (own & hanging)
        return shown


def strands(place: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """Noise along the hairs of the scalp, which run down from the crown."""
    x, z = place[:, 0], place[:, 2] - 0.30
    y = place[:, 1] - 7.35
    down = torch.atan2(torch.hypot(x, z), y)
    angle = torch.atan2(x, z)
    bend = 0.10 * get("hair_wave") * torch.sin(down * 9 + angle * 5)
    return noise.look(
        patterns, noise.STRANDS, angle * 0.32 + bend + get("shift")[:, 1], down * 0.22
    )


def solid_scalp(place: Tensor, above: Tensor, shell: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """Which samples of the layers of hair are hair: bool [P]."""
    strand = strands(place, get, patterns)
    front = smooth(place[:, 2], 0.6, 1.2)
    line = above + (0.40 * get("fringe") - get("hairline")) * front + 0.035 * strand
    fringe = torch.minimum(line, place[:, 1] - 7.60 + 0.03 * strand)  # does not reach the brows
    line = torch.where(above < 0, fringe, line)
    return (line > 0.01) & (0.95 + 0.42 * strand > shell * 1.05)


def solid_curtain(place: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """The same of hanging hair; place holds across (-1..1), down (0..1), layer."""
    across, down = place[:, 0], place[:, 1]
    strand = noise.look(
        patterns, noise.STRANDS, across * 1.3 + get("shift")[:, 2] + 0.3 * place[:, 2], down * 0.25
    )
    locks = noise.look(patterns, noise.STRANDS, across * 0.35 + get("shift")[:, 0], down * 0.05)
    ends = 0.95 - 0.025 * strand - 0.03 * locks - 0.10 * across.abs()
    edge = 0.97 - 0.015 * strand.abs()
    return (down < ends) & (across.abs() < edge)


def solid_beard(place: Tensor, lip: Tensor, shell: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """The same of beards."""
    area = beard_area(place, lip)
    kind = get("beard")
    x, y = place[:, 0].abs(), place[:, 1]
    moustache = (y > 6.60) & (x < 0.33)
    goatee = moustache | ((x < 0.24) & (y < 6.66))
    allowed = torch.where(kind == MOUSTACHE, moustache, torch.where(kind == GOATEE, goatee, y < 9))
    strand = noise.look(
        patterns, noise.STRANDS, place[:, 0] * 1.5 + get("shift")[:, 0], place[:, 1] * 0.9
    )
    return allowed & (area > 0.30 + 0.12 * strand) & (0.75 + 0.45 * strand > shell)


def hair_surface(colour: Tensor, shell: Tensor, strand: Tensor, shine: Tensor) -> Surface:
    """Strands: darker below, with their own slopes across."""
    albedo = colour * ((0.45 + 0.6 * shell) * (1 + 0.22 * strand))[:, None]
    one = torch.ones_like(shell)
    bump = torch.stack([strand * 0.55, 0 * strand], 1)
    return Surface(albedo.clamp(0.002, 1), one * 0.42, one * 0.2 + 0.5 * shine, one * 0.15, bump)


def normals_of_free(vertices: Tensor, tris: Tensor) -> Tensor:
    """Unit normals [B W 3] of added free geometry (tris count from 0)."""
    a, b, c = (vertices[:, tris[:, i]] for i in range(3))
    face = torch.cross(b - a, c - a, dim=-1)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total = total + _spread(face, tris[:, i], vertices.shape[1])
    return normalize(total, dim=-1, eps=1e-12)


def _spread(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of values [B T 3] by index [T], in a fixed order."""
    order = torch.argsort(index, stable=True)
    sums = torch.cumsum(values[:, order].double(), 1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
    ends = torch.searchsorted(
        index[order].contiguous(), torch.arange(count + 1, device=index.device)
    )
    return (sums[:, ends[1:]] - sums[:, ends[:-1]]).float()
