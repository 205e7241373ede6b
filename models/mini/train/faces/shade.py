"""What each visible sample of a posed, dressed head looks like: materials, light, shadow.

Letters: B frames, P samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import inner, light, noise, scene, worn
from .head import (
    BEARD,
    CLOTH,
    EYE,
    GLASSES,
    HAIR,
    LASHES,
    MOUTH,
    SCALP,
    SKIN,
    TEETH,
    TONGUE,
    Head,
)
from .measure import mouth_gap
from .occlusion import ShadowPictures, openness
from .raster import Fragments, Hits
from .skin import Get, Surface, skin, smooth


class Prepared:
    """What rendering prepares once for a head: attributes of vertices, patterns."""

    def __init__(self, head: Head) -> None:
        self.patterns = noise.library(head.device)
        self.worn = worn.Wardrobe(head)
        self.tris, self.part = self.worn.tris, self.worn.part
        parts = self.part
        self.holes = (parts == LASHES) | (parts == CLOTH) | (parts == SCALP) | (parts == HAIR)
        self.holes |= parts == BEARD
        self.two_sided = self.holes | (parts == GLASSES)
        own = [
            head.base,
            head.lip[:, None],
            openness(head)[:, None],
            head.upper.float()[:, None],
            head.along[:, None],
            self.worn.above[:, None],
            torch.zeros_like(head.lip)[:, None],
        ]
        self.attributes = torch.cat(own, 1)
        more = torch.zeros(self.worn.count, self.attributes.shape[1], device=head.device)
        layered = self.worn.layered
        more[: len(layered)] = self.attributes[layered]
        more[:, :3], more[:, _ABOVE], more[:, _SHELL] = (
            self.worn.place,
            self.worn.hair,
            self.worn.shell,
        )
        more[len(layered) :, _OPEN] = 1
        self.attributes = torch.cat([self.attributes, more])
        start = len(head.base) + len(layered)
        self.free_tris = self.tris[(self.tris >= start).all(1)] - start


# Columns of the attributes.
_PLACE, _LIP, _OPEN, _UPPER, _ALONG, _ABOVE, _SHELL = slice(0, 3), 3, 4, 5, 6, 7, 8


def dressed(
    head: Head, still: Prepared, group: scene.Cast, actions: Tensor, pose: Tensor
) -> scene.Stage:
    """The stage with all that is worn."""
    play = scene.stage(head, group, actions, pose)
    layers, free = still.worn.offsets(play.people, group.table)
    layered = still.worn.layered
    added = torch.cat([play.acted[:, layered] + layers[group.who], free[group.who]], 1)
    turns = torch.cat([head.turns[layered], torch.ones(free.shape[1], device=head.device)])
    posed = head.turn(added, scene.full_pose(group, pose.to(head.device)), turns)
    normals = worn.normals_of_free(posed[:, len(layered) :], still.free_tris)
    play.normals = torch.cat([play.normals, play.normals[:, layered], normals], 1)
    play.posed = torch.cat([play.posed, posed], 1)
    return play


def prepared(head: Head) -> Prepared:
    if not hasattr(head, "_render_static"):
        head._render_static = Prepared(head)
    return head._render_static


def solid(f: Fragments, still: Prepared, group: scene.Cast) -> Tensor:
    """Which fragments of lashes, clothes, hair and beards are there."""
    out = torch.zeros(len(f.tri), dtype=torch.bool, device=f.tri.device)
    part, patterns = still.part[f.tri], still.patterns

    def ask(kind: int, question: Callable[[Tensor, Get], Tensor]) -> None:
        at = (part == kind).nonzero(as_tuple=True)[0]
        if len(at) == 0:
            return
        tri = still.tris[f.tri[at]]
        some = sum(still.attributes[tri[:, i]] * f.weights[i][at][:, None] for i in range(3))
        out[at] = question(some, group.reader(f.frame[at]))

    ask(LASHES, lambda a, get: _is_lash(a, get, patterns))
    ask(CLOTH, lambda a, get: _is_cloth(a, get))
    ask(
        SCALP,
        lambda a, get: worn.solid_scalp(a[:, _PLACE], a[:, _ABOVE], a[:, _SHELL], get, patterns),
    )
    ask(HAIR, lambda a, get: worn.solid_curtain(a[:, _PLACE], get, patterns))
    ask(
        BEARD,
        lambda a, get: worn.solid_beard(a[:, _PLACE], a[:, _LIP], a[:, _SHELL], get, patterns),
    )
    return out


def _is_lash(a: Tensor, get: Get, patterns: Tensor) -> Tensor:
    """Lashes taper off strand by strand; the lower ones are short."""
    strand = noise.look(patterns, noise.STRANDS, a[:, 0] * 3.1 + get("shift")[:, 0], a[:, 1] * 0.1)
    reach = (0.2 + 0.75 * get("lashes")) * (0.15 + 0.85 * a[:, _UPPER]) * (0.75 + 0.35 * strand)
    reach = reach * smooth(a[:, 0].abs(), 0.475, 0.40)
    return a[:, _ALONG] < reach


def _is_cloth(a: Tensor, get: Get) -> Tensor:
    """Clothes end at the neckline."""
    x, z = a[:, 0].abs(), a[:, 2]
    neck = 5.86 + 0.10 * get("neckline")
    neck = neck - smooth(z, 0.2, 0.6) * (0.10 + 0.42 * get("neckline_v") * smooth(x, 0.45, 0.0))
    return a[:, 1] < neck


def shade(
    head: Head,
    still: Prepared,
    group: scene.Cast,
    play: scene.Stage,
    camera: scene.Pinhole,
    hits: Hits,
    detail: Tensor,
    shadows: ShadowPictures,
) -> Tensor:
    """Light that each visible sample sends to the camera: [P 3]. detail [B]: samples a decimetre.
    A CPU works on few samples at a time, which stay in its cache."""
    step = 1 << 14 if head.device.type == "cpu" else 1 << 23
    out = [
        _shade_some(
            head,
            still,
            group,
            play,
            camera,
            Hits(
                hits.index[i : i + step],
                hits.frame[i : i + step],
                hits.tri[i : i + step],
                hits.weights[i : i + step],
                hits.depth,
            ),
            detail,
            shadows,
        )
        for i in range(0, len(hits.index), step)
    ]
    return torch.cat(out) if out else torch.zeros(0, 3, device=head.device)


def _shade_some(
    head: Head, still: Prepared, group: scene.Cast, play: scene.Stage, camera: scene.Pinhole,
    hits: Hits, detail: Tensor, shadows: ShadowPictures,
) -> Tensor:
    tri = still.tris[hits.tri]
    w = hits.weights

    def mix(values: Tensor) -> Tensor:
        return sum(values[hits.frame, tri[:, i]] * w[:, i : i + 1] for i in range(3))

    attributes = sum(still.attributes[tri[:, i]] * w[:, i : i + 1] for i in range(3))
    where, normal = mix(play.posed), normalize(mix(play.normals), dim=1)
    view = normalize(camera.eye()[hits.frame] - where, dim=1)
    normal = torch.where(
        ((normal * view).sum(1) < 0)[:, None] & still.two_sided[hits.tri][:, None], -normal, normal
    )
    part = still.part[hits.tri]
    surface = _surfaces(head, still, group, part, attributes, hits, detail)
    bumped = _bend(normal, surface.bump)
    shadow = shadows.lit(hits.frame, where)
    occlusion = _occlusion(head, play, part, attributes, hits)
    lights = group.lights()
    arriving = light.diffuse(lights, hits.frame, normal, bumped, shadow, occlusion, surface.scatter)
    shine = light.highlights(lights, hits.frame, bumped, view, shadow, surface.rough)
    return surface.albedo * arriving + shine * (surface.gloss * occlusion)[:, None]


def shadows_of(head: Head, still: Prepared, group: scene.Cast, play: scene.Stage) -> ShadowPictures:
    """Shadows of skin and of the outermost layer of hair."""
    part, shell = still.part, still.attributes[still.tris[:, 0], _SHELL]
    casts = (part == SKIN) | ((part == SCALP) & (shell > 0.3) & (shell < 0.4))
    shown = still.worn.shown(group.table)[group.who] & casts
    some = casts.nonzero(as_tuple=True)[0]
    centre = play.posed[:, head.seam].mean(1) + torch.tensor((0.0, 0.5, -0.8), device=head.device)
    return ShadowPictures(
        play.posed,
        still.tris[some],
        shown[:, some],
        group.table["light_direction"][group.who, 0],
        centre,
        group.frames("softness"),
    )


def _occlusion(
    head: Head, play: scene.Stage, part: Tensor, attributes: Tensor, hits: Hits
) -> Tensor:
    """How open each sample is to light; inside the mouth by how far the lips are open."""
    sky = attributes[:, _OPEN]
    gap = mouth_gap(head, play.acted)[hits.frame]
    place = attributes[:, _PLACE]
    side = (place[:, 0].abs() - 0.10).clamp(min=0)
    deep = (1.50 - place[:, 2] + 0.5 * side).clamp(min=0.01)
    out = play.tongue_out[hits.frame] * (part == TONGUE)
    deep = (deep - 0.3 * out).clamp(min=0.01)
    inside = (((gap + 0.02) / (gap + 0.02 + 1.7 * deep)) ** 1.4).clamp(min=0.10)
    within = (part == MOUTH) | (part == TEETH) | (part == TONGUE)
    eye_shade = 0.62 + 0.38 * smooth(attributes[:, 1] - 7.284, 0.075, 0.0)
    out = torch.where(within, inside, sky)
    return torch.where(part == EYE, eye_shade, out).clamp(0, 1)


def _bend(normal: Tensor, slopes: Tensor) -> Tensor:
    """Normals tilted by slopes along the surface."""
    up = torch.tensor((0.0, 1.0, 0.0), device=normal.device).expand_as(normal)
    right = normalize(torch.cross(up, normal, dim=1), dim=1)
    over = torch.cross(normal, right, dim=1)
    return normalize(normal - right * slopes[:, :1] - over * slopes[:, 1:], dim=1)


def _surfaces(
    head: Head,
    still: Prepared,
    group: scene.Cast,
    part: Tensor,
    attributes: Tensor,
    hits: Hits,
    detail: Tensor,
) -> Surface:
    """Each sample's surface, part by part."""
    count, device = len(part), part.device
    out = Surface(
        torch.zeros(count, 3, device=device),
        torch.full((count,), 0.6, device=device),
        torch.zeros(count, device=device),
        torch.zeros(count, device=device),
        torch.zeros(count, 2, device=device),
    )

    def put(kind: int, make: Callable[..., Surface]) -> None:
        at = (part == kind).nonzero(as_tuple=True)[0]
        if len(at) == 0:
            return
        some = attributes[at]
        made = make(some[:, _PLACE], some, group.reader(hits.frame[at]), hits.frame[at])
        for name in ("albedo", "rough", "gloss", "scatter", "bump"):
            getattr(out, name)[at] = getattr(made, name)

    patterns = still.patterns
    put(SKIN, lambda p, a, get, f: skin(p, a[:, _LIP], a[:, _ABOVE], get, patterns, detail[f]))
    put(MOUTH, lambda p, a, get, f: inner.lining(p, a[:, _LIP], get))
    put(EYE, lambda p, a, get, f: inner.eye(p, head.eye_centre, get, patterns))
    put(TEETH, lambda p, a, get, f: inner.teeth(p, a[:, _UPPER] > 0.5, a[:, _ALONG], get, patterns))
    put(TONGUE, lambda p, a, get, f: inner.tongue(p, get, patterns))
    put(LASHES, lambda p, a, get, f: _plain(get("brow_colour") * 0.4, 0.7, 0.1))
    put(
        SCALP,
        lambda p, a, get, f: worn.hair_surface(
            get("hair_colour"), a[:, _SHELL], worn.strands(p, get, patterns), get("hair_shine")
        ),
    )
    put(
        HAIR,
        lambda p, a, get, f: worn.hair_surface(
            get("hair_colour"), 0.3 + 0.5 * p[:, 2], _hanging(p, get, patterns), get("hair_shine")
        ),
    )
    put(
        BEARD,
        lambda p, a, get, f: worn.hair_surface(
            get("brow_colour"), a[:, _SHELL], _whiskers(p, get, patterns), get("hair_shine") * 0.3
        ),
    )
    put(GLASSES, lambda p, a, get, f: _plain(get("glasses_colour"), 0.25, 1.2))
    put(CLOTH, lambda p, a, get, f: _cloth(p, get, patterns))
    return out


def _hanging(place: Tensor, get: Get, patterns: Tensor) -> Tensor:
    return noise.look(
        patterns,
        noise.STRANDS,
        place[:, 0] * 1.3 + get("shift")[:, 2] + 0.3 * place[:, 2],
        place[:, 1] * 0.25,
    )


def _whiskers(place: Tensor, get: Get, patterns: Tensor) -> Tensor:
    return noise.look(
        patterns, noise.STRANDS, place[:, 0] * 1.5 + get("shift")[:, 0], place[:, 1] * 0.9
    )


def _plain(albedo: Tensor, rough: float, gloss: float) -> Surface:
    one = torch.ones(len(albedo), device=albedo.device)
    return Surface(
        albedo, one * rough, one * gloss, one * 0, torch.zeros(len(albedo), 2, device=albedo.device)
    )


def _cloth(place: Tensor, get: Get, patterns: Tensor) -> Surface:
    """Woven or knitted: two colours in stripes or patches, folds as slopes."""
    scale = get("cloth_scale")
    stripes = torch.sin(place[:, 1] * scale * 6.28)
    share = smooth(stripes, -0.2, 0.2) * get("cloth_pattern")
    colours = get("cloth")
    albedo = colours[:, 0] * (1 - share)[:, None] + colours[:, 1] * share[:, None]
    folds = noise.look(
        patterns,
        noise.WRINKLES,
        (place[:, 1] + 0.5 * place[:, 0].abs()) * 0.16 + get("shift")[:, 0],
        place[:, 0] * 0.1,
    )
    weave = noise.look(patterns, noise.FINE, place[:, 0] * 1.3, place[:, 1] * 1.3)
    surface = _plain(albedo * (1 + 0.05 * weave)[:, None], 0.85, 0.15)
    surface.bump = torch.stack([folds * 0.14 + weave * 0.04, folds * 0.12], 1)
    return surface
