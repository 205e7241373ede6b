"""Whisper's audio encoder as LatentSync uses it, and the tokens of each video frame.

The same numbers as models/latentsync/audio.lua and models/networks/whisper.lua. Radford et al., "Robust Speech
Recognition via Large-Scale Weak Supervision" (2022).
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

RATE, FFT, HOP, MELS = 16000, 400, 160, 80


def mel_filters():
    """Triangles of equal area on Slaney's mel scale: float64 [FFT / 2 + 1, MELS]."""
    def hz(m):
        return np.where(m < 15, m * 200 / 3, 1000 * np.exp((m - 15) * np.log(6.4) / 27))
    top = 15 + np.log(RATE / 2 / 1000) * 27 / np.log(6.4)
    edges = hz(np.linspace(0, top, MELS + 2))
    f = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
    rise = (f - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - f) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])


def log_mel(samples):
    """Normalised spectrogram of a whole clip: samples float [n] in [-1, 1] -> float32 [n // 160, 80]."""
    x = torch.as_tensor(samples, dtype=torch.float64)
    window = torch.hann_window(FFT, dtype=torch.float64, device=x.device)
    power = torch.stft(x, FFT, HOP, window=window, return_complex=True).abs().square()[:, :-1]
    filters = torch.from_numpy(mel_filters()).to(x.device)
    logs = (power.T @ filters).clamp(min=1e-10).log10()
    return ((torch.maximum(logs, logs.max() - 8) + 4) / 4).float()


class Encoder:
    """The encoder's weights and one function; nothing here is trained."""

    def __init__(self, path, device='cpu'):
        weights = load_file(path)
        with open(path.rsplit('.', 1)[0] + '.json') as f:
            dims = json.load(f)
        dims = dims.get('dims', dims)
        self.layers, self.heads = dims['n_audio_layer'], dims['n_audio_head']
        self.positions = dims['n_audio_ctx']
        self.w = {k[len('encoder.'):]: v.float().to(device) for k, v in weights.items()
                  if k.startswith('encoder.')}
        self.device = device

    def linear(self, name, x):
        return F.linear(x, self.w[name + '.weight'], self.w.get(name + '.bias'))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.w[name + '.weight'], self.w[name + '.bias'])

    @torch.no_grad()
    def __call__(self, mel):
        """mel float [N 3000 80], normalised and padded with 0 -> [N 1500 layers+1 D]."""
        w = self.w
        x = F.gelu(F.conv1d(mel.transpose(1, 2), w['conv1.weight'], w['conv1.bias'], padding=1))
        x = F.gelu(F.conv1d(x, w['conv2.weight'], w['conv2.bias'], stride=2, padding=1))
        x = x.transpose(1, 2) + w['positional_embedding']
        stack = [x]
        for i in range(self.layers):
            b = f'blocks.{i}.'
            h = self.norm(b + 'attn_ln', x)
            q, k, v = (self.linear(b + 'attn.' + n, h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                       for n in ('query', 'key', 'value'))
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.linear(b + 'attn.out', a)
            h = F.gelu(self.linear(b + 'mlp.0', self.norm(b + 'mlp_ln', x)))
            x = x + self.linear(b + 'mlp.2', h)
            stack.append(x)
        return torch.stack(stack, dim=2)

    def features(self, clips, batch=16):
        """Clips of at most 30 s, a list of float [n] -> a list of float16 [positions layers+1 D]."""
        out = []
        for first in range(0, len(clips), batch):
            mels = [log_mel(torch.as_tensor(c, device=self.device)) for c in clips[first:first + batch]]
            padded = torch.zeros(len(mels), 2 * self.positions, MELS, device=self.device)
            for row, mel in zip(padded, mels):
                if len(mel) > len(row):
                    raise ValueError(f'a clip of {len(mel) / 100:.1f} s is longer than 30 s')
                row[:len(mel)] = mel
            encoded = self(padded)
            out += [e[:len(m) // 2].half().cpu() for e, m in zip(encoded, mels)]
        return out


def frame_positions(frames, positions):
    """The positions of a frame's tokens: int64 [len(frames) 10], clamped to the clip."""
    around = torch.arange(-4, 6)
    return (2 * torch.as_tensor(frames)[:, None] + around).clamp(0, positions - 1)
