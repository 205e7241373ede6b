"""What the nodes share: how they watch a job, send what they were given, and keep what came back.

Invariants: what was sent is gone from the server, and what lay in ComfyUI's temporary folder from there, however a node ends; a
path of a workflow leads into ComfyUI's own folders or those that the environment names.
"""

import contextlib
import io
import json
import os
import tempfile

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.input_impl import VideoFromFile
from PIL import Image
from server import PromptServer

from . import media
from .client import CrescentError, Work

ENDINGS = {"video/mp4": "mp4", "video/x-matroska": "mkv", "video/webm": "webm", "video/quicktime": "mov", "video/x-msvideo": "avi"}


# ---- a job on the screen ---------------------------------------------------------------------------

def check():
    """Raises an exception if the user has interrupted ComfyUI."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def tell(node, text):
    """Shows a text on a node."""
    PromptServer.instance.send_progress_text(text, node)


def about(progress):
    """A description of a job's progress."""
    parts = [progress.get("stage") or "waiting"]
    if progress.get("windows"):
        parts.append(f"window {progress.get('window', 1)} of {progress['windows']}")
    if progress.get("total"):
        parts.append(f"{progress.get('frames', 0)} of {progress['total']} frames")
    if progress.get("seconds_left"):
        parts.append(f"{progress['seconds_left']:.0f} s left")
    return ", ".join(parts)


def progress_of(progress):
    """The share of a job that is done, 0 to 1: by the steps of its windows, else by its frames."""
    if progress.get("windows"):
        step = progress.get("step", 0) / (progress.get("steps") or 1)
        return min(1.0, (max(progress.get("window", 1), 1) - 1 + step) / progress["windows"])
    return min(1.0, progress.get("frames", 0) / progress["total"]) if progress.get("total") else 0.0


def display(node):
    """Shows jobs on a node: ComfyUI's progress bar, its preview, and a line of text."""
    bar, told = comfy.utils.ProgressBar(1000), [None]

    def show(job, preview):
        picture = None
        if preview:
            with contextlib.suppress(OSError):
                picture = ("JPEG", Image.open(io.BytesIO(preview)).convert("RGB"), 512)
        progress, position = job.get("progress", {}), job.get("position")
        text = about(progress)
        if job["state"] == "queued" and position:
            text = f"number {position} in the queue"
        elif job["state"] == "done":
            text = f"done, {progress.get('frames', 0)} frames"
        if text != told[0]:
            told[0] = text
            tell(node, text)
        bar.update_absolute(round(1000 * progress_of(progress)), 1000, picture)
    return show


@contextlib.contextmanager
def working(crescent, node):
    """A Work on the server, and a temporary folder with the same lifetime."""
    client = crescent.client(check)
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crescent-", dir=folder_paths.get_temp_directory()) as folder:
        with Work(client, check, display(node)) as work:
            yield work, folder


# ---- what goes to the server -------------------------------------------------------------------------

def settings_of(options, **given):
    """The inputs of a node, without those that leave the choice to the server, and the JSON of `options`, which wins."""
    try:
        more = json.loads(options) if options.strip() else {}
    except ValueError as error:
        raise CrescentError(f"options: not valid JSON ({error}): write it as {{\"scheduler\": \"unipc_karras\"}}") from None
    if not isinstance(more, dict):
        raise CrescentError("options: not a JSON object: write it as {\"scheduler\": \"unipc_karras\"}")
    return {**{name: value for name, value in given.items() if value is not None}, **more}


def upload_sound(work, folder, audio):
    path = os.path.join(folder, "voice.wav")
    media.write_sound(path, audio)
    return work.upload(path)


def upload_images(work, folder, images, fps):
    path = os.path.join(folder, "frames.avi")
    media.write_frames(path, images, fps, check)
    return work.upload(path)


def readable(path):
    """The file that a workflow's path means: below ComfyUI's folders or those of CRESCENT_FOLDERS, else it is refused."""
    file = os.path.abspath(folder_paths.get_annotated_filepath(path.strip()))
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    named = [folder for folder in os.environ.get("CRESCENT_FOLDERS", "").split(os.pathsep) if folder]
    if not any(os.path.commonpath([file, os.path.abspath(folder)]) == os.path.abspath(folder) for folder in own + named):
        raise CrescentError(f"{path} is outside of ComfyUI's folders and of those in the variable CRESCENT_FOLDERS")
    if not os.path.isfile(file):
        raise CrescentError(f"{path} does not exist")
    return file


def upload_video(work, folder, video):
    """Uploads a VIDEO: its file unchanged if it has one, else its frames, losslessly."""
    trimmed = any(video.get_active_trim_window()) if hasattr(video, "get_active_trim_window") else False
    if isinstance(video, VideoFromFile) and not trimmed:
        source = video.get_stream_source()
        if isinstance(source, str):
            return work.upload(source)
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            file.write(source.getbuffer())
        return work.upload(path)
    parts = video.get_components()
    return upload_images(work, folder, parts.images, float(parts.frame_rate))


def one_of(**given):
    """The only input that is given."""
    there = [name for name, value in given.items() if not (value is None or isinstance(value, str) and not value.strip())]
    if len(there) != 1:
        raise CrescentError(f"{' and '.join(given)}: " + ("only one of them can be used" if there else "one of them is needed"))


# ---- what comes back ---------------------------------------------------------------------------------

def save(work, job, prefix):
    """Writes a job's video into ComfyUI's output folder. Returns its path and how ComfyUI shows it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    file = f"{name}_{counter:05}_.{ENDINGS.get(job['result']['type'], 'mp4')}"
    work.result(os.path.join(folder, file))
    return os.path.join(folder, file), {"images": [{"filename": file, "subfolder": subfolder, "type": "output"}], "animated": (True,)}


def previews(pictures):
    """Writes images to ComfyUI's temporary folder; returns how ComfyUI shows them."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("crescent_face", folder_paths.get_temp_directory())
    shown = []
    for place, picture in enumerate(pictures):
        file = f"{name}_{counter + place:05}_.png"
        picture.save(os.path.join(folder, file))
        shown.append({"filename": file, "subfolder": subfolder, "type": "temp"})
    return {"images": shown}
