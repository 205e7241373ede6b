"""The small SyncNet: syncnet_v2's layers with fewer channels, and its distances.

Chung & Zisserman, "Out of time: automated lip sync in the wild" (2016). Names in `state_dict()` are
those of syncnet_v2.model, so models/networks/syncnet.lua reads both; SETTINGS says there what this one sees.
"""

import torch
import torch.nn.functional as F
from torch import nn

from . import config, mfcc

FRAMES = 5  # frames per image window
SHIFT = 15  # offsets that the metric tries in each direction

ROWS, COLUMNS = (48, 128), (8, 120)  # of the aligned face: nose to chin
SETTINGS = {
    'crop': 'aligned', 'size': config.SIZE, 'rows': list(ROWS), 'columns': list(COLUMNS),
    'channels': 'rgb', 'scale': 1 / 127.5, 'shift': -1, 'normalize': True,
}


class SyncNet(nn.Module):
    def __init__(self, sound=(16, 32, 64, 64, 64, 128), mouth=(24, 48, 64, 64, 64, 128), hidden=128,
                 embedding=128):
        super().__init__()
        relu = nn.ReLU

        def conv(kind, norm, i, o, kernel, **options):
            return [kind(i, o, kernel, **options), norm(o), relu()]

        def conv2(i, o, kernel, padding=1):
            return conv(nn.Conv2d, nn.BatchNorm2d, i, o, kernel, padding=padding)

        def conv3(i, o, kernel, **options):
            return conv(nn.Conv3d, nn.BatchNorm3d, i, o, kernel, **options)

        a, m = sound, mouth
        self.netcnnaud = nn.Sequential(
            *conv2(1, a[0], 3), nn.MaxPool2d(1, 1),
            *conv2(a[0], a[1], 3), nn.MaxPool2d(3, (1, 2)),
            *conv2(a[1], a[2], 3), *conv2(a[2], a[3], 3), *conv2(a[3], a[4], 3), nn.MaxPool2d(3, 2),
            *conv2(a[4], a[5], (5, 4), padding=0))
        flat = dict(padding=(0, 1, 1))
        left = self.left(ROWS[1] - ROWS[0]), self.left(COLUMNS[1] - COLUMNS[0])
        self.netcnnlip = nn.Sequential(
            *conv3(3, m[0], (5, 7, 7), stride=(1, 2, 2)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *conv3(m[0], m[1], (1, 5, 5), stride=(1, 2, 2), **flat),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
            *conv3(m[1], m[2], (1, 3, 3), **flat), *conv3(m[2], m[3], (1, 3, 3), **flat),
            *conv3(m[3], m[4], (1, 3, 3), **flat), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *conv3(m[4], m[5], (1, *left)))

        def head(i):
            return nn.Sequential(nn.Linear(i, hidden), nn.BatchNorm1d(hidden), relu(),
                                 nn.Linear(hidden, embedding))

        self.netfcaud, self.netfclip = head(a[5]), head(m[5])

    @staticmethod
    def left(n):
        """The side of the feature map before the last convolution."""
        for kernel, stride, padding in ((7, 2, 0), (3, 2, 0), (5, 2, 1), (3, 2, 1), (3, 2, 0)):
            n = (n + 2 * padding - kernel) // stride + 1
        return n

    def sound(self, x):
        """MFCC windows [N 20 13] -> embeddings [N D] of length 1."""
        return F.normalize(self.netfcaud(self.netcnnaud(x.transpose(1, 2)[:, None]).flatten(1)), dim=-1)

    def mouth(self, x):
        """Windows of mouth pictures [N 5 H W 3] in [-1, 1] -> embeddings [N D] of length 1."""
        return F.normalize(self.netfclip(self.netcnnlip(x.permute(0, 4, 1, 2, 3)).flatten(1)), dim=-1)


def lips(pictures):
    """The part of aligned faces [... 128 128 3] that SyncNet takes."""
    return pictures[..., ROWS[0]:ROWS[1], COLUMNS[0]:COLUMNS[1], :]


def mouth_windows(pictures):
    """[B F H W 3] -> [B F-4 5 H W 3]: all windows of five successive frames."""
    return pictures.unfold(1, FRAMES, 1).permute(0, 1, 5, 2, 3, 4)


def sound_windows(rows):
    """[B 4 (n - 1) + 20 13] -> [B n 20 13]."""
    return rows.unfold(1, mfcc.COLUMNS, mfcc.PER_FRAME).transpose(2, 3)


@torch.no_grad()
def judge(mouth, sound):
    """The metric of one clip: embeddings [n D] of pictures and sound -> offset, confidence, distances.

    As in the reference: beyond its ends the sound's embeddings are zeros; offset 15 - argmin.
    """
    n = min(len(mouth), len(sound))
    padded = F.pad(sound[:n], (0, 0, SHIFT, SHIFT))
    shifted = padded.unfold(0, n, 1).permute(0, 2, 1)  # [31 n D]
    distances = (mouth[:n] - shifted + 1e-6).norm(dim=-1).mean(dim=1)
    best = distances.argmin().item()
    return SHIFT - best, (distances.median() - distances[best]).item(), distances
