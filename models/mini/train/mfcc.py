"""The 13 mel-frequency cepstral coefficients that SyncNet takes, as python_speech_features computes them
with its defaults (golden values: mfcc.demo1)."""

import numpy as np

RATE, LENGTH, STEP, FFT, FILTERS, KEPT = 16000, 400, 160, 512, 26, 13
COLUMNS = 20  # MFCC frames per window: 0.2 s, five video frames
PER_FRAME = 4  # MFCC frames per video frame


def _filters():
    def mel(f):
        return 2595 * np.log10(1 + f / 700)
    edges = 700 * (10 ** (np.linspace(mel(0), mel(RATE / 2), FILTERS + 2) / 2595) - 1)
    bins = np.floor((FFT + 1) * edges / RATE)
    k = np.arange(FFT // 2 + 1)[:, None]
    low, mid, high = bins[:-2], bins[1:-1], bins[2:]
    rise = (k >= low) & (k < mid)
    fall = (k >= mid) & (k < high)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(rise, (k - low) / (mid - low), np.where(fall, (high - k) / (high - mid), 0.0))


def _cosines():
    n, k = np.arange(FILTERS)[:, None], np.arange(KEPT)
    table = np.cos(np.pi * k * (2 * n + 1) / (2 * FILTERS)) * np.sqrt(2 / FILTERS)
    table[:, 0] /= np.sqrt(2)
    return table * (1 + 11 * np.sin(np.pi * k / 22))  # the lifter


def mfcc(samples):
    """16-bit samples as numbers [n] -> float32 [frames 13], 100 frames a second."""
    x = np.asarray(samples, dtype=np.float64)
    x = np.append(x[0], x[1:] - 0.97 * x[:-1])
    frames = 1 if len(x) <= LENGTH else 1 + int(np.ceil((len(x) - LENGTH) / STEP))
    x = np.concatenate([x, np.zeros((frames - 1) * STEP + LENGTH - len(x))])
    index = np.arange(frames)[:, None] * STEP + np.arange(LENGTH)
    power = np.abs(np.fft.rfft(x[index], FFT)) ** 2 / FFT
    energy = power.sum(1)
    bands = power @ _filters()
    tiny = np.finfo(float).eps
    cepstra = np.log(np.where(bands == 0, tiny, bands)) @ _cosines()
    cepstra[:, 0] = np.log(np.where(energy == 0, tiny, energy))
    return cepstra.astype(np.float32)
