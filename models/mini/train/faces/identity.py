"""A person and a scene from a seed: every random choice, as a plain dict.

Numbers and lists of numbers only, so that an identity can be stored as JSON and changed by hand.
Colours are linear light unless they say sRGB.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Identity = dict[str, Any]

# Pairs of opposite shape targets, once or per side, and their ranges.
_SHAPES = {
    "head-age": ("decr", "incr", 0.0), "head-angle": ("in", "out", 0.4),
    "head-fat": ("decr", "incr", 0.45), "head-scale-depth": ("decr", "incr", 0.3),
    "head-scale-horiz": ("decr", "incr", 0.4), "head-scale-vert": ("decr", "incr", 0.4),
    "head-back-scale-depth": ("decr", "incr", 0.4), "forehead-nubian": ("decr", "incr", 0.4),
    "forehead-scale-vert": ("decr", "incr", 0.5), "forehead-temple": ("decr", "incr", 0.5),
    "forehead-trans": ("backward", "forward", 0.4), "eyebrows-angle": ("down", "up", 0.5),
    "eyebrows-trans": ("down", "up", 0.5), "chin-bones": ("decr", "incr", 0.5),
    "chin-cleft": ("decr", "incr", 0.4), "chin-height": ("decr", "incr", 0.45),
    "chin-jaw-drop": ("decr", "incr", 0.4), "chin-prognathism": ("decr", "incr", 0.3),
    "chin-prominent": ("decr", "incr", 0.4), "chin-width": ("decr", "incr", 0.5),
    "mouth-angles": ("down", "up", 0.35), "mouth-cupidsbow": ("decr", "incr", 0.6),
    "mouth-cupidsbow-width": ("decr", "incr", 0.5), "mouth-dimples": ("in", "out", 0.4),
    "mouth-laugh-lines": ("in", "out", 0.5), "mouth-lowerlip-height": ("decr", "incr", 0.45),
    "mouth-lowerlip-volume": ("decr", "incr", 0.45), "mouth-lowerlip-width": ("decr", "incr", 0.4),
    "mouth-philtrum-volume": ("decr", "incr", 0.5), "mouth-scale-depth": ("decr", "incr", 0.3),
    "mouth-scale-horiz": ("decr", "incr", 0.45), "mouth-scale-vert": ("decr", "incr", 0.3),
    "mouth-trans": ("down", "up", 0.35), "mouth-upperlip-height": ("decr", "incr", 0.45),
    "mouth-upperlip-volume": ("decr", "incr", 0.45), "mouth-upperlip-width": ("decr", "incr", 0.4),
    "neck-scale-depth": ("decr", "incr", 0.4), "neck-scale-horiz": ("decr", "incr", 0.4),
    "neck-double": ("decr", "incr", 0.3), "nose-base": ("down", "up", 0.5),
    "nose-compression": ("compress", "uncompress", 0.4), "nose-curve": ("concave", "convex", 0.5),
    "nose-flaring": ("decr", "incr", 0.5), "nose-greek": ("decr", "incr", 0.4),
    "nose-hump": ("decr", "incr", 0.5), "nose-nostrils-angle": ("down", "up", 0.5),
    "nose-nostrils-width": ("decr", "incr", 0.5), "nose-point": ("down", "up", 0.5),
    "nose-point-width": ("decr", "incr", 0.5), "nose-scale-depth": ("decr", "incr", 0.4),
    "nose-scale-horiz": ("decr", "incr", 0.5), "nose-scale-vert": ("decr", "incr", 0.4),
    "nose-septumangle": ("decr", "incr", 0.4), "nose-volume": ("decr", "incr", 0.5),
    "nose-width1": ("decr", "incr", 0.5), "nose-width2": ("decr", "incr", 0.5),
    "nose-width3": ("decr", "incr", 0.5),
}
_SIDED = {
    "cheek-bones": ("decr", "incr", 0.5), "cheek-inner": ("decr", "incr", 0.5),
    "cheek-trans": ("down", "up", 0.4), "cheek-volume": ("decr", "incr", 0.5),
    "ear-lobe": ("decr", "incr", 0.5), "ear-scale": ("decr", "incr", 0.4),
    "ear-wing": ("decr", "incr", 0.5), "ear-trans": ("down", "up", 0.3),
    "eye-bag": ("decr", "incr", 0.5), "eye-corner1": ("down", "up", 0.4),
    "eye-corner2": ("down", "up", 0.4), "eye-eyefold": ("down", "up", 0.5),
    "eye-height1": ("decr", "incr", 0.4), "eye-height2": ("decr", "incr", 0.35),
    "eye-height3": ("decr", "incr", 0.4), "eye-push1": ("in", "out", 0.4),
    "eye-push2": ("in", "out", 0.4), "eye-scale": ("decr", "incr", 0.35),
    "eye-trans": ("in", "out", 0.35),
}
_OUTLINES = (
    "diamond",
    "invertedtriangular",
    "oval",
    "rectangular",
    "round",
    "square",
    "triangular",
)

# Skin reflectance (sRGB, 0..255) from the fairest to the darkest.
_SKIN = np.array([
    [238, 203, 184], [228, 184, 160], [214, 165, 136], [190, 138, 106],
    [158, 107, 76], [122, 79, 55], [88, 55, 39], [64, 41, 31],
], float)
_HAIR = {
    "black": (22, 19, 18), "brown": (52, 36, 26), "light": (105, 76, 50),
    "blond": (168, 134, 88), "red": (120, 58, 30), "grey": (138, 134, 130),
    "white": (205, 202, 196),
}
_IRIS = {
    "brown": (74, 45, 25), "dark": (42, 27, 19), "hazel": (104, 80, 44),
    "green": (92, 108, 72), "blue": (98, 122, 142), "grey": (120, 130, 138),
}


def linear(srgb: Any) -> np.ndarray:
    """Linear light of sRGB values 0..255."""
    x = np.asarray(srgb, float) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _pick(rng: np.random.Generator, choices: dict[str, float]) -> str:
    names, weights = list(choices), np.array(list(choices.values()), float)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _macro(
    rng: np.random.Generator, race: dict[str, float], female: float, age: float
) -> dict[str, float]:
    """Weights of the macro targets: products of the shares of sex, age, race and build."""
    old = float(np.clip((age - 24) / 62, 0, 1))
    shares_age = {"young": 1 - old, "old": old}
    shares_sex = {"female": female, "male": 1 - female}
    muscle, weight = rng.uniform(0.25, 0.8), rng.beta(2.4, 2.4)

    def three(x: float, kind: str) -> dict[str, float]:
        return {
            f"min{kind}": max(0, 1 - 2 * x),
            f"average{kind}": 1 - abs(2 * x - 1),
            f"max{kind}": max(0, 2 * x - 1),
        }

    out = {}
    for (s, ws), (a, wa), (m, wm), (k, wk) in itertools.product(
        shares_sex.items(),
        shares_age.items(),
        three(muscle, "muscle").items(),
        three(weight, "weight").items(),
    ):
        out[f"universal-{s}-{a}-{m}-{k}"] = ws * wa * wm * wk
    for (r, wr), (s, ws), (a, wa) in itertools.product(
        race.items(), shares_sex.items(), shares_age.items()
    ):
        out[f"{r}-{s}-{a}"] = wr * ws * wa
    return {k: float(v) for k, v in out.items() if v > 1e-6}


def _local(rng: np.random.Generator, asian: float) -> dict[str, float]:
    """Weights of the targets that change parts of a face, the sides a little unlike."""
    out: dict[str, float] = {}
    variety = rng.uniform(0.5, 1.0)

    def add(name: str, pair: tuple[str, str, float], value: float) -> None:
        value = float(np.clip(value, -1, 1)) * pair[2]
        out[f"{name}-{pair[1] if value > 0 else pair[0]}"] = abs(value)

    for name, pair in _SHAPES.items():
        add(name, pair, rng.normal() * 0.6 * variety)
    for name, pair in _SIDED.items():
        value, apart = rng.normal() * 0.6 * variety, rng.normal() * 0.08
        add(f"l-{name}", pair, value + apart)
        add(f"r-{name}", pair, value - apart)
    fold = float(np.clip(asian * 0.6 + rng.normal() * 0.15, 0, 0.9))
    out["l-eye-epicanthus-in"] = out["r-eye-epicanthus-in"] = fold
    out[f"head-{rng.choice(_OUTLINES)}"] = float(rng.uniform(0, 0.45) * variety)
    for part, kinds in {"brown": 2, "cheek": 2, "eye": 8, "jaw": 3, "mouth": 2, "nose": 4}.items():
        kind, side = rng.integers(1, kinds + 1), rng.choice(["l", "r"])
        out[f"asym-{part}-{kind}-{side}"] = float(abs(rng.normal()) * 0.12)
    return out


def _skin(rng: np.random.Generator, race: dict[str, float], age: float, female: float) -> Identity:
    """Colour and texture of the skin."""
    centre = 0.13 * race["caucasian"] + 0.30 * race["asian"] + 0.76 * race["african"]
    tone = float(np.clip(centre + rng.normal() * 0.10, 0, 1))
    at = tone * (len(_SKIN) - 1)
    low = min(int(at), len(_SKIN) - 2)
    srgb = _SKIN[low] + (_SKIN[low + 1] - _SKIN[low]) * (at - low)
    srgb = srgb * (1 + rng.normal(size=3) * [0.02, 0.02, 0.035])
    base = linear(np.clip(srgb, 20, 250))
    redness = float(np.clip(rng.normal(0.5, 0.25), 0, 1.2)) * (1 - 0.75 * tone)
    ratio = np.array([0.92, 0.50, 0.55]) * (1 - tone) + np.array([0.86, 0.70, 0.80]) * tone
    lip = base * (ratio + rng.normal(size=3) * [0.05, 0.06, 0.06])
    makeup = female > 0.5 and rng.random() < 0.35
    if makeup:
        colour = linear(
            [(165, 40, 50), (190, 80, 90), (140, 45, 60), (200, 95, 85)][int(rng.integers(4))]
        )
        share = rng.uniform(0.3, 0.85)
        lip = lip * (1 - share) + colour * (1 - 0.62 * tone) * share
    old = (age - 18) / 62
    return {
        "tone": tone,
        "albedo": base.tolist(),
        "lip": lip.tolist(),
        "redness": redness,
        "lip_edge": float(rng.uniform(0.008, 0.022)),
        "lip_gloss": float(rng.uniform(0.1, 0.5) + 0.4 * (makeup and rng.random() < 0.6)),
        "blotch": float(rng.uniform(0.03, 0.09)),
        "pores": float(rng.uniform(0.3, 1.0)),
        "freckles": float(max(0, rng.normal(-0.2, 0.5)) * (1 - tone) + 0.25 * old * rng.random()),
        "spots": float(max(0, rng.normal(0.05, 0.35))),
        "wrinkles": float(np.clip(old * 1.1 + rng.normal() * 0.1, 0, 1.1)),
        "oil": float(rng.uniform(0.15, 0.75)),
        "bags": float(rng.uniform(0, 0.6) + 0.3 * old),
        "liner": float(makeup and rng.uniform(0.2, 0.8)),
        "shift": rng.uniform(0, 1, 4).tolist(),
    }


def _hair(
    rng: np.random.Generator, race: dict[str, float], age: float, female: float, tone: float
) -> Identity:
    """Hair, brows, stubble and beard."""
    fair = race["caucasian"]
    colour = _pick(
        rng,
        {
            "black": 0.15 + 1.4 * (1 - fair),
            "brown": 0.6,
            "light": 0.5 * fair,
            "blond": 0.35 * fair,
            "red": 0.1 * fair,
        },
    )
    base = linear(_HAIR[colour])
    grey = float(np.clip((age - rng.uniform(38, 62)) / 22, 0, 1))
    base = base * (1 - grey) + linear(_HAIR["grey" if age < 66 else "white"]) * grey
    brow = base * 0.75 * (1 - 0.4 * grey) if colour != "blond" else base * 0.55
    male = female < 0.5
    beard_kind = "none"
    if male:
        beard_kind = _pick(
            rng, {"none": 0.55, "short": 0.2, "full": 0.13, "moustache": 0.05, "goatee": 0.07}
        )
    style = _pick(
        rng,
        (
            {"short": 0.62, "buzz": 0.2, "bald": 0.06 + 0.15 * (age > 50), "medium": 0.12}
            if male
            else {"long": 0.42, "medium": 0.33, "short": 0.15, "tied": 0.1}
        ),
    )
    return {
        "hair_colour": base.tolist(),
        "hair_style": style,
        "hairline": float(rng.normal(0, 0.04) + (0.12 * max(0, age - 45) / 35 if male else 0)),
        "hair_volume": float(rng.uniform(0.5, 1.2)),
        "hair_wave": float(rng.uniform(0, 1)),
        "hair_shine": float(rng.uniform(0.2, 0.8)),
        "fringe": float(rng.uniform(0, 1) if not male and rng.random() < 0.4 else 0),
        "brow_colour": np.clip(brow, 0.006, 0.5).tolist(),
        "brow_density": float(rng.uniform(0.45, 1.0)),
        "brow_width": float(rng.uniform(0.7, 1.25) * (0.8 if female > 0.5 else 1.05)),
        "brow_arch": float(rng.normal(0, 0.35)),
        "brow_height": float(rng.normal(0, 0.012)),
        "lashes": float(rng.uniform(0.35, 0.8) + (0.2 if female > 0.5 else 0)),
        "stubble": float(rng.uniform(0, 0.75) if male else 0),
        "beard": beard_kind,
        "beard_length": float(rng.uniform(0.3, 1.0)),
    }


def _scene(rng: np.random.Generator) -> Identity:
    """Light, clothes, background and camera."""
    lights = []
    warm, cool = np.array([1.0, 0.86, 0.7]), np.array([0.84, 0.93, 1.0])
    for share, side in (
        (rng.uniform(0.55, 1.5), rng.uniform(-1.1, 1.1)),
        (rng.uniform(0.05, 0.6), None),
        (rng.uniform(0, 0.5), None),
    ):
        azimuth = side if side is not None else rng.uniform(-1.6, 1.6)
        height = rng.uniform(-0.05, 0.9)
        mix = rng.uniform()
        colour = (warm * mix + cool * (1 - mix)) * share
        direction = [
            np.sin(azimuth) * np.cos(height),
            np.sin(height),
            np.cos(azimuth) * np.cos(height),
        ]
        lights.append(
            {"direction": [float(d) for d in direction], "colour": [float(c) for c in colour]}
        )
    ambient = rng.uniform(0.25, 0.6)
    tint = rng.uniform()
    sky = (warm * tint + cool * (1 - tint)) * ambient
    vivid = rng.choice([0.12, 0.3, 0.6])
    palette = rng.uniform(0.02, 0.7, (3, 1)) * (1 - vivid / 2 + vivid * rng.uniform(0, 1, (3, 3)))
    cloth = rng.uniform(0.01, 0.6) * (0.7 + rng.uniform(0, 0.6, (2, 3)))
    return {
        "lights": lights,
        "sky": sky.tolist(),
        "ground": (sky * rng.uniform(0.25, 0.7) * [1.0, 0.92, 0.85]).tolist(),
        "softness": float(rng.uniform(0.15, 0.9)),
        "exposure": float(rng.uniform(0.85, 1.25)),
        "contrast": float(rng.uniform(0.9, 1.12)),
        "saturation": float(rng.uniform(0.8, 1.1)),
        "white": (1 + rng.normal(size=3) * [0.03, 0.01, 0.05]).tolist(),
        "background": np.clip(palette, 0, 0.9).tolist(),
        "background_scale": float(rng.choice([rng.uniform(0.15, 0.5), rng.uniform(0.4, 1.6)])),
        "background_edge": float(rng.uniform(0.35, 1.6)),
        "background_shift": rng.uniform(0, 1, 4).tolist(),
        "cloth": np.clip(cloth, 0, 0.85).tolist(),
        "cloth_scale": float(rng.uniform(1, 6)),
        "cloth_pattern": float(rng.choice([0, 0, 0.5, 1.0])),
        "neckline": float(rng.uniform(0, 1)),
        "neckline_v": float(rng.choice([0, rng.uniform(0, 1)])),
        "fov": float(rng.uniform(0.32, 0.75)),
        "face_height": float(rng.uniform(0.46, 0.74)),
        "offset": [float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.03, 0.05))],
        "turn": [
            float(rng.normal() * 0.14),
            float(rng.normal() * 0.06),
            float(rng.normal() * 0.03),
        ],
        "blur": float(rng.choice([rng.uniform(0.2, 0.6), rng.uniform(0.4, 1.2)])),
        "sharpen": float(rng.choice([0, 0, rng.uniform(0.1, 0.6)])),
        "grain": float(rng.uniform(0.001, 0.012)),
        "jpeg": float(rng.uniform(55, 96)),
        "vignette": float(rng.uniform(0, 0.25)),
    }


def identity(seed: int) -> Identity:
    """All random choices of a person and a scene."""
    rng = np.random.default_rng([seed, 77])
    shares = rng.dirichlet([0.25, 0.25, 0.25])
    race = dict(zip(("african", "asian", "caucasian"), (float(s) for s in shares)))
    woman = rng.random() < 0.5
    female = float(np.clip(rng.beta(6, 1.2) if woman else rng.beta(1.2, 6), 0, 1))
    age = float(18 + 62 * rng.beta(1.1, 1.6))
    out: Identity = {"seed": int(seed), "race": race, "female": female, "age": age}
    out["shape"] = _macro(rng, race, female, age) | _local(rng, race["asian"])
    out |= _skin(rng, race, age, female)
    out |= _hair(rng, race, age, female, out["tone"])
    iris = _pick(
        rng,
        {
            "brown": 0.6,
            "dark": 0.2 + 0.8 * (1 - race["caucasian"]),
            "hazel": 0.2 * race["caucasian"],
            "green": 0.2 * race["caucasian"] ** 2,
            "blue": 0.5 * race["caucasian"] ** 3,
            "grey": 0.15 * race["caucasian"] ** 2,
        },
    )
    colour = linear(_IRIS[iris]) * rng.uniform(0.75, 1.3)
    out |= {
        "iris": colour.tolist(),
        "iris_size": float(rng.uniform(0.40, 0.46)),
        "pupil": float(rng.uniform(0.30, 0.5)),
        "sclera": float(rng.uniform(0.42, 0.62)),
        "teeth": (
            linear((232, 222, 200))
            * rng.uniform(0.75, 1.05, 1)
            * [1, rng.uniform(0.93, 1.0), rng.uniform(0.8, 1.0)]
        ).tolist(),
        "teeth_gap": float(rng.uniform(0.3, 1.0)),
        "tooth_show": float(rng.uniform(0, 1)),
        "glasses": float(rng.random() < 0.22),
        "glasses_size": float(rng.uniform(0.85, 1.15)),
        "glasses_round": float(rng.uniform(0, 1)),
        "glasses_thick": float(rng.uniform(0.6, 1.5)),
        "glasses_colour": (np.array([1, 0.8, 0.65]) * rng.uniform(0.005, 0.12)).tolist(),
    }
    out |= _scene(rng)
    return out
