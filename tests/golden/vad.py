"""Makes vad.json: what Silero's voice activity network and its rules give, for tests/vad_test.lua.

Needs numpy and onnxruntime from PyPI and ffmpeg; the two files are out of the package silero-vad 6.2.3:

    python tests/golden/vad.py silero_vad_16k_op15.onnx utils_vad.py > tests/golden/vad.json

Sounds: the small model's own demo.flac, noise by the project's formula (tests/support/formula.lua), zeros. Rules: tracks of
probabilities drawn here, with options, and the segments that the package's function makes of them.
"""

import json
import random
import re
import subprocess
import sys
from typing import List

import numpy
import onnxruntime

MASK = (1 << 64) - 1
CHUNK, CONTEXT = 512, 64


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def formula(name, n):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    h ^= splitmix64(1)
    return numpy.array([(splitmix64((h + i) & MASK) >> 40) * 2.0**-23 - 1 for i in range(n)])


def probabilities(session, sound):
    sound = numpy.float32(sound)
    names = [i.name for i in session.get_inputs()]
    state, context, out = numpy.zeros((2, 1, 128), numpy.float32), numpy.zeros(CONTEXT, numpy.float32), []
    for at in range(0, len(sound), CHUNK):
        chunk = numpy.zeros(CHUNK, numpy.float32)
        chunk[: len(sound[at : at + CHUNK])] = sound[at : at + CHUNK]
        given = {"input": numpy.concatenate([context, chunk])[None], "state": state, "sr": numpy.array(16000, numpy.int64)}
        p, state = session.run(None, {name: given[name] for name in names})
        context = chunk[-CONTEXT:]
        out.append(round(float(p.reshape(-1)[0]), 7))
    return {"samples": len(sound), "probabilities": out}


def rules(path):
    source = open(path).read()
    scope = {"List": List}
    exec(re.search(r"(def get_speech_timestamps_from_probs.*?\n)class VADIterator", source, re.S).group(1), scope)
    random.seed(20)
    cases = []
    while len(cases) < 60:
        track, value, step = [], random.random(), random.choice([0.2, 0.5, 0.9])
        for _ in range(random.randint(1, 120)):
            value = min(1, max(0, value + random.uniform(-step, step)))
            track.append(round(value, 2))
        options = {}
        for name, values in {
            "threshold": [0.1, 0.3, 0.8],
            "neg_threshold": [0.05, 0.2, 0.6],
            "min_speech_duration_ms": [0, 32, 64, 1000],
            "min_silence_duration_ms": [0, 32, 64, 500],
            "speech_pad_ms": [0, 7, 100, 400],
            "max_speech_duration_s": [0.3, 0.5, 1],
            "min_silence_at_max_speech": [0, 32, 200],
            "use_max_poss_sil_at_max_speech": [False],
        }.items():
            if random.random() < 0.35:
                options[name] = random.choice(values)
        samples = len(track) * CHUNK - random.randint(0, CHUNK - 1)
        found = scope["get_speech_timestamps_from_probs"](track, audio_length_samples=samples, **options)
        cases.append({"options": options, "samples": samples, "probabilities": track,
                      "segments": [[s["start"], s["end"]] for s in found]})
    return cases


def main():
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", "models/mini/demo.flac", "-f", "s16le", "-"],
                         stdout=subprocess.PIPE, check=True).stdout
    demo = numpy.frombuffer(raw, numpy.int16).astype(numpy.float64) / 32768
    sounds = {
        "demo": probabilities(session, demo),
        "noise": probabilities(session, 0.3 * formula("vad.public.noise", 20000)),
        "silence": probabilities(session, numpy.zeros(16100)),
    }
    lines = [f'"{name}": {json.dumps(value)}' for name, value in sounds.items()]
    cases = ",\n".join(json.dumps(case) for case in rules(sys.argv[2]))
    sys.stdout.write("{" + ",\n".join(lines) + ',\n"rules": [\n' + cases + "\n]}\n")


main()
