"""The appearance of skin at a point of the base mesh: colour, bumps, gloss.

A place is a point of the undeformed base mesh (decimetres; eyes near y 7.28 and |x| 0.31, mouth
near y 6.6, nose tip near y 6.95), so patterns stick to the face. P is the number of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from . import noise

Get = Callable[[str], Tensor]


@dataclass
class Surface:
    """albedo [P 3], rough [P], gloss [P] (strength of highlights), scatter [P], bump [P 2] (slopes
    along the surface, rightwards and upwards)."""

    albedo: Tensor
    rough: Tensor
    gloss: Tensor
    scatter: Tensor
    bump: Tensor


def smooth(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """0 below low, 1 above high, a soft step between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def blob(place: Tensor, x: float, y: float, sx: float, sy: float) -> Tensor:
    """A soft spot on both sides of the face, 1 in its middle."""
    dx, dy = (place[:, 0].abs() - x) / sx, (place[:, 1] - y) / sy
    return torch.exp(-0.5 * (dx * dx + dy * dy))


def unrolled(place: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along the skin (decimetres): around the head and upwards."""
    angle = torch.atan2(place[:, 0], place[:, 2] - 0.35)
    return angle * 0.95, place[:, 1]


def lip_mask(place: Tensor, lip: Tensor, edge: Tensor) -> Tensor:
    """1 on the red of the lips. lip: distance from their inner edge."""
    x = place[:, 0].abs()
    corner = (0.275 - x) * 1.45
    upper = torch.minimum((0.229 - 0.66 * x).clamp(max=0.152), corner)
    lower = torch.minimum(0.162 - 0.13 * x, corner)
    width = torch.where(place[:, 1] > 6.604, upper, lower).clamp(min=0)
    return smooth(width - lip, -edge, edge)


def brow_mask(place: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """How much of the skin the brows' hairs cover."""
    x = place[:, 0].abs()
    s = (x - 0.105) / 0.43
    arch = get("brow_arch")
    middle = (
        7.430
        + get("brow_height")
        + (0.048 + 0.022 * arch) * torch.sin(math.pi * (0.18 + 0.62 * s.clamp(0, 1)))
    )
    half = 0.040 * get("brow_width") * (1 - 0.62 * s.clamp(0, 1) ** 1.5)
    off = (place[:, 1] - middle) / half
    body = smooth(s, -0.04, 0.12) * (1 - smooth(s, 0.86, 1.03)) * (1 - smooth(off.abs(), 0.45, 1.1))
    side = torch.sign(place[:, 0]) * 0.13 + get("shift")[:, 0]
    lean = x + 0.55 * (place[:, 1] - middle) * (1.3 - s)
    strands = noise.look(
        patterns, noise.STRANDS, (place[:, 1] - 0.35 * lean) * 1.9 + side, lean * 0.5
    )
    density = get("brow_density")
    return (body * (0.50 + 0.55 * density) + body.sqrt() * 0.22 * strands * density).clamp(0, 1) * (
        body > 0.02
    )


def beard_area(place: Tensor, lip: Tensor) -> Tensor:
    """Where a beard grows, 0..1."""
    x, y, z = place[:, 0].abs(), place[:, 1], place[:, 2]
    cheek = 6.71 + 0.11 * smooth(x, 0.36, 0.62) + 0.5 * smooth(x, 0.62, 0.80)
    jaw = 1 - smooth(y, cheek - 0.10, cheek + 0.06)
    jaw = jaw * smooth(y, 5.92, 6.12) * smooth(z, 0.35, 0.62)
    moustache = smooth(y, 6.62, 6.66) * (1 - smooth(y, 6.79, 6.85)) * (1 - smooth(x, 0.30, 0.42))
    off_lips = smooth(lip, 0.13, 0.17)
    return torch.maximum(jaw, moustache) * off_lips


def skin(
    place: Tensor, lip: Tensor, above: Tensor, get: Get, patterns: Tensor, detail: Tensor
) -> Surface:
    """Skin with lips, brows and stubble. above [P]: height over the hairline; detail [P]: samples
    per decimetre of the picture; patterns that are finer than the samples fade."""
    u, v = unrolled(place)
    shift = get("shift")
    cloud = noise.look(patterns, noise.CLOUD, u * 0.55 + shift[:, 0], v * 0.55 + shift[:, 1])
    fine = noise.look(patterns, noise.FINE, u * 0.9 + shift[:, 1], v * 0.9 + shift[:, 2])
    albedo = get("albedo")
    tone = get("tone")[:, None]

    red = (
        blob(place, 0.40, 6.95, 0.17, 0.16)
        + 0.9 * blob(place, 0.0, 6.93, 0.12, 0.08)
        + 0.5 * blob(place, 0.0, 6.33, 0.12, 0.08)
        + 1.2 * smooth(place[:, 0].abs(), 0.74, 0.82) * smooth(place[:, 1], 6.75, 6.9)
    )
    red = (red * (0.75 + 0.25 * cloud) + 0.18 * cloud) * get("redness")
    flush = torch.tensor((0.02, -0.17, -0.13), device=u.device)
    albedo = albedo * (1 + red[:, None] * flush)
    albedo = albedo * (1 + (cloud * get("blotch") + fine * 0.035)[:, None])

    bags = blob(place, 0.27, 7.155, 0.12, 0.035) * get("bags")
    lids = blob(place, 0.31, 7.33, 0.13, 0.05) * 0.16
    violet = torch.tensor((0.30, 0.38, 0.30), device=u.device)
    albedo = albedo * (1 - (bags * 0.6 + lids)[:, None] * violet)
    liner = blob(place, 0.31, 7.30, 0.15, 0.035) * get("liner")
    albedo = albedo * (1 - 0.6 * liner[:, None])

    spots = noise.look(patterns, noise.SPOTS, u * 0.62 + shift[:, 2], v * 0.62 + shift[:, 0])
    freckles = noise.look(patterns, noise.SPOTS, u * 2.1 + shift[:, 3], v * 2.1 + shift[:, 1])
    zone = blob(place, 0.25, 7.0, 0.35, 0.25)
    brown = (spots**3 * get("spots") * 0.8 + freckles * zone * get("freckles") * 0.55).clamp(0, 0.8)
    albedo = albedo * (1 - brown[:, None] * torch.tensor((0.42, 0.6, 0.72), device=u.device))

    lips = lip_mask(place, lip, get("lip_edge"))[:, None]
    creases = noise.look(
        patterns, noise.STRANDS, place[:, 0] * 1.7 + shift[:, 3], place[:, 1] * 0.7
    )
    wet = smooth(lip, 0.04, 0.0)[:, None]
    red_lip = get("lip") * (1 + 0.06 * creases[:, None]) * (1 - 0.18 * wet)
    albedo = albedo * (1 - lips) + red_lip * lips

    area = beard_area(place, lip)
    dots = noise.look(patterns, noise.STUBBLE, u * 2.6 + shift[:, 1], v * 2.6)
    stubble = area * get("stubble")
    hair = get("brow_colour")
    shade = (stubble * (0.28 + 0.5 * dots * smooth(detail, 40, 160)))[:, None] * (1 - 0.4 * tone)
    albedo = albedo * (1 - shade) + (hair * 0.6 + albedo * 0.15) * shade

    roots = smooth(
        above - get("hairline") * smooth(place[:, 2], 0.6, 1.2) + 0.02 * fine, -0.02, 0.10
    )
    roots = (roots * (0.2 + 0.6 * (get("hair_style") > 0)))[:, None]
    albedo = albedo * (1 - roots) + get("hair_colour") * 0.8 * roots

    brows = brow_mask(place, get, patterns)[:, None]
    albedo = albedo * (1 - brows * 0.92) + get("brow_colour") * brows * 0.92

    bump = _bumps(u, v, place, lips[:, 0], brows[:, 0], get, patterns, detail)
    nose = blob(place, 0.0, 6.97, 0.14, 0.16) + blob(place, 0.0, 7.75, 0.4, 0.2) * 0.6
    oil = get("oil") * (0.55 + 0.6 * nose)
    gloss = (0.45 + 0.5 * oil) * (1 - lips[:, 0]) + (0.5 + 1.2 * get("lip_gloss")) * lips[:, 0]
    gloss = gloss * (1 - 0.7 * brows[:, 0]) * (1 - 0.4 * stubble)
    rough = (0.58 - 0.17 * oil) * (1 - lips[:, 0]) + (0.48 - 0.22 * get("lip_gloss")) * lips[:, 0]
    scatter = (1 - 0.3 * tone[:, 0]) * (1 - brows[:, 0])
    return Surface(albedo.clamp(0.003, 1), rough, gloss, scatter, bump)


def _bumps(
    u: Tensor,
    v: Tensor,
    place: Tensor,
    lips: Tensor,
    brows: Tensor,
    get: Get,
    patterns: Tensor,
    detail: Tensor,
) -> Tensor:
    """Slopes [P 2] of pores, fine lines of the lips, and wrinkles."""
    shift = get("shift")
    step = 0.004

    def height(du: float, dv: float) -> Tensor:
        pores = noise.look(
            patterns, noise.PORES, (u + du) * 1.5 + shift[:, 0], (v + dv) * 1.5 + shift[:, 3]
        )
        return -pores * 0.0011 * get("pores")

    here = height(0, 0)
    fade = smooth(detail, 60, 200) * (1 - lips) * (1 - brows)
    slopes = torch.stack([(height(step, 0) - here) / step, (height(0, step) - here) / step], 1)
    slopes = slopes * fade[:, None]
    lines = noise.look(patterns, noise.STRANDS, place[:, 0] * 1.7 + shift[:, 3], place[:, 1] * 0.7)
    slopes[:, 0] = slopes[:, 0] + lips * lines * 0.16
    forehead = blob(place, 0.0, 7.78, 0.5, 0.16)
    crow = blob(place, 0.62, 7.27, 0.10, 0.12)
    lay = noise.look(
        patterns,
        noise.WRINKLES,
        (v + 0.02 * torch.cos(u * 5)) * 0.8 + shift[:, 1],
        u * 0.35 + shift[:, 0],
    )
    feet = noise.look(
        patterns, noise.WRINKLES, (v - 0.35 * place[:, 0].abs()) * 1.2 + shift[:, 2], u * 0.3
    )
    slopes[:, 1] = slopes[:, 1] + get("wrinkles") * (forehead * lay + crow * feet) * 0.22
    return slopes
