"""Self-check of texts.py, engines.py, voices.py and visemes.py, in a minute or two:

    python models/mini/train/check_voices.py

Needs the speech engines. Prints what it measured, one line a check; exits non-zero if one fails."""

import json
import os
import subprocess
import sys
import tempfile
import zlib

import numpy
import soundfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import engines  # noqa: E402
import texts  # noqa: E402
import visemes  # noqa: E402
import voices  # noqa: E402

# Approximate loudness of the phones: an energy curve computed from the phones alone.
LOUD = dict(
    {p: 0.0 for p in engines.PHONES},
    **{p: 1.0 for p in "aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw".split()},
    **{p: 0.5 for p in "l r w y m n ng".split()},
    **{p: 0.25 for p in "v z dh zh s sh".split()},
)
failed = []


def check(ok, what):
    print("%s - %s" % ("ok" if ok else "not ok", what), flush=True)
    if not ok:
        failed.append(what)


def lag(x, phones, first=0.0, last=1.0):
    """Seconds by which the sound comes after its phones, by correlation of energy with phones over
    a part of a clip."""
    step = engines.RATE // 200
    n = len(x) // step
    energy = numpy.sqrt((x[: n * step].astype(numpy.float64).reshape(n, step) ** 2).mean(1))
    energy = numpy.convolve(energy, numpy.ones(5) / 5, "same") ** 0.5
    drawn, t = numpy.zeros(n), (numpy.arange(n) + 0.5) / 200
    for symbol, start, end in phones:
        drawn[(t >= start) & (t < end)] = LOUD[symbol]
    drawn = numpy.convolve(drawn, numpy.hanning(9) / numpy.hanning(9).sum(), "same")
    a, b = int(first * n) + 30, int(last * n) - 30
    scores = [numpy.corrcoef(energy[a + k : b + k], drawn[a:b])[0, 1] for k in range(-30, 31)]
    return (int(numpy.argmax(scores)) - 30) / 200, max(scores)


def check_texts():
    sets = {
        split: [t for t, _ in zip(texts.sentences(split, 5), range(2000))] for split in texts.SPLITS
    }
    again = [t for t, _ in zip(texts.sentences("test", 5), range(2000))]
    check(again == sets["test"], "texts: the same seed gives the same 2000 sentences")
    check(
        not set(sets["train"]) & set(sets["test"])
        and not set(sets["sync"]) & set(sets["train"] + sets["test"]),
        "texts: no sentence is in two of train, sync, test",
    )


def check_engines():
    speakers = [("flite", v) for v in "kal kal16 awb rms slt".split()] + [
        ("festival", v) for v in "kal ked slt".split()
    ]
    speakers += [
        ("espeak", v)
        for v in ("en-us+m1", "en+f5", "en-gb-scotland+m6", "en-029+Andy", "en-us+klatt3")
    ]
    heard = set()
    for engine, voice in speakers:
        whole, late, scores = [], [], []
        for text, speed in zip(
            texts.sentences("train", 11), (1.0, 0.85, 1.2, 1.0, 0.9, 1.1, 1.0, 1.0)
        ):
            x, phones = engines.speak(engine, voice, text, speed, 1.1)
            heard.update(p[0] for p in phones)
            assert all(a[2] == b[1] for a, b in zip(phones, phones[1:])) and phones[0][1] == 0
            assert abs(phones[-1][2] - len(x) / engines.RATE) < 0.001
            at, score = lag(x, phones)
            whole.append(at)
            scores.append(score)
            late.append(lag(x, phones, 0.5, 1.0)[0])
        check(
            abs(numpy.median(whole)) <= 0.02
            and abs(numpy.median(late)) <= 0.025
            and numpy.median(scores) > 0.6,
            "%s %s: sound against phones %+.0f ms (of 8 sentences %+.0f to %+.0f),"
            " second half %+.0f ms; correlation %.2f"
            % (
                engine,
                voice,
                1e3 * numpy.median(whole),
                1e3 * min(whole),
                1e3 * max(whole),
                1e3 * numpy.median(late),
                numpy.median(scores),
            ),
        )
    for _, text in zip(range(150), texts.sentences("test", 12)):
        heard.update(p[0] for p in engines.speak("espeak", "en-us", text, 2.0)[1])
    twice = [
        engines.speak(e, v, "Papa, my big happy puppy.", 0.9, 1.1)[0]
        for _ in range(2)
        for e, v in speakers
    ]
    check(
        all((a.shape == b.shape and (a == b).all()) for a, b in zip(twice, twice[len(speakers) :])),
        "engines: every voice says a sentence twice alike to the bit",
    )
    check(
        heard == engines.PHONES,
        "engines: %d of %d phones heard in 158 sentences (missing: %s)"
        % (len(heard), len(engines.PHONES), " ".join(sorted(engines.PHONES - heard)) or "none"),
    )


def check_voices(folder):
    everybody = [
        set(v[1] for v in voices.RECORDED[s]) | set(voices.VARIANTS[s]) for s in texts.SPLITS
    ]
    check(
        not everybody[0] & everybody[1]
        and not everybody[0] & everybody[2]
        and not everybody[1] & everybody[2],
        "voices: no speaker is in two of train, sync, test",
    )
    a, about = voices.clip("test", 3, 1)
    b, again = voices.clip("test", 3, 1)
    check(
        about == again and zlib.crc32(a.tobytes()) == zlib.crc32(b.tobytes()),
        "voices: the same clip twice is the same to the bit",
    )
    command = [
        sys.executable,
        os.path.abspath(voices.__file__),
        "--out",
        folder,
        "--split",
        "test",
        "--seed",
        "3",
    ]
    subprocess.run(command + ["--clips", "20"], check=True, stdout=subprocess.DEVNULL)
    names = sorted(n[:-5] for n in os.listdir(folder) if n.endswith(".json"))
    lags, frames_right, peak = [], True, 0
    for name in names:
        with open(os.path.join(folder, name + ".json")) as f:
            about = json.load(f)
        x, rate = soundfile.read(os.path.join(folder, name + ".opus"), dtype="float32")
        assert rate == 16000 and x.ndim == 1
        frames_right &= len(x) == round(about["seconds"] * 16000) and len(
            about["loudness"]
        ) == round(about["seconds"] * 25)
        peak = max(peak, float(numpy.abs(x).max()))
        if about["engine"] != "none" and (about["snr_db"] or 99) > 20 and not about["room"]:
            lags.append(lag(x, about["phones"])[0])
    check(
        len(names) == 20 and frames_right,
        "voices: 20 clips, each as long as it says, 25 loudness values a second",
    )
    check(
        len(lags) >= 4 and abs(numpy.median(lags)) <= 0.02 and max(map(abs, lags)) <= 0.05,
        "voices: after pauses, size and Opus the sound is %+.0f ms from its phones"
        " (%d dry clips, %+.0f to %+.0f)"
        % (1e3 * numpy.median(lags), len(lags), 1e3 * min(lags), 1e3 * max(lags)),
    )
    return folder, names


def check_visemes(folder, names):
    rng = numpy.random.default_rng
    shut, quiet, bitten, speaking = [], [], [], []
    for i, name in enumerate(names):
        with open(os.path.join(folder, name + ".json")) as f:
            about = json.load(f)
        phones, seconds = about["phones"], about["seconds"]
        c = visemes.curves(phones, seconds, rng(i), loudness=about["loudness"])
        again = visemes.curves(phones, seconds, rng(i), loudness=about["loudness"])
        assert sorted(c) == sorted(visemes.ACTIONS) and all((c[k] == again[k]).all() for k in c)
        assert all(
            v.dtype == numpy.float32
            and len(v) == round(seconds * 25)
            and 0 <= v.min()
            and v.max() <= 1
            for v in c.values()
        )
        apart = (
            c["jawOpen"]
            - c["mouthClose"]
            + 0.5 * c["mouthFunnel"]
            + 0.5 * (c["mouthLowerDownLeft"] + c["mouthUpperUpLeft"])
        )
        for symbol, start, end in phones:
            at = min(len(apart) - 1, int(0.5 * (start + end) * 25))
            if symbol in ("m", "b", "p"):
                shut.append(apart[at])
            elif symbol in ("f", "v"):
                bitten.append((c["mouthRollLower"][at], c["jawOpen"][at]))
            elif symbol == "pau" and end - start > 0.4:
                quiet.extend(apart[int((start + 0.14) * 25) : int((end - 0.14) * 25)])
            elif symbol in ("aa", "ae", "ay", "ao"):
                speaking.append(apart[at])
    check(max(shut) < 1e-6, "visemes: lips together in the middle of each of %d m b p" % len(shut))
    check(
        min(b[0] for b in bitten) > 0.5 and max(b[1] for b in bitten) < 0.12,
        "visemes: lower lip at the teeth in the middle of each of %d f v" % len(bitten),
    )
    check(
        max(quiet) < 1e-3 and numpy.mean(speaking) > 0.4,
        "visemes: closed in %d frames of silence, %.2f open in the middle of wide vowels"
        % (len(quiet), numpy.mean(speaking)),
    )
    # Rounding comes before its vowel, and the neighbours of a weak phone shape it.
    phones = [
        ["pau", 0, 0.4],
        ["s", 0.4, 0.5],
        ["t", 0.5, 0.6],
        ["uw", 0.6, 0.9],
        ["pau", 0.9, 1.4],
    ]
    spread = [p if p[0] != "uw" else ["iy", p[1], p[2]] for p in phones]
    pucker, other = (visemes.curves(p, 1.4, rng(0))["mouthPucker"][13] for p in (phones, spread))
    check(
        pucker > 0.2 and other < 0.02,
        "visemes: t before oo is rounded already (%.2f), before ee not (%.2f)" % (pucker, other),
    )
    blinks = [
        visemes.curves([["pau", 0.0, 60.0]], 60.0, rng(i))["eyeBlinkLeft"] > 0.7 for i in range(20)
    ]
    rate = numpy.mean([numpy.count_nonzero(b[1:] & ~b[:-1]) for b in blinks])
    check(14 <= rate <= 21, "visemes: %.1f blinks a minute" % rate)
    moves = [visemes.motion(8, rng(i)) for i in range(40)]
    check(
        all((a == b).all() for a, b in zip(moves[3], visemes.motion(8, rng(3)))),
        "motion: the same seed moves the same",
    )
    jerk = max(float(numpy.abs(numpy.diff(m[k])).max()) for m in moves for k in range(3))
    check(
        numpy.degrees(jerk) < 2,
        "motion: at most %.1f degrees from one frame to the next" % numpy.degrees(jerk),
    )


if __name__ == "__main__":
    check_texts()
    check_engines()
    with tempfile.TemporaryDirectory() as scratch:
        check_visemes(*check_voices(scratch))
    if failed:
        print("%d checks failed" % len(failed))
    sys.exit(1 if failed else 0)
