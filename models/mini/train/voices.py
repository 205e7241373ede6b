"""Speech clips with exact phoneme timings for training: sentences of texts.py spoken by engines.py,
in rooms and noise.

    python models/mini/train/voices.py --out FOLDER --clips 700 --split train --seed 1 --jobs 2

FOLDER gets NAME.opus (Ogg Opus; --format flac for FLAC), 16 kHz mono, and NAME.json: {text, engine,
voice, speaker, split, seconds, phones: [[symbol, start_s, end_s], ...], loudness: [a value for each
25 fps frame], room, noise, snr_db}. Phones are ARPABET without stress, "pau" is silence. Loudness
is the dry voice's level over the frame against the clip's loud speech (1: as loud as the loudest
tenth). Clip i depends on split, seed and i only, so more clips or more jobs never change one; a
clip that exists already is kept. No split shares a speaker or a sentence with another.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys

import numpy
import soundfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import engines  # noqa: E402
import texts  # noqa: E402

RATE = engines.RATE
FPS = 25
BITRATE = 24000  # bit/s of Opus

# Each speaker is in one split only: kal and slt of flite and festival are the same people. (weight,
# speaker, engine, voice)
RECORDED = {
    "train": [
        (8, "kal", "flite", "kal16"),
        (2, "kal", "flite", "kal"),
        (8, "kal", "festival", "kal"),
        (18, "awb", "flite", "awb"),
        (14, "slt", "flite", "slt"),
        (8, "slt", "festival", "slt"),
    ],
    "sync": [(45, "ked", "festival", "ked")],
    "test": [(45, "rms", "flite", "rms")],
}
# espeak-ng's synthetic speakers (its voice variants; families such as iven, iven2 ... stay
# together), any English accent.
VARIANTS = {
    "train": """m1 m2 m3 m5 m7 m8 f1 f2 f4 Alex Alicia Andrea Annie AnxiousAndy Denis Gene Gene2
        Hugo Jacky Lee Marco Michael Mike Nguyen RicishayMax RicishayMax2 RicishayMax3 adam anika
        announcer antonio aunty boris caleb david ed edward edward2 grandma grandpa gustave iven
        iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 marcelo max miguel norbert
        pablo rob robert sandro shelby steph steph2 steph3 travis""".split(),
    "sync": "m4 f3 Diogo Mario pedro michel Henrique quincy zac".split(),
    "test": "m6 f5 Andy benjamin paul victor linda belinda".split(),
}
ESPEAK_WEIGHT = {"train": 42, "sync": 55, "test": 55}
ACCENTS = """en-us en-us en-us en en en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029
en-us-nyc""".split()


def _speaker(rng, split):
    """(speaker, engine, voice, size): size is a factor on formants and pitch together, as of a
    larger or smaller head."""
    choices = RECORDED[split] + [(ESPEAK_WEIGHT[split], None, "espeak", None)]
    _, speaker, engine, voice = rng.choices(choices, [c[0] for c in choices])[0]
    if engine == "espeak":
        speaker = rng.choice(VARIANTS[split])
        return (
            "espeak-" + speaker,
            engine,
            rng.choice(ACCENTS) + "+" + speaker,
            rng.uniform(0.94, 1.06),
        )
    return (
        speaker,
        engine,
        voice,
        rng.uniform(0.84, 1.22) if split == "train" else rng.uniform(0.93, 1.08),
    )


def _say(rng, speaker, text):
    """Speech and phones of one sentence; the speaker's size is made by playing faster or slower,
    times follow."""
    engine, voice, size, speed, pitch = speaker
    x, phones = engines.speak(engine, voice, text, speed / size, pitch)
    whole = round(size * 100)
    if whole != 100:
        x = engines.resample(x, whole, 100)
        phones = [[s, a * 100 / whole, b * 100 / whole] for s, a, b in phones]
    return _stretch_pauses(rng, x, phones)


def _stretch_pauses(rng, x, phones):
    """Ends trimmed to 30 ms of pause; some pauses inside made longer by silence put into their
    middle."""
    first, last = 0.0, len(x) / RATE
    if phones[0][0] == "pau":
        first = max(0.0, phones[0][2] - 0.03)
    if phones[-1][0] == "pau":
        last = min(last, phones[-1][1] + 0.12)  # the last sound decays a little longer
    pieces, out, at, shift = [], [], int(first * RATE), -at_seconds(first)
    for symbol, start, end in phones:
        start, end = max(start, first), min(end, last)
        if end <= start:
            continue
        more = 0.0
        if (
            symbol == "pau"
            and start > first
            and end < last
            and end - start > 0.03
            and rng.random() < 0.3
        ):
            more = round(rng.uniform(0.1, 0.5) * RATE) / RATE
            cut, fade = (
                int((start + end) / 2 * RATE),
                numpy.linspace(0, 1, 160, dtype=numpy.float32),
            )
            x = x.copy()  # what still sounds there must not stop or start abruptly
            x[cut - 160 : cut] *= fade[::-1]
            x[cut : cut + 160] *= fade[: len(x[cut : cut + 160])]
            pieces += [x[at:cut], numpy.zeros(round(more * RATE), numpy.float32)]
            at = cut
        out.append([symbol, start + shift, end + shift + more])
        shift += more
    pieces.append(x[at : int(last * RATE)])
    return numpy.concatenate(pieces), out


def at_seconds(seconds):
    """Seconds on the grid of samples."""
    return int(seconds * RATE) / RATE


def _room(rng, noise):
    """An impulse response by formula: the direct sound at once, early reflections, an exponential
    noise tail."""
    seconds = rng.uniform(0.12, 0.7)  # RT60
    n = int(seconds * RATE)
    t = numpy.arange(n) / RATE
    tail = noise.standard_normal(n) * 10 ** (-3 * t / seconds)
    tail[: int(rng.uniform(0.004, 0.02) * RATE)] = 0
    tail = numpy.convolve(tail, numpy.ones(4) / 4, "same")  # walls absorb high frequencies
    for _ in range(rng.randrange(3, 9)):
        delay = rng.uniform(0.001, 0.03)
        tail[int(delay * RATE)] += (
            rng.choice((-1, 1)) * rng.uniform(0.5, 4) * numpy.sqrt((tail**2).mean()) * 8
        )
    direct_to_reverberant = rng.uniform(0, 16)
    tail *= 10 ** (-direct_to_reverberant / 20) / numpy.sqrt((tail**2).sum())
    tail[0] = 1.0
    return tail, {
        "rt60": round(seconds, 3),
        "direct_to_reverberant_db": round(direct_to_reverberant, 1),
    }


def _filter(x, response):
    """Convolution by FFT, cut to x's length."""
    n = len(x) + len(response) - 1
    return numpy.fft.irfft(numpy.fft.rfft(x, n) * numpy.fft.rfft(response, n), n)[: len(x)]


def _channel(rng, x):
    """A microphone: bass and treble tilted, now and then a narrow band (as a telephone's)."""
    f = numpy.fft.rfftfreq(len(x), 1 / RATE) + 1.0
    gain = 10 ** (rng.uniform(-5, 5) / 20 * numpy.log2(f / 1000).clip(-3, 3) / 3)
    gain *= 1 / numpy.sqrt(1 + (rng.uniform(30, 130) / f) ** 4)
    if rng.random() < 0.1:
        gain *= 1 / numpy.sqrt(1 + (300 / f) ** 6) / numpy.sqrt(1 + (f / 3400) ** 12)
    return numpy.fft.irfft(numpy.fft.rfft(x) * gain, len(x))


def _babble(rng, split, n):
    """Other people talking: espeak-ng speakers of the same split, one over another."""
    stream = texts.sentences(split, rng.randrange(1 << 30))
    total = numpy.zeros(n)
    for _ in range(rng.randrange(3, 6)):
        voice = rng.choice(ACCENTS) + "+" + rng.choice(VARIANTS[split])
        x = numpy.concatenate(
            [engines.espeak(voice, next(stream), rng.uniform(0.9, 1.2))[0] for _ in range(2)]
        )
        x = numpy.resize(x, n + 1)[:n]
        total += numpy.roll(x / (numpy.sqrt((x**2).mean()) + 1e-6), rng.randrange(n))
    return total


def _noise(rng, noise, split, n):
    """(kind, n samples at RMS 1) of white, pink or brown noise, mains hum, or babble."""
    kind = rng.choice(("white", "pink", "pink", "brown", "hum", "babble"))
    t = numpy.arange(n) / RATE
    if kind == "babble":
        x = _babble(rng, split, n)
    elif kind == "hum":
        base = rng.choice((50, 60)) * rng.uniform(0.998, 1.002)
        x = sum(
            rng.uniform(0.1, 1) / k * numpy.sin(2 * numpy.pi * base * k * t + rng.uniform(0, 6.28))
            for k in range(1, 9)
        )
        x = x + 0.1 * noise.standard_normal(n)
    else:
        spectrum = numpy.fft.rfft(noise.standard_normal(n))
        f = numpy.fft.rfftfreq(n, 1 / RATE).clip(20)
        x = numpy.fft.irfft(spectrum / f ** {"white": 0, "pink": 0.5, "brown": 1}[kind], n)
    return kind, x / numpy.sqrt((x**2).mean() + 1e-12)


def loudness(x, seconds, fps=FPS):
    """RMS of the dry voice about each frame (60 ms, Hann) against the loudest tenth's; 0 in
    silence, about 1 in vowels."""
    frames, half = round(seconds * fps), int(0.03 * RATE)
    window = numpy.hanning(2 * half)
    window /= window.sum()
    square = numpy.pad(x.astype(numpy.float64) ** 2, (half, half + RATE))
    level = numpy.array(
        [
            numpy.sqrt((square[c : c + 2 * half] * window).sum())
            for c in ((numpy.arange(frames) + 0.5) / fps * RATE).astype(int)
        ]
    )
    loud = numpy.sort(level)[
        -max(1, int(0.1 * numpy.count_nonzero(level > 1e-3 * (level.max() + 1e-9)))) :
    ].mean()
    return numpy.zeros(frames) if loud < 1e-6 else (level / loud).clip(0, 1.5)


def _speech(rng, split):
    """Dry speech of one speaker, sentences with pauses around: samples, phones, about."""
    limit = rng.uniform(3.0, 7.0)
    lead, trail = rng.uniform(0.05, 0.8), rng.uniform(0.1, 0.8)
    speaker, engine, voice, size = _speaker(rng, split)
    speed = rng.uniform(0.82, 1.2)
    pitch = rng.uniform(0.8, 1.25)
    stream = texts.sentences(split, rng.randrange(1 << 30))
    at = int(lead * RATE)  # number of samples so far
    said, pieces, phones = [], [numpy.zeros(at)], [["pau", 0.0, at / RATE]]
    while True:
        text = next(stream)
        y, p = _say(rng, (engine, voice, size, speed, pitch), text)
        if said and at / RATE + len(y) / RATE > limit:
            break
        said.append(text)
        phones += [[s, a + at / RATE, b + at / RATE] for s, a, b in p]
        gap = int(rng.uniform(0.15, 0.7) * RATE)
        pieces += [y, numpy.zeros(gap)]
        phones.append(["pau", phones[-1][2], (at + len(y) + gap) / RATE])
        at += len(y) + gap
        if at / RATE > limit - 2:
            break
    seconds = float(numpy.ceil((at / RATE + trail) * FPS) / FPS)  # whole frames
    x = numpy.concatenate(pieces)
    x = numpy.pad(x, (0, round(seconds * RATE) - len(x)))
    phones.append(["pau", at / RATE, seconds])
    phones = [[s, round(a, 4), round(b, 4)] for s, a, b in engines.tidy(phones, seconds)]
    about = {"text": " ".join(said), "engine": engine, "voice": voice, "speaker": speaker}
    about.update(size=round(size, 2), speed=round(speed, 3), pitch=round(pitch, 3))
    return x, phones, {**about, "seconds": seconds}


def _nobody(rng):
    """A clip in which nobody speaks, so that the mouth stays closed: as _speech."""
    seconds = round(rng.uniform(2, 5) * FPS) / FPS
    about = {"text": "", "engine": "none", "voice": "none", "speaker": "none", "seconds": seconds}
    return numpy.zeros(round(seconds * RATE)), [["pau", 0.0, seconds]], about


def clip(split, seed, index):
    """Samples float32 and the description of one clip; a function of its arguments alone."""
    rng = random.Random("voice %s %d %d" % (split, seed, index))
    noise = numpy.random.default_rng([texts.SPLITS.index(split), seed, index])
    silent = index % 20 == 19
    x, phones, about = _nobody(rng) if silent else _speech(rng, split)
    loud = [round(float(v), 3) for v in loudness(x, about["seconds"])]
    about.update(split=split, phones=phones, loudness=loud, room=None, noise=None, snr_db=None)

    level = numpy.sqrt((x[numpy.abs(x) > 1e-4] ** 2).mean()) if numpy.abs(x).max() > 1e-3 else 1.0
    x = x / level
    if rng.random() < 0.55:
        response, about["room"] = _room(rng, noise)
        x = _filter(x, response)
    if silent and rng.random() < 0.9 or rng.random() < 0.6:
        snr = rng.uniform(15, 40) if silent else rng.triangular(8, 45, 22)
        about["noise"], added = _noise(rng, noise, split, len(x))
        about["snr_db"] = round(snr, 1)
        if silent and about["noise"] == "babble":  # audible speech would mean an open mouth
            about["noise"], added = "white", noise.standard_normal(len(x))
        x = x + added * 10 ** (-snr / 20)
    if rng.random() < 0.6:
        x = _channel(rng, x)
    x = x * 10 ** (rng.uniform(-30, -17) / 20)
    return (x * min(1.0, 0.97 / (numpy.abs(x).max() + 1e-9))).astype(numpy.float32), about


def write(folder, split, seed, index, form="opus"):
    """Clip index into the folder, unless it is there; the sound first, so that a description always
    has its sound."""
    name = os.path.join(folder, "%s-%d-%05d" % (split, seed, index))
    if os.path.exists(name + ".json"):
        return name
    x, about = clip(split, seed, index)
    temporary = "%s.%d.part" % (name, os.getpid())
    if form == "flac":
        soundfile.write(temporary, x, RATE, format="FLAC", subtype="PCM_16")
    else:
        # libsndfile: bit/s = 6000 + (1 - compression_level) * 250000 for one channel
        soundfile.write(
            temporary,
            x,
            RATE,
            format="OGG",
            subtype="OPUS",
            compression_level=1 - (BITRATE - 6000) / 250000,
        )
    os.replace(temporary, name + "." + form)
    with open(temporary, "w") as f:
        json.dump(about, f, separators=(",", ":"))
    os.replace(temporary, name + ".json")
    return name


def _write(arguments):
    return write(*arguments)


def main():
    parser = argparse.ArgumentParser(description="Make speech clips with phoneme timings.")
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--split", choices=texts.SPLITS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--format", choices=("opus", "flac"), default="opus")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    work = [
        (options.out, options.split, options.seed, i, options.format) for i in range(options.clips)
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for i, _ in enumerate(pool.imap_unordered(_write, work)):
            if (i + 1) % 50 == 0 or i + 1 == len(work):
                print("%d of %d clips" % (i + 1, len(work)), flush=True)


if __name__ == "__main__":
    main()
