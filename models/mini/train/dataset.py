"""DATA as data.py made it, whole in the device's memory, and random pieces of it.

DATA/clips.json: a list of {split, identity, speaker, voice, text, first, frames, position, positions,
row, rows}; `first`, `position` and `row` are where the clip begins in
    crops.npy     u8  [N 128 128 3]  aligned faces, 25 a second
    opening.npy   f32 [N]            distance of the lips / width of the mouth at rest
    features.npy  f16 [P 5 384]      Whisper's, 50 a second
    mfcc.npy      f32 [M 13]         100 a second
"""

import json
import os

import numpy as np
import torch

from . import config, mfcc


class Dataset:
    def __init__(self, folder, device, splits=('train', 'sync', 'test'), sound=True):
        with open(os.path.join(folder, 'clips.json')) as f:
            self.clips = json.load(f)

        def load(name):
            array = np.load(os.path.join(folder, name + '.npy'), mmap_mode='r')
            out = torch.empty(array.shape, dtype=torch.from_numpy(array[:1].copy()).dtype, device=device)
            for first in range(0, len(array), 8192):  # avoids a second copy of everything in host memory
                out[first:first + 8192] = torch.from_numpy(array[first:first + 8192].copy()).to(device)
            return out

        self.device = device
        self.crops, self.opening = load('crops'), load('opening')
        self.features, self.mfcc = (load('features'), load('mfcc')) if sound else (None, None)

        def column(key):
            return torch.tensor([c[key] for c in self.clips], device=device)

        self.first, self.frames = column('first'), column('frames')
        self.position, self.positions = column('position'), column('positions')
        self.row, self.rows = column('row'), column('rows')
        self.split = {s: torch.tensor([i for i, c in enumerate(self.clips) if c['split'] == s],
                                      dtype=torch.long, device=device) for s in splits}

    def frame_numbers(self, *splits):
        """Numbers of all frames of these splits, int64 [n]."""
        parts = [torch.arange(c['first'], c['first'] + c['frames']) for c in self.clips if c['split'] in splits]
        return torch.cat(parts).to(self.device)

    def choose(self, split, n, generator, least=config.FRAMES):
        """n clips of a split, longer ones more often, those shorter than `least` only if there is nothing
        else: int64 [n]."""
        ids = self.split[split]
        room = (self.frames[ids] - least + 1).float().clamp(min=1e-3)
        return ids[torch.multinomial(room, n, replacement=True, generator=generator)]

    def start(self, clips, generator, length=config.FRAMES):
        """A random first frame of a window in each clip, counted from the clip's first: int64 [n]."""
        room = (self.frames[clips] - length + 1).clamp(min=1)
        return (torch.rand(len(clips), device=self.device, generator=generator) * room).long()

    def window(self, clips, starts, length=config.FRAMES):
        """Frame numbers [n length] of windows; past a clip's end its last frame repeats."""
        t = starts[:, None] + torch.arange(length, device=self.device)
        return self.first[clips][:, None] + torch.minimum(t, self.frames[clips][:, None] - 1)

    def tokens(self, clips, starts, length=config.FRAMES):
        """Audio tokens [n length 50 384] float16."""
        t = starts[:, None] + torch.arange(length, device=self.device)
        p = config.POSITIONS * t[..., None] + torch.arange(-4, 6, device=self.device)
        p = torch.minimum(p.clamp(min=0), self.positions[clips][:, None, None] - 1)
        return self.features[self.position[clips][:, None, None] + p].flatten(2, 3)

    def sound(self, clips, starts, windows):
        """MFCC rows [n 4 (windows - 1) + 20 13] of `windows` successive SyncNet windows."""
        count = mfcc.PER_FRAME * (windows - 1) + mfcc.COLUMNS
        r = mfcc.PER_FRAME * starts[:, None] + torch.arange(count, device=self.device)
        r = torch.minimum(r.clamp(min=0), self.rows[clips][:, None] - 1)
        return self.mfcc[self.row[clips][:, None] + r]


def pixels(crops):
    """u8 to [-1, 1]."""
    return crops.float() / 127.5 - 1
