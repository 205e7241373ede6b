"""Pictures of a head: whole frames, or directly the aligned face square.

    head = Head(folder, "cuda")
    person = identity(7)
    pictures = render(head, person, actions, pose, size=(640, 480))          # u8 [B 640 480 3]
    marks = points(head, person, actions, pose, size=(640, 480))             # [B 3 2]
    faces = render(head, person, actions, pose, (640, 480), crop=matrices, crop_size=128)

actions [B 52] in the order of head.ACTIONS; pose [B 6]: yaw, pitch, roll (radians), shift right, up
and forward (in heights of the head), as visemes.motion gives. Letters: B frames, P samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import lens, noise, scene
from .head import Head
from .identity import Identity
from .measure import exact, opening, points
from .raster import rasterize
from .shade import dressed, prepared, shade, shadows_of, solid
from .skin import smooth

__all__ = ["opening", "points", "render"]


def render(
    head: Head,
    identity: Identity | list[Identity],
    actions: Tensor,
    pose: Tensor,
    size: tuple[int, int] = (640, 480),
    crop: Tensor | None = None,
    crop_size: int = 128,
    antialias: int = 2,
    first: int = 0,
    chunk: int | None = None,
) -> Tensor:
    """Pictures u8 [B H W 3] on the head's device.

    size: (height, width) of the source frame; crop [B 2 3]: from source pixels to the pixels of a
    square of `crop_size`, which is rendered instead of the frame (pixel centres are whole numbers);
    first: number of the first frame, for the grain; chunk: frames worked on at once.
    """
    if chunk is None:
        area = crop_size**2 if crop is not None else size[0] * size[1]
        budget = (4 if head.device.type == "cpu" else 128) * 128 * 128
        chunk = max(1, budget // area)
    out = []
    for at in range(0, len(actions), chunk):
        some = slice(at, at + chunk)
        people = identity if isinstance(identity, dict) else identity[some]
        with exact():
            out.append(
                _render(
                    head,
                    people,
                    actions[some],
                    pose[some],
                    size,
                    None if crop is None else crop[some],
                    crop_size,
                    antialias,
                    first + at,
                )
            )
    return torch.cat(out)


def _to_samples(screen: Tensor, crop: Tensor | None, antialias: int) -> Tensor:
    """From source pixels to samples (whose centres are at halves)."""
    xy = screen[..., :2]
    if crop is not None:
        crop = crop.to(screen)
        xy = xy @ crop[:, :, :2].transpose(1, 2) + crop[:, None, :, 2]
    return torch.cat([(xy + 0.5) * antialias, screen[..., 2:]], -1)


def _render(
    head: Head,
    identity: Identity | list[Identity],
    actions: Tensor,
    pose: Tensor,
    size: tuple[int, int],
    crop: Tensor | None,
    crop_size: int,
    antialias: int,
    first: int,
) -> Tensor:
    still = prepared(head)
    group = scene.cast(identity, len(actions), head.device)
    actions = actions.to(head.device, torch.float32)
    play = dressed(head, still, group, actions, pose)
    camera = scene.pinhole(group, size)
    height, width = (crop_size, crop_size) if crop is not None else size
    screen = _to_samples(camera.project(play.posed), crop, antialias)
    zoom = torch.ones(len(actions), device=head.device)
    if crop is not None:
        linear = crop[:, :, :2].to(head.device, torch.float32)
        zoom = torch.linalg.det(linear).abs().sqrt()
    shown = still.worn.shown(group.table)[group.who]
    hits = rasterize(
        screen,
        still.tris,
        height * antialias,
        width * antialias,
        shown,
        still.two_sided,
        still.holes,
        lambda f: solid(f, still, group),
    )
    samples = _background(head, group, camera, crop, size, (height, width), antialias)
    flat = samples.view(-1, 3)
    shadows = shadows_of(head, still, group, play)
    detail = camera.scale * zoom * antialias
    flat[hits.index] = shade(head, still, group, play, camera, hits, detail, shadows)
    pictures = lens.shrink(samples.clamp(0, 4), antialias)
    return _photograph(pictures, group, zoom, first)


def _background(
    head: Head,
    group: scene.Cast,
    camera: scene.Pinhole,
    crop: Tensor | None,
    size: tuple[int, int],
    shape: tuple[int, int],
    antialias: int,
) -> Tensor:
    """Soft shapes behind the person, fixed in the source picture: [B H*a W*a 3]."""
    device = group.who.device
    height, width = shape[0] * antialias, shape[1] * antialias
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    xy = torch.stack([x, y], -1).view(1, -1, 2) + 0.5
    xy = (xy / antialias - 0.5).expand(len(group.who), -1, -1)
    if crop is not None:
        crop = crop.to(device, torch.float32)
        back = torch.linalg.inv(crop[:, :, :2])
        xy = (xy - crop[:, None, :, 2]) @ back.transpose(1, 2)
    u, v = xy[..., 0] / size[0], xy[..., 1] / size[0]
    shift, scale = (
        group.frames("background_shift"),
        group.frames("background_scale")[:, None] * 0.12,
    )
    patterns = prepared(head).patterns
    a = noise.look(patterns, noise.CLOUD, u * scale + shift[:, :1], v * scale + shift[:, 1:2])
    b = noise.look(
        patterns, noise.CLOUD, u * scale * 1.7 + shift[:, 2:3], v * scale * 0.9 + shift[:, 3:]
    )
    edge = group.frames("background_edge")[:, None]
    colours = group.frames("background")
    share = smooth(a, -edge, edge)[..., None]
    second = smooth(b + (v - 0.5), -edge, edge)[..., None]
    picture = colours[:, None, 0] * (1 - share) + colours[:, None, 1] * share
    picture = picture * (1 - 0.5 * second) + colours[:, None, 2] * 0.5 * second
    return picture.view(len(group.who), height, width, 3).contiguous()


def _photograph(picture: Tensor, group: scene.Cast, zoom: Tensor, first: int) -> Tensor:
    """Lens, sensor and compression: linear light [B H W 3] to u8."""
    picture = lens.blur(picture, group.frames("blur") * zoom)
    picture = lens.develop(
        picture,
        group.frames("exposure"),
        group.frames("contrast"),
        group.frames("saturation"),
        group.frames("white"),
    )
    picture = lens.sharpen(picture, group.frames("sharpen"))
    number = torch.arange(len(picture), device=picture.device) + first
    seed = group.frames("seed").to(torch.int64) * 100003 + number
    picture = lens.grain(picture, group.frames("grain"), seed)
    picture = lens.jpeg(picture, group.frames("jpeg"))
    return (picture * 255 + 0.5).clamp(0, 255).to(torch.uint8)
