"""Ground truth of a rendered face from its geometry: distance of the lips, alignment points."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from . import scene
from .head import ACTIONS, SKIN, Head
from .identity import Identity


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """No gradients, and no TensorFloat-32 whatever the caller trains with."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _lip_columns(head: Head) -> tuple[Tensor, Tensor]:
    """Vertices of the upper and the lower lip near their meeting, in the middle of the mouth."""
    if not hasattr(head, "_lips"):
        drop = head.actions[ACTIONS.index("jawOpen")].view(-1, 3)[:, 1]
        near = (head.lip.abs() < 0.075) & (head.base[:, 0].abs() < 0.075)
        near &= (head.base[:, 1] - 6.6).abs() < 0.12
        head._lips = (
            (near & (drop > -0.12)).nonzero(as_tuple=True)[0],
            (near & (drop <= -0.12)).nonzero(as_tuple=True)[0],
        )
    return head._lips


def mouth_gap(head: Head, acted: Tensor) -> Tensor:
    """Distance [B] in decimetres between the lips in the middle of the mouth, 0 when they touch."""
    upper, lower = _lip_columns(head)
    low = torch.topk(acted[:, upper, 1], 5, dim=1, largest=False).values.mean(1)
    high = torch.topk(acted[:, lower, 1], 5, dim=1).values.mean(1)
    return (low - high).clamp(min=0)


def opening(head: Head, identity: Identity | list[Identity], actions: Tensor) -> Tensor:
    """Distance of the lips / width of the mouth at rest: float [B]."""
    with exact():
        group = scene.cast(identity, len(actions), head.device)
        rest = scene.people_at_rest(head, group)[group.who]
        x = rest[:, head.seam, 0]
        gap = mouth_gap(head, scene.act(head, rest, actions.to(head.device, torch.float32)))
        return gap / (x.amax(1) - x.amin(1))


# Points of the base mesh (for a brow: on the left of the image) whose weighted mean is an alignment
# point, and its offset in decimetres of the image: right, down, and down per decimetre by which the
# brows are painted higher. Fitted to the output of the project's face mesh.
_BROW = (
    ((-0.42, 7.482, 1.377), -0.20),
    ((-0.337, 7.502, 1.423), 1.09),
    ((-0.17, 7.46, 1.47), -0.198),
    ((-0.31, 7.36, 1.41), 0.112),
    ((-0.48, 7.29, 1.25), 0.196),
)
_BROW_MORE = (-0.013, -0.038, -1.08)
_NOSE = (
    ((0.0, 7.0, 1.66), 0.116),
    ((0.0, 6.83, 1.6), 0.639),
    ((-0.16, 6.89, 1.5), -0.0635),
    ((0.16, 6.89, 1.5), -0.0635),
    ((0.0, 7.3, 1.52), 0.14),
    ((-0.25, 6.62, 1.45), 0.093),
    ((0.25, 6.62, 1.45), 0.093),
    ((-0.33, 7.48, 1.42), 0.023),
    ((0.33, 7.48, 1.42), 0.023),
)
_NOSE_MORE = (0.0, -0.043, -0.43)


def points(
    head: Head, identity: Identity | list[Identity], actions: Tensor, pose: Tensor,
    size: tuple[int, int] = (640, 480),
) -> Tensor:
    """The three alignment points in source pixels [B 3 2]: brow at the picture's left, brow at its
    right, nose; where the project's face mesh finds them."""
    with exact():
        group = scene.cast(identity, len(actions), head.device)
        play = scene.stage(head, group, actions.to(head.device, torch.float32), pose)
        camera = scene.pinhole(group, size)
        screen = camera.project(play.posed)[..., :2]
        out = []
        for (index, weights), more in zip(_marks(head), (_BROW_MORE, _BROW_MORE, _NOSE_MORE)):
            at = (screen[:, index] * weights[:, None]).sum(1)
            right = more[0] if len(out) == 0 else -more[0]
            down = more[1] + more[2] * group.frames("brow_height")
            away = torch.stack([torch.full_like(down, right), down], 1)
            out.append(at + away * camera.scale[:, None])
        return torch.stack(out, 1)


def _marks(head: Head) -> list[tuple[Tensor, Tensor]]:
    """Vertices and weights of the three points."""
    if not hasattr(head, "_mark_vertices"):
        skin = head.vertices_of[SKIN]
        right = [((-x, y, z), w) for (x, y, z), w in _BROW]
        marks = []
        for place in (_BROW, right, _NOSE):
            index = [
                skin[(head.base[skin] - torch.tensor(p, device=head.device)).norm(dim=1).argmin()]
                for p, _ in place
            ]
            marks.append(
                (torch.stack(index), torch.tensor([w for _, w in place], device=head.device))
            )
        head._mark_vertices = marks
    return head._mark_vertices
