"""Light on surfaces: soft lights that wrap around skin, ambient light, highlights.

P is the number of samples; vectors are in the camera's space (z towards the camera).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

# How far red, green and blue light scatters under the skin, which determines how far a light wraps
# around it.
SKIN_WRAP = (0.34, 0.17, 0.10)


@dataclass
class Lights:
    """Of each frame: direction [B L 3], colour [B L 3], sky and ground [B 3]."""

    direction: Tensor
    colour: Tensor
    sky: Tensor
    ground: Tensor
    softness: Tensor


def diffuse(
    lights: Lights,
    frame: Tensor,
    smooth: Tensor,
    bumped: Tensor,
    shadow: Tensor,
    occlusion: Tensor,
    scatter: Tensor,
) -> Tensor:
    """Light that arrives [P 3]. smooth, bumped: normals [P 3]; shadow of the first light [P] (1 is
    lit), occlusion [P] (1 is open), scatter [P]: how much the surface behaves as skin."""
    total = 0
    wrap = torch.tensor(SKIN_WRAP, device=frame.device)
    up = smooth[:, 1] * 0.5 + 0.5
    ambient = lights.ground[frame] * (1 - up)[:, None] + lights.sky[frame] * up[:, None]
    # Light that skin scatters to itself makes creases red rather than black.
    lift = 1 - (1 - occlusion)[:, None] * (
        1 - scatter[:, None] * torch.tensor((0.35, 0.12, 0.06), device=frame.device)
    )
    total = ambient * lift
    blend = scatter[:, None] * torch.tensor((0.75, 0.4, 0.2), device=frame.device)
    for i in range(lights.direction.shape[1]):
        to = lights.direction[frame, i]
        a, b = (smooth * to).sum(1, keepdim=True), (bumped * to).sum(1, keepdim=True)
        cosine = a * blend + b * (1 - blend)
        w = wrap * scatter[:, None] + 0.25 * lights.softness[frame][:, None]
        lit = ((cosine + w) / (1 + w)).clamp(min=0) ** 1.4
        if i == 0:
            soft = shadow[:, None] ** (
                1 - scatter[:, None] * torch.tensor((0.45, 0.15, 0.0), device=frame.device)
            )
            lit = lit * soft
        total = total + lights.colour[frame, i] * lit * (0.35 + 0.65 * lift)
    return total


def highlights(
    lights: Lights, frame: Tensor, normal: Tensor, view: Tensor, shadow: Tensor, rough: Tensor
) -> Tensor:
    """Reflected lights [P 3] for a surface of reflectance 1: normalized Blinn-Phong with Fresnel.
    view [P 3] points to the camera; rough [P] in 0..1."""
    rough = rough.clamp(0.08, 1)
    power = 2 / rough**4
    total = torch.zeros_like(normal)
    for i in range(lights.direction.shape[1]):
        to = lights.direction[frame, i]
        half = normalize(to + view, dim=1)
        lobe = (normal * half).sum(1).clamp(min=0) ** power * (power + 2) / 8
        fresnel = 0.03 + 0.97 * (1 - (view * half).sum(1).clamp(0, 1)) ** 5
        facing = ((normal * to).sum(1) * 4 + 0.4).clamp(0, 1)
        value = (lobe * fresnel * facing).clamp(max=6)
        if i == 0:
            value = value * shadow
        total = total + lights.colour[frame, i] * value[:, None]
    rim = 0.04 + 0.5 * (1 - (normal * view).sum(1).clamp(0, 1)) ** 5 * (1 - rough)
    return total + lights.sky[frame] * rim[:, None] * 0.25
