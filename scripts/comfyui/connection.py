"""Where the server is: one that runs, or one that is started here for a checkpoint and ends with ComfyUI.

Variables: CRESCENT_URL, CRESCENT_TOKEN (a running server), CRESCENT (the program crescent, where it is neither beside this
folder nor on PATH). Which program is started is never a workflow's choice, and the token of the environment goes to the
environment's server alone.
"""

import atexit
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import folder_paths

from .client import Client, CrescentError

HERE = os.path.dirname(os.path.realpath(__file__))
START = 600  # seconds within which the server must start
# Limits protect against strangers; a ComfyUI user needs none.
LIMITS = ["--max-upload", "1000000", "--max-seconds", "86400", "--max-pixels", "100", "--job-timeout", "604800"]

folder_paths.add_model_folder_path("latentsync", os.path.join(folder_paths.models_dir, "latentsync"))


def program():
    """The path of the program crescent, or None."""
    beside = [os.path.join(HERE, *up, name) for up, name in (
        (("..", "..", "build"), "crescent"), (("..", "..", "..", "..", "bin"), "crescent"))]
    for path in [os.environ.get("CRESCENT"), *beside, shutil.which("crescent")]:
        if path and os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.realpath(path)
    return None


def checkpoints():
    """The checkpoints of this machine: name -> folder. Those of ComfyUI's folders `latentsync`, and Crescent's small model."""
    found = {}
    for folder in folder_paths.get_folder_paths("latentsync"):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if os.path.isdir(path) and any(file.startswith("latentsync_unet.") for file in os.listdir(path)):
                found.setdefault(name, path)
    binary = program()
    roots = [os.path.join(HERE, "..", "..")]
    if binary:
        roots += [os.path.join(os.path.dirname(binary), ".."), os.path.join(os.path.dirname(binary), "..", "share", "crescent")]
    for root in roots:
        path = os.path.abspath(os.path.join(root, "models", "mini"))
        if os.path.isdir(path):
            found.setdefault("mini", path)
    return found


class Started:
    """A server that was started here, on a port that the system picks, with a token that nobody else sees. What it says goes
    to ComfyUI's log."""

    def __init__(self, binary, checkpoint, device):
        os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
        self.folder = tempfile.mkdtemp(prefix="crescent-serve-", dir=folder_paths.get_temp_directory())
        self.token, self.said = secrets.token_urlsafe(24), []
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "watch.py"), binary, "serve", "--checkpoint", checkpoint, "--device", device,
             "--host", "127.0.0.1", "--port", "0", "--data", self.folder, *LIMITS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "CRESCENT_TOKEN": self.token})
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        atexit.register(self.end)

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line.decode(errors="replace").strip())
            logging.info("crescent serve: %s", self.said[-1])

    def ended(self):
        """A message if the server has ended: its last line."""
        if self.process.poll() is None:
            return None
        self.reader.join()
        return self.said[-1] if self.said else f"crescent serve ended with status {self.process.returncode} without a message"

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, check):
        """Its client, when it listens. check: () -> None, called often; what it raises ends the waiting."""
        until = time.monotonic() + START
        while True:
            check()
            ended = self.ended()
            if ended:
                raise CrescentError(ended)
            for line in self.said:
                listens = re.search(r"http://127\.0\.0\.1:\d+", line)
                if listens:
                    return Client(listens[0], self.token, self.ended)
            if time.monotonic() > until:
                raise CrescentError(f"crescent serve did not start within {START} s")
            time.sleep(0.1)


started, lock = {}, threading.Lock()


class Connection:
    """The output of Crescent Load for the other nodes."""

    def __init__(self, url, token, checkpoint, device):
        own = os.environ.get("CRESCENT_URL", "")
        self.url = url or own
        self.token = token or (os.environ.get("CRESCENT_TOKEN", "") if self.url == own else "")
        self.starts = not self.url
        self.checkpoint, self.device = checkpoint, device or "auto"

    def client(self, check):
        """A client of the server, which answers. check: () -> None, called often; what it raises ends the waiting."""
        if not self.starts:
            return Client(self.url, self.token)
        binary = program()
        if not binary:
            raise CrescentError("url is empty, and the program crescent, which would be started, was not found: put it on PATH, "
                                "or set the variable CRESCENT to its path")
        folder = checkpoints().get(self.checkpoint)
        if not folder:
            raise CrescentError(f"checkpoint: {self.checkpoint} was not found in {', '.join(folder_paths.get_folder_paths('latentsync'))}")
        with lock:
            key = (binary, folder, self.device)
            server = started.get(key)
            if not server or server.ended():
                server = started[key] = Started(*key)
        return server.client(check)
