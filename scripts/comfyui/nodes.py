"""The nodes. Each sends ComfyUI's inputs to a server, which does the work, and returns the result."""

import contextlib
import io
import os

import numpy as np
import torch
from comfy_api.input_impl import VideoFromFile
from PIL import Image, ImageOps

from . import media
from .client import CrescentError
from .connection import Connection, checkpoints
from .shared import check, one_of, previews, readable, save, settings_of, tell, upload_images, upload_sound, upload_video, working

CATEGORY = "Crescent"
PORTRAIT = 256  # side of a portrait in pixels

OPTIONS = ("STRING", {"multiline": True, "default": "", "placeholder": "{\"scheduler\": \"unipc_karras\"}",
                      "tooltip": "JSON of any other setting of the server (GET /v1/settings lists them); it overrides the inputs above"})
CRESCENT = ("CRESCENT", {"tooltip": "output of Crescent Load"})
PREFIX = ("STRING", {"default": "crescent/video", "tooltip": "file name prefix in ComfyUI's output folder"})
FPS = ("FLOAT", {"default": 25.0, "min": 1.0, "max": 240.0, "step": 0.001, "tooltip": "frames per second"})
SAMPLING = {
    "face": ("STRING", {"default": "largest", "tooltip": "whose mouth: largest, left, right, first, a person's number (from Crescent "
                        "Faces), X,Y, speaking, all, reference"}),
    "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "denoising steps; 0: the checkpoint's"}),
    "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
                           "tooltip": "guidance scale; 1: no guidance; 0: the checkpoint's"}),
    "seed": ("INT", {"default": 1247, "min": 0, "max": 2**53 - 1, "tooltip": "seed of the random numbers"}),
    "tail": (["keep", "cut"], {"tooltip": "frames after the end of the sound: keep them unchanged, or cut them"}),
}
VOICES = ("CRESCENT_VOICES", {"tooltip": "voices of more people, from Crescent Voice"})


def lipsync(work, folder, video, audio, voices, face, options, **given):
    """Creates the job of both lip-sync nodes; audio is a file's id."""
    request = {"kind": "lipsync", "video": video}
    if voices:
        others = [{"face": whose, "audio": upload_sound(work, folder, sound)} for whose, sound in voices]
        request["voices"], face = [{"face": face, "audio": audio}, *others], None
    else:
        request["audio"] = audio
    request["settings"] = settings_of(options, face=face, steps=given.pop("steps") or None,
                                      guidance=given.pop("guidance") or None, **given)
    return work.run("/v1/jobs", request)


# ---- nodes -----------------------------------------------------------------------------------------

class Load:
    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("CRESCENT",), ("crescent",)
    DESCRIPTION = "Connects to a running `crescent serve`, or starts one that ends with ComfyUI."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "url": ("STRING", {"default": "", "tooltip": "address of a running `crescent serve`, as in http://127.0.0.1:7860; empty: the "
                               "variable CRESCENT_URL is used; if it is not set, a server is started for the checkpoint"}),
            "token": ("STRING", {"default": "", "tooltip": "token of that server. It is saved with the workflow and in each image, so better "
                                 "leave url and token empty, and set CRESCENT_URL and CRESCENT_TOKEN"}),
            "checkpoint": (list(checkpoints()) or ["none"], {"tooltip": "for a server that is started here: a folder of "
                                                             "models/latentsync"}),
            "device": ("STRING", {"default": "auto", "tooltip": "for a server that is started here: auto, cpu, cuda or cuda:N"}),
        }, "hidden": {"node": "UNIQUE_ID"}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        return True  # a checkpoint of another machine matters only if a server is started

    def load(self, url, token, checkpoint, device, node=None):
        connection = Connection(url.strip(), token.strip(), checkpoint, device.strip())
        tell(node, "starting crescent serve" if connection.starts else f"asking {connection.url}")
        client = connection.client(check)
        system = client.call("GET", "/v1/system")
        if not isinstance(system, dict) or "version" not in system:
            raise CrescentError(f"{client.url} is not a `crescent serve`")
        tell(node, f"crescent {system['version']}, {(system.get('checkpoint') or {}).get('name')}")
        return (connection,)


class Voice:
    CATEGORY, FUNCTION = CATEGORY, "add"
    RETURN_TYPES, RETURN_NAMES = ("CRESCENT_VOICES",), ("voices",)
    DESCRIPTION = "The voice of another person, for the input `voices` of Crescent LipSync, or of another Crescent Voice."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"audio": ("AUDIO",), "face": ("STRING", {"default": "2", "tooltip": "who speaks it, as in Crescent LipSync"})},
                "optional": {"voices": VOICES}}

    def add(self, audio, face, voices=()):
        return ([*voices, (face.strip(), audio)],)


class LipSync:
    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "AUDIO", "FLOAT"), ("images", "audio", "fps")
    DESCRIPTION = "Lip-syncs the face in the images to the sound. The frame rate stays the same; a single image becomes a video with 25 frames per second."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "images": ("IMAGE",), "audio": ("AUDIO",), "fps": FPS, **SAMPLING},
                "optional": {"voices": VOICES, "options": OPTIONS}, "hidden": {"node": "UNIQUE_ID"}}

    def run(self, crescent, images, audio, fps, face, voices=(), options="", node=None, **given):
        settings_of(options)
        own = "source" if len(images) > 1 else "25"  # a single image has no frame rate
        with working(crescent, node) as (work, folder):
            lipsync(work, folder, upload_images(work, folder, images, fps), upload_sound(work, folder, audio), voices, face.strip(),
                    options, fps=own, lossless=True, **given)
            path = os.path.join(folder, "result")
            work.result(path)
            made, rate = media.read_frames(path, check)
            sound = media.same_sound(media.read_sound(path), audio)
            return made, media.fit(sound, round(len(made) / rate * sound["sample_rate"])), rate


class LipSyncVideo:
    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "run", True
    RETURN_TYPES, RETURN_NAMES = ("VIDEO", "STRING"), ("video", "path")
    DESCRIPTION = "Lip-syncs the face in a video to a sound. The files are sent to the server and back unchanged, without decoding here."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "crescent": CRESCENT, **SAMPLING,
            "fps": (["source", "25"], {"tooltip": "frames per second of the result: the video's own, or the model's"}),
            "filename_prefix": PREFIX,
        }, "optional": {
            "video": ("VIDEO",), "audio": ("AUDIO",),
            "video_path": ("STRING", {"default": "", "tooltip": "instead of video: a file in ComfyUI's input folder"}),
            "audio_path": ("STRING", {"default": "", "tooltip": "instead of audio: a sound, or a video with sound, in the input folder"}),
            "voices": VOICES, "options": OPTIONS,
        }, "hidden": {"node": "UNIQUE_ID"}}

    @classmethod
    def IS_CHANGED(cls, video_path="", audio_path="", **_):
        def changed(path):
            with contextlib.suppress(CrescentError, OSError):
                return path and os.path.getmtime(readable(path))
        return f"{changed(video_path)} {changed(audio_path)}"

    def run(self, crescent, filename_prefix, face, video=None, audio=None, video_path="", audio_path="", voices=(), options="",
            node=None, **given):
        one_of(video=video, video_path=video_path)
        one_of(audio=audio, audio_path=audio_path)
        settings_of(options)
        video_path = readable(video_path) if video is None else None
        audio_path = readable(audio_path) if audio is None else None
        with working(crescent, node) as (work, folder):
            sent = work.upload(video_path) if video_path else upload_video(work, folder, video)
            heard = work.upload(audio_path) if audio_path else upload_sound(work, folder, audio)
            path, shown = save(work, lipsync(work, folder, sent, heard, voices, face.strip(), options, **given), filename_prefix)
        return {"ui": shown, "result": (VideoFromFile(path), path)}


class Faces:
    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "run", True
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING", "INT", "STRING"), ("pictures", "face", "count", "about")
    DESCRIPTION = "Finds the people in a video: a portrait of each, ordered by number; `face` is the number of the chosen person, for " \
        "Crescent LipSync."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "number": ("INT", {"default": 1, "min": 1, "max": 9999, "tooltip": "number of the person to choose"})},
                "optional": {"images": ("IMAGE",), "fps": FPS, "video": ("VIDEO",),
                             "audio": ("AUDIO", {"tooltip": "if given, each person's lips are compared with it"})},
                "hidden": {"node": "UNIQUE_ID"}}

    def run(self, crescent, number, images=None, fps=25.0, video=None, audio=None, node=None):
        one_of(images=images, video=video)
        with working(crescent, node) as (work, folder):
            sent = upload_images(work, folder, images, fps) if video is None else upload_video(work, folder, video)
            request = {} if audio is None else {"audio": upload_sound(work, folder, audio)}
            people = work.run(f"/v1/files/{sent}/faces", request).get("people") or []
            pictures = [Image.open(io.BytesIO(work.picture(person["number"]))).convert("RGB") for person in people]
        if not people:
            raise CrescentError("no face was found in any of the frames")
        if not any(person["number"] == number for person in people):
            there = ", ".join(str(person["number"]) for person in people)
            raise CrescentError(f"number: there is no person {number} in the video, but {there}")
        squares = [ImageOps.pad(picture, (PORTRAIT, PORTRAIT)) for picture in pictures]
        batch = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).float() / 255
        lines = []
        for person in people:
            score = f", lip-sync confidence {person['score']:.2f}" if person.get("score") is not None else ""
            lines.append(f"{person['number']}: {person['first']:.2f} to {person['last']:.2f} s, in {100 * person['share']:.0f} % of the "
                         f"frames{score}")
        tell(node, "\n".join(lines))
        return {"ui": previews(squares), "result": (batch, str(number), len(people), "\n".join(lines))}


ENLARGING = {
    "model": (["x4plus", "x4plus-anime", "animevideov3"], {"tooltip": "x4plus keeps photographs realistic; the others are for drawings and "
                                                           "3 and 29 times cheaper"}),
    "scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 16.0, "step": 0.5, "tooltip": "scale factor; 0: the network's"}),
}


class Upscale:
    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    DESCRIPTION = "Upscales images with Real-ESRGAN's networks."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "images": ("IMAGE",), **ENLARGING}, "optional": {"options": OPTIONS},
                "hidden": {"node": "UNIQUE_ID"}}

    def run(self, crescent, images, model, scale, options="", node=None):
        settings = settings_of(options, model=model, scale=scale or None, lossless=True)
        with working(crescent, node) as (work, folder):
            work.run("/v1/jobs", {"kind": "upscale", "video": upload_images(work, folder, images, 25), "settings": settings})
            path = os.path.join(folder, "result")
            work.result(path)
            return (media.read_frames(path, check)[0],)


class UpscaleVideo:
    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "run", True
    RETURN_TYPES, RETURN_NAMES = ("VIDEO", "STRING"), ("video", "path")
    DESCRIPTION = "Upscales a video with Real-ESRGAN's networks. The files are sent to the server and back without decoding here."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "video": ("VIDEO",), **ENLARGING, "filename_prefix": PREFIX},
                "optional": {"options": OPTIONS}, "hidden": {"node": "UNIQUE_ID"}}

    def run(self, crescent, video, model, scale, filename_prefix, options="", node=None):
        settings = settings_of(options, model=model, scale=scale or None)
        with working(crescent, node) as (work, folder):
            job = work.run("/v1/jobs", {"kind": "upscale", "video": upload_video(work, folder, video), "settings": settings})
            path, shown = save(work, job, filename_prefix)
        return {"ui": shown, "result": (VideoFromFile(path), path)}


NODES = {
    "CrescentLoad": (Load, "Crescent Load"),
    "CrescentVoice": (Voice, "Crescent Voice"),
    "CrescentLipSync": (LipSync, "Crescent LipSync"),
    "CrescentLipSyncVideo": (LipSyncVideo, "Crescent LipSync Video"),
    "CrescentFaces": (Faces, "Crescent Faces"),
    "CrescentUpscale": (Upscale, "Crescent Upscale"),
    "CrescentUpscaleVideo": (UpscaleVideo, "Crescent Upscale Video"),
}
