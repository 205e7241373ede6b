"""The nodes. Each takes what ComfyUI hands it, lets a server do the work, and hands back what came of it."""

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
PORTRAIT = 256  # pixels of the side of a picture of a person

OPTIONS = ("STRING", {"multiline": True, "default": "", "placeholder": "{\"scheduler\": \"unipc_karras\"}",
                      "tooltip": "JSON of any other setting of the server (GET /v1/settings tells them); it goes before the inputs above"})
CRESCENT = ("CRESCENT", {"tooltip": "from Crescent Load"})
PREFIX = ("STRING", {"default": "crescent/video", "tooltip": "name of the file in ComfyUI's output folder"})
FPS = ("FLOAT", {"default": 25.0, "min": 1.0, "max": 240.0, "step": 0.001, "tooltip": "how many of the images are shown in a second"})
SAMPLING = {
    "face": ("STRING", {"default": "largest", "tooltip": "whose mouth: largest, left, right, first, a person's number (from Crescent "
                        "Faces), X,Y, speaking, all, reference"}),
    "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "denoising steps; 0: the checkpoint's"}),
    "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
                           "tooltip": "weight of the sound; 1: no guidance; 0: the checkpoint's"}),
    "seed": ("INT", {"default": 1247, "min": 0, "max": 2**53 - 1, "tooltip": "where the random numbers begin"}),
    "tail": (["keep", "cut"], {"tooltip": "frames after the sound has ended: pass them on as they are, or leave them out"}),
}
VOICES = ("CRESCENT_VOICES", {"tooltip": "voices of further people, from Crescent Voice"})


def lipsync(work, folder, video, audio, voices, face, options, **given):
    """Asks for the job of both lip-sync nodes; audio is a file's id."""
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
    DESCRIPTION = "Connects with a running `crescent serve`, or starts one that ends with ComfyUI."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "url": ("STRING", {"default": "", "tooltip": "of a running `crescent serve`, as in http://127.0.0.1:7860; empty: that of the "
                               "variable CRESCENT_URL, and without one a server is started for the checkpoint"}),
            "token": ("STRING", {"default": "", "tooltip": "of that server. It is saved with the workflow, in each picture too: better "
                                 "leave url and token empty, and set CRESCENT_URL and CRESCENT_TOKEN"}),
            "checkpoint": (list(checkpoints()) or ["none"], {"tooltip": "of a server that is started here: a folder of "
                                                             "models/latentsync"}),
            "device": ("STRING", {"default": "auto", "tooltip": "of a server that is started here: auto, cpu, cuda or cuda:N"}),
        }, "hidden": {"node": "UNIQUE_ID"}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint):
        return True  # one of another machine matters only where a server is started

    def load(self, url, token, checkpoint, device, node=None):
        connection = Connection(url.strip(), token.strip(), checkpoint, device.strip())
        tell(node, "starting crescent serve" if connection.starts else f"asking {connection.url}")
        client = connection.client(check)
        system = client.call("GET", "/v1/system")
        if not isinstance(system, dict) or "version" not in system:
            raise CrescentError(f"{client.url} is no `crescent serve`")
        tell(node, f"crescent {system['version']}, {(system.get('checkpoint') or {}).get('name')}")
        return (connection,)


class Voice:
    CATEGORY, FUNCTION = CATEGORY, "add"
    RETURN_TYPES, RETURN_NAMES = ("CRESCENT_VOICES",), ("voices",)
    DESCRIPTION = "A voice of a further person, for the input `voices` of Crescent LipSync, or of another Crescent Voice."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"audio": ("AUDIO",), "face": ("STRING", {"default": "2", "tooltip": "who says it, as in Crescent LipSync"})},
                "optional": {"voices": VOICES}}

    def add(self, audio, face, voices=()):
        return ([*voices, (face.strip(), audio)],)


class LipSync:
    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "AUDIO", "FLOAT"), ("images", "audio", "fps")
    DESCRIPTION = "Makes the face in the images say what the sound says. The images keep their number a second; a single one becomes 25."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "images": ("IMAGE",), "audio": ("AUDIO",), "fps": FPS, **SAMPLING},
                "optional": {"voices": VOICES, "options": OPTIONS}, "hidden": {"node": "UNIQUE_ID"}}

    def run(self, crescent, images, audio, fps, face, voices=(), options="", node=None, **given):
        settings_of(options)
        own = "source" if len(images) > 1 else "25"  # a single image has no rate
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
    DESCRIPTION = "Makes the face of a video say what a sound says. The files go to the server and back as they are, frame by frame."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {
            "crescent": CRESCENT, **SAMPLING,
            "fps": (["source", "25"], {"tooltip": "frames a second of the result: the video's own, or the model's"}),
            "filename_prefix": PREFIX,
        }, "optional": {
            "video": ("VIDEO",), "audio": ("AUDIO",),
            "video_path": ("STRING", {"default": "", "tooltip": "in place of video: a file of ComfyUI's input folder"}),
            "audio_path": ("STRING", {"default": "", "tooltip": "in place of audio: a sound, or a video with sound, of the input folder"}),
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
    DESCRIPTION = "Finds the people of a video: a picture of each, in the order of their numbers; `face` is the chosen one's number, for " \
        "Crescent LipSync."

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"crescent": CRESCENT, "number": ("INT", {"default": 1, "min": 1, "max": 9999, "tooltip": "of whom to choose"})},
                "optional": {"images": ("IMAGE",), "fps": FPS, "video": ("VIDEO",),
                             "audio": ("AUDIO", {"tooltip": "tells, too, how well each one's lips agree with it"})},
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
            score = f", lips and sound agree by {person['score']:.2f}" if person.get("score") is not None else ""
            lines.append(f"{person['number']}: {person['first']:.2f} to {person['last']:.2f} s, in {100 * person['share']:.0f} % of the "
                         f"frames{score}")
        tell(node, "\n".join(lines))
        return {"ui": previews(squares), "result": (batch, str(number), len(people), "\n".join(lines))}


ENLARGING = {
    "model": (["x4plus", "x4plus-anime", "animevideov3"], {"tooltip": "x4plus keeps a photograph a photograph; the others draw, and are "
                                                           "3 and 29 times cheaper"}),
    "scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 16.0, "step": 0.5, "tooltip": "how many times larger; 0: the network's"}),
}


class Upscale:
    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    DESCRIPTION = "Enlarges images by Real-ESRGAN's networks."

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
    DESCRIPTION = "Enlarges a video by Real-ESRGAN's networks. The file goes to the server and back as it is, frame by frame."

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
