"""Eyes, teeth, tongue and the inside of the mouth."""

from __future__ import annotations

import torch
from torch import Tensor

from . import noise
from .skin import Get, Surface, smooth

# Ends of the teeth along the arch, from the middle (angles seen from behind the front teeth).
_UPPER = (0.0, 0.165, 0.285, 0.42, 0.56, 0.70, 0.92, 1.15)
_LOWER = (0.0, 0.105, 0.215, 0.335, 0.48, 0.63, 0.88, 1.15)


def eye(place: Tensor, centre: Tensor, get: Get, patterns: Tensor) -> Surface:
    """The eyeball. centre [2 3] of the left and right ball in the base mesh."""
    left = (place[:, 0] > 0)[:, None]
    off = place - torch.where(left, centre[0], centre[1])
    radius = off.norm(dim=1).clamp(min=1e-4)
    x, y = off[:, 0] / radius, off[:, 1] / radius
    r = torch.where(off[:, 2] > 0, torch.hypot(x, y), torch.full_like(x, 2.0))
    angle = torch.atan2(y, x)
    size = get("iris_size")
    rr = r / size
    rays = noise.look(patterns, noise.STRANDS, angle * 0.32 + get("shift")[:, 0], rr * 0.05)
    iris = 0.6 * get("iris") * (1 + 0.28 * rays + 0.35 * smooth(rr, 0.75, 0.35))[:, None]
    limbus = smooth(rr, 0.80, 1.0)[:, None]
    iris = iris * (1 - 0.75 * limbus)
    pupil = smooth(rr, get("pupil") + 0.05, get("pupil") - 0.05)[:, None]
    iris = iris * (1 - pupil) + 0.004 * pupil
    veins = noise.look(patterns, noise.FINE, x * 0.4 + get("shift")[:, 1], y * 0.4)
    pink = (smooth(r, 0.55, 0.95) * (0.35 + 0.1 * veins)).clamp(0, 1)[:, None]
    white = get("sclera")[:, None] * torch.tensor((1.0, 0.955, 0.90), device=x.device)
    white = white * (1 - pink * torch.tensor((0.05, 0.32, 0.34), device=x.device))
    inside = smooth(rr, 1.06, 0.94)[:, None]
    albedo = white * (1 - inside) + iris * inside
    one = torch.ones_like(r)
    return Surface(
        albedo.clamp(0, 1), one * 0.17, one * 2.2, one * 0.25, torch.zeros_like(off[:, :2])
    )


def _between(t: Tensor, upper: Tensor) -> Tensor:
    """Distance from the nearest gap between teeth, along the arch."""
    ends = torch.where(
        upper[:, None], torch.tensor(_UPPER, device=t.device), torch.tensor(_LOWER, device=t.device)
    )
    return (t[:, None] - ends).abs().amin(1)


def teeth(place: Tensor, upper: Tensor, along: Tensor, get: Get, patterns: Tensor) -> Surface:
    """Teeth and gums. upper bool [P]; along [P]: 0 at the biting edge, 1 at the gums' end."""
    t = torch.atan2(place[:, 0].abs(), place[:, 2] - 0.95)
    apart = _between(t, upper)
    gum_line = 0.80 - 1.2 * apart.clamp(max=0.09)
    gums = smooth(along, gum_line - 0.04 + 0.12, gum_line + 0.04 + 0.12)[:, None]
    gap = smooth(apart, 0.016, 0.004) * (0.25 + 0.55 * get("teeth_gap"))
    shade = noise.look(patterns, noise.CLOUD, t * 0.7 + get("shift")[:, 0], along * 0.2)
    enamel = get("teeth") * (1 + 0.05 * shade - 0.12 * smooth(t, 0.3, 0.6))[:, None]
    enamel = enamel * (1 - gap[:, None] * torch.tensor((0.75, 0.85, 0.9), device=t.device))
    # Cheeks and tongue shade the side teeth and tint the remaining light red.
    open_side = torch.exp(-3.5 * (t - 0.33).clamp(min=0))[:, None]
    cheek = torch.tensor((0.20, 0.06, 0.055), device=t.device)
    enamel = enamel * open_side + cheek * (1 - open_side)
    edge = smooth(along, 0.14, 0.0)[:, None]
    enamel = enamel * (1 - edge * torch.tensor((0.22, 0.18, 0.12), device=t.device))
    pink = torch.tensor((0.40, 0.13, 0.13), device=t.device) * (1 - 0.45 * get("tone"))[:, None]
    albedo = enamel * (1 - gums) + pink * gums
    one = torch.ones_like(t)
    bump = torch.zeros(len(t), 2, device=t.device)
    return Surface(albedo.clamp(0, 1), one * 0.28, one * 0.9, one * 0.5, bump)


def tongue(place: Tensor, get: Get, patterns: Tensor) -> Surface:
    """The tongue: rough and wet."""
    grain = noise.look(
        patterns, noise.FINE, place[:, 0] * 1.8 + get("shift")[:, 0], place[:, 2] * 1.8
    )
    middle = torch.exp(-0.5 * (place[:, 0] / 0.02) ** 2)
    colour = torch.tensor((0.27, 0.085, 0.08), device=place.device)
    albedo = colour * (1 + 0.12 * grain - 0.15 * middle)[:, None]
    one = torch.ones_like(grain)
    return Surface(
        albedo.clamp(0, 1), one * 0.42, one * 0.7, one * 0.8, torch.stack([grain, grain], 1) * 0.08
    )


def lining(place: Tensor, lip: Tensor, get: Get) -> Surface:
    """The mouth's inside behind the lips. lip: minus the distance from the lips' inner edge."""
    back = smooth(-lip, 0.0, 0.22)[:, None]
    mucosa = torch.tensor((0.34, 0.085, 0.08), device=place.device)
    albedo = get("lip") * 0.8 * (1 - back) + mucosa * back
    one = torch.ones_like(lip)
    return Surface(albedo, one * 0.4, one * 0.5, one * 0.8, torch.zeros_like(place[:, :2]))
