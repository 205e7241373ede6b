"""Nodes for the test: they provide frames and a sound from a file, and report the results."""

import os
from fractions import Fraction

import av
import folder_paths
import numpy as np
import torch
from comfy_api.input_impl import VideoFromFile


class Given:
    """The first frames of a video, side by side for several people, and a sound of float samples that no 16 bits hold."""
    CATEGORY, FUNCTION = "test", "run"
    RETURN_TYPES = ("IMAGE", "AUDIO")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"video": ("STRING",), "sound": ("STRING",), "frames": ("INT",), "samples": ("INT",), "channels": ("INT",),
                             "people": ("INT",)}}

    def run(self, video, sound, frames, samples, channels, people):
        with av.open(video) as file:
            decoded = file.decode(video=0)
            images = [np.concatenate([next(decoded).to_ndarray(format="rgb24")] * people, axis=1) for _ in range(frames)]
        with av.open(sound) as file:
            rate = file.streams.audio[0].rate
            heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
        wave = torch.from_numpy(heard[:samples].astype(np.float32) / 32768 * 0.77)
        audio = {"waveform": wave.repeat(1, channels, 1) * torch.linspace(1, 0.5, channels)[None, :, None], "sample_rate": rate}
        return torch.from_numpy(np.stack(images)).float() / 255, audio


class Film:
    """A VIDEO that is a file without loss."""
    CATEGORY, FUNCTION = "test", "run"
    RETURN_TYPES = ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "fps": ("FLOAT",)}}

    def run(self, images, fps):
        path = os.path.join(folder_paths.get_input_directory(), "film.mkv")
        with av.open(path, "w") as file:
            stream = file.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "bgr0"
            for image in images:
                values = (image * 255).round().to(torch.uint8).numpy()
                file.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
            file.mux(stream.encode(None))
        return (VideoFromFile(path),)


class Look:
    """Says what images and a sound are, and how they differ from others."""
    CATEGORY, FUNCTION, OUTPUT_NODE = "test", "run", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"images": ("IMAGE",), "audio": ("AUDIO",), "fps": ("FLOAT", {"forceInput": True}),
                                             "text": ("STRING", {"forceInput": True}), "count": ("INT", {"forceInput": True}),
                                             "video": ("VIDEO",), "other_images": ("IMAGE",), "other_audio": ("AUDIO",)}}

    def run(self, images=None, audio=None, fps=None, text=None, count=None, video=None, other_images=None, other_audio=None):
        seen = {"fps": fps, "text": text, "count": count}
        if video is not None:
            parts = video.get_components()
            images, audio, seen["fps"] = parts.images, parts.audio, float(parts.frame_rate)
        if images is not None:
            seen.update(frames=images.shape[0], height=images.shape[1], width=images.shape[2], channels=images.shape[3],
                        low=images.min().item(), high=images.max().item(), spread=images.std().item())
        if other_images is not None:
            n = min(len(images), len(other_images))
            changed = (images[:n] != other_images[:n]).any(-1).float()
            half = changed.shape[2] // 2
            seen.update(changed=changed.mean((1, 2)).tolist(), left=changed[:, :, :half].mean().item(),
                        right=changed[:, :, half:].mean().item())
        if audio is not None:
            seen.update(rate=audio["sample_rate"], samples=audio["waveform"].shape[2], sound_channels=audio["waveform"].shape[1])
        if other_audio is not None:
            a, b = audio["waveform"], other_audio["waveform"]
            n = min(a.shape[2], b.shape[2])
            seen["sound_differs"] = (a[:, :, :n] - b[:, :, :n]).abs().max().item()
            seen["sound_after"] = a[:, :, n:].abs().max().item() if a.shape[2] > n else 0
        return {"ui": {"seen": [seen]}}


NODE_CLASS_MAPPINGS = {"TestGiven": Given, "TestFilm": Film, "TestLook": Look}
