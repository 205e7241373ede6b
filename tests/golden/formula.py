"""Inputs from the project's formula (tests/support/formula.lua), for the Python programs that create golden values."""

import numpy
import torch

MASK = (1 << 64) - 1


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def formula(name, shape):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    h ^= splitmix64(1)
    values = [(splitmix64((h + i) & MASK) >> 40) * 2.0**-24 * 2 - 1 for i in range(int(numpy.prod(shape)))]
    scaled = numpy.float32(numpy.array(values) * numpy.sqrt(3))
    return torch.from_numpy(scaled.astype(numpy.float64)).reshape(shape)
