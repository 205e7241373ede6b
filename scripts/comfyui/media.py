"""ComfyUI's tensors as files for the server, and back, by PyAV.

IMAGE: float [frames height width 3] in [0, 1]; AUDIO: {"waveform": float [1 channels samples], "sample_rate"}.
Invariants: frames go as FFV1 in RGB and sound as float32, so that what is read back is what was written, to 8 bits a value
(all that ComfyUI itself writes) and to the sample; one frame at a time is held beside the tensors.
"""

from fractions import Fraction

import av
import numpy as np
import torch

try:
    from .client import CrescentError
except ImportError:  # alone, in a test
    from client import CrescentError

LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def rate_of(fps):
    """The frame rate as a fraction: 29.97 and similar rates become multiples of 1000/1001."""
    for whole in (24, 30, 48, 60, 120):
        if abs(fps - whole * 1000 / 1001) < 0.005:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(1000)


def write_frames(path, images, fps, check):
    """Writes an IMAGE as an AVI file, whose times are exact at any rate."""
    rate = rate_of(fps)
    with av.open(path, "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "bgr0"
        for number, image in enumerate(images):
            check()
            values = (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            if values.shape[2] == 1:
                values = values.repeat(3, axis=2)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_frames(path, check):
    """Returns a file's frames as an IMAGE, and the frame rate."""
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            check()
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
        rate = stream.average_rate
    images = torch.empty((len(frames), *frames[0].shape))
    for number, frame in enumerate(frames):
        torch.div(frame, 255, out=images[number])
        frames[number] = None
    return images, float(rate)


def write_sound(path, audio):
    """Writes an AUDIO as a WAV file."""
    if audio is None:  # from a video without sound
        raise CrescentError("audio: the input has no sound")
    waveform = audio["waveform"]
    if waveform.shape[0] != 1:
        raise CrescentError(f"audio: the input is a batch of {waveform.shape[0]} sounds: give one")
    channels, samples = waveform.shape[1:]
    if channels not in LAYOUTS or samples == 0:
        raise CrescentError(f"audio: the input has {channels} channels and {samples} samples: give 1 to 8 channels and at least one sample")
    with av.open(path, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=int(audio["sample_rate"]), layout=LAYOUTS[channels])
        values = waveform[0].float().cpu().T.contiguous().numpy()
        for first in range(0, samples, 1 << 16):
            piece = values[first:first + (1 << 16)]
            frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1), format="flt", layout=LAYOUTS[channels])
            frame.sample_rate, frame.pts = int(audio["sample_rate"]), first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_sound(path):
    """Returns a file's sound as an AUDIO."""
    pieces = []
    with av.open(path) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt")  # packed, because PyAV cannot return 8 planes
        for frame in container.decode(stream):
            pieces.extend(part.to_ndarray() for part in resampler.resample(frame))
        pieces.extend(part.to_ndarray() for part in resampler.resample(None))
        rate, channels = stream.rate, stream.channels
    values = np.concatenate(pieces, axis=1).reshape(-1, channels).T
    return {"waveform": torch.from_numpy(np.ascontiguousarray(values))[None], "sample_rate": rate}


def fit(audio, samples):
    """An AUDIO with this number of samples: truncated or padded with silence."""
    waveform = audio["waveform"]
    more = max(0, samples - waveform.shape[2])
    return {**audio, "waveform": torch.nn.functional.pad(waveform, (0, more))[:, :, :samples]}


def same_sound(heard, given):
    """A result's sound. FLAC keeps 16 bits of it: where they are those of the sound that was given, its own samples go on."""
    wave, own = heard["waveform"], fit(given, heard["waveform"].shape[2])["waveform"].float().cpu()
    if given["sample_rate"] != heard["sample_rate"] or own.shape != wave.shape:
        return heard
    step = 1 / 32768
    return {**heard, "waveform": own} if (own.clamp(-1, 1 - step) - wave).abs().max() <= step else heard
