"""Identities as tensors, meshes with everything that is worn, and the camera."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import ACTIONS, Head
from .identity import Identity
from .light import Lights

AIM = (0.0, 7.08, 0.9)  # the point that the camera looks at, decimetres
HEAD_HEIGHT = 2.3  # from the chin to the top
MOUTH_WIDTH = 0.5  # of the base mesh
_JAW_OPEN, _TONGUE_OUT = ACTIONS.index("jawOpen"), ACTIONS.index("tongueOut")

# Names of identities' numbers (or lists of numbers) that shading reads.
_NUMBERS = """tone albedo lip redness lip_edge lip_gloss blotch pores freckles spots wrinkles oil
bags liner shift hair_colour hairline hair_volume hair_wave hair_shine fringe brow_colour
brow_density brow_width brow_arch brow_height lashes stubble beard_length iris iris_size pupil
sclera teeth teeth_gap tooth_show glasses glasses_size glasses_round glasses_thick glasses_colour
sky ground softness exposure contrast saturation white background background_scale background_edge
background_shift cloth cloth_scale cloth_pattern neckline neckline_v fov face_height offset turn
blur sharpen grain jpeg vignette seed""".split()
_STYLES = ("bald", "buzz", "short", "medium", "long", "tied")
_BEARDS = ("none", "short", "full", "moustache", "goatee")


class Cast:
    """The identities of a batch: their numbers as tensors [I ..], and who is in which frame."""

    def __init__(self, people: list[Identity], who: Tensor, device: torch.device) -> None:
        self.people, self.who = people, who.to(device)
        self.table = {
            n: torch.tensor([p[n] for p in people], dtype=torch.float32, device=device)
            for n in _NUMBERS
        }
        for name, kinds in (("hair_style", _STYLES), ("beard", _BEARDS)):
            self.table[name] = torch.tensor([kinds.index(p[name]) for p in people], device=device)
        for key in ("direction", "colour"):
            self.table["light_" + key] = torch.tensor(
                [[light[key] for light in p["lights"]] for p in people], device=device
            )

    def frames(self, name: str) -> Tensor:
        """A number of each frame's person: [B ..]."""
        return self.table[name][self.who]

    def reader(self, frame: Tensor):
        """What shading calls to get a number for each sample; frame [P]: the samples' frames."""
        person = self.who[frame]
        return lambda name: self.table[name][person]

    def lights(self) -> Lights:
        return Lights(
            self.frames("light_direction"),
            self.frames("light_colour"),
            self.frames("sky"),
            self.frames("ground"),
            self.frames("softness"),
        )


def cast(identity: Identity | list[Identity], count: int, device: torch.device) -> Cast:
    """One identity for all frames, or one for each frame (the same object may repeat)."""
    if isinstance(identity, dict):
        return Cast([identity], torch.zeros(count, dtype=torch.int64), device)
    if len(identity) != count:
        raise ValueError(f"{len(identity)} identities for {count} frames: one a frame, or one dict")
    people, who, seen = [], [], {}
    for person in identity:
        if id(person) not in seen:
            seen[id(person)] = len(people)
            people.append(person)
        who.append(seen[id(person)])
    return Cast(people, torch.tensor(who), device)


@dataclass
class Pinhole:
    """Per frame [B]: focal length in source pixels, distance, the aim's place in the picture."""

    focal: Tensor
    distance: Tensor
    centre: Tensor
    scale: Tensor  # source pixels per decimetre at the face

    def project(self, vertices: Tensor) -> Tensor:
        """Source pixels (whole numbers are pixel centres) and depth 0..1: [B V 3]."""
        aim = torch.tensor(AIM, device=vertices.device)
        local = vertices - aim
        away = (self.distance[:, None] - local[..., 2]).clamp(min=0.5)
        x = self.centre[:, None, 0] + self.focal[:, None] * local[..., 0] / away
        y = self.centre[:, None, 1] - self.focal[:, None] * local[..., 1] / away
        near, far = (self.distance - 3.5).clamp(min=0.5)[:, None], (self.distance + 5)[:, None]
        depth = (1 / near - 1 / away) / (1 / near - 1 / far)
        return torch.stack([x, y, depth], -1)

    def eye(self) -> Tensor:
        """The camera's place [B 3]."""
        aim = torch.tensor(AIM, device=self.distance.device).expand(len(self.distance), 3).clone()
        aim[:, 2] += self.distance
        return aim


def pinhole(group: Cast, size: tuple[int, int]) -> Pinhole:
    """The camera of each frame for pictures of size (height, width)."""
    height, width = size
    tangent = 2 * torch.tan(group.frames("fov") / 2)
    focal = height / tangent
    # A narrow upright image must also contain the head's width.
    share = group.frames("face_height") * min(1.0, 1.25 * width / height)
    distance = HEAD_HEIGHT / (tangent * share)
    offset = group.frames("offset")
    centre = torch.stack(
        [width * (0.5 + offset[:, 0]) - 0.5, height * (0.49 + offset[:, 1]) - 0.5], 1
    )
    return Pinhole(focal, distance, centre, focal / distance)


@dataclass
class Stage:
    """Geometry of a batch: people at rest [I V 3]; acted, before the head turns, and posed [B V 3];
    normals of the posed."""

    people: Tensor
    acted: Tensor
    posed: Tensor
    normals: Tensor
    tongue_out: Tensor


def full_pose(group: Cast, pose: Tensor) -> Tensor:
    """[B 6] for Head.turn from the caller's pose (roll to the person's left, shift in heads) and
    the person's usual turn."""
    pose = pose.to(group.who.device, torch.float32)
    turn = torch.cat([pose[:, :2], -pose[:, 2:3]], 1) + group.frames("turn")
    return torch.cat([turn, pose[:, 3:] * HEAD_HEIGHT], 1)


def people_at_rest(head: Head, group: Cast) -> Tensor:
    """Vertices [I V 3] of the people of a cast, with the mouths in the same place."""
    people = torch.stack([head.shape(p["shape"]) for p in group.people])
    people = people - (people[:, head.seam].mean(1) - head.base[head.seam].mean(0))[:, None]
    return _fit_mouth(head, group, people)


def _fit_mouth(head: Head, group: Cast, people: Tensor) -> Tensor:
    """Teeth and tongue behind each person's own lips: the shape targets move only the lips."""
    seam = people[:, head.seam]
    width = (seam[..., 0].amax(1) - seam[..., 0].amin(1)) / MOUTH_WIDTH
    narrow = (0.93 * width.clamp(0.88, 1.1))[:, None]
    show = group.table["tooth_show"][:, None]
    for name, down, back in (
        ("helper-upper-teeth", 0.024 + 0.034 * show, 0.030),
        ("helper-lower-teeth", 0.030, 0.042),
        ("helper-tongue", 0.075, 0.060),
    ):
        index = head.group_vertices[name]
        part = people[:, index]
        front = part[..., 2].amax(1, keepdim=True) - head.base[index, 2].amax()
        part[..., 0] = part[..., 0] * narrow
        part[..., 1] = part[..., 1] - down
        part[..., 2] = part[..., 2] - front - back - 0.06 * head.along[index]
        people[:, index] = part
    return people


def act(head: Head, rest: Tensor, actions: Tensor) -> Tensor:
    """Facial actions [B 52] on people [B V 3]. With the jaw down the tongue lies lower than the
    mesh's own action has it; put out, its front rises over the lower teeth and lip."""
    acted = head.act(rest, actions)
    out = (actions[:, _TONGUE_OUT] * 2).clamp(0, 1)[:, None]
    lowered = 0.09 * actions[:, _JAW_OPEN, None] * (1 - out)
    tongue = head.group_vertices["helper-tongue"]
    front = ((head.base[tongue, 2] - 1.0) / 0.3).clamp(0, 1)
    thin = (head.base[tongue, 1] - 6.60).clamp(max=0)  # its underside rises more
    acted[:, tongue, 1] += out * front * (0.10 - 0.55 * thin) - lowered
    return acted


def stage(head: Head, group: Cast, actions: Tensor, pose: Tensor) -> Stage:
    """Shapes, facial actions and pose: everything geometric."""
    people = people_at_rest(head, group)
    rest = people[group.who]
    acted = act(head, rest, actions)
    posed = head.turn(acted, full_pose(group, pose.to(head.device)))
    return Stage(people, acted, posed, head.normals(posed), actions[:, _TONGUE_OUT])
