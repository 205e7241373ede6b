"""Tries scripts/comfyui/client.py, by the standard library alone, and prints what came of it as JSON:

    python3 client_try.py SCRIPTS URL TOKEN PICTURE FOLDER
"""

import http.server
import json
import os
import sys
import threading
import time

scripts, url, token, picture, folder = sys.argv[1:]
sys.path.insert(0, scripts)
from client import Client, CrescentError, Work  # noqa: E402

JUNK = {"/v1/junk": (200, b"hello"), "/v1/teapot": (418, b"hello"), "/v1/jobs/x/result": (200, b"half of it")}


class Fake(http.server.BaseHTTPRequestHandler):
    """No crescent serve; and one whose answer is cut off."""

    def do_GET(self):
        status, text = JUNK[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + (100 if self.path.endswith("result") else 0)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def sentence(what):
    try:
        what()
    except CrescentError as error:
        return str(error)
    return None


def enlarge(check, settings, into, looks):
    with Work(Client(url, token), check, lambda job, preview: looks.append(job["state"])) as work:
        work.run("/v1/jobs", {"kind": "upscale", "video": work.upload(picture), "settings": settings})
        work.result(into)


class Interrupt(Exception):
    pass


def interrupted(after):
    """What is left when the user interrupts at a call of `check`."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) > after:
            raise Interrupt
    try:
        enlarge(check, {"model": "animevideov3"}, os.path.join(folder, "never.png"), [])
    except Interrupt:
        return [len(calls), left()]
    return None


def left():
    """How many jobs and files are on the server, when what was cancelled has had its time to go."""
    client, until = Client(url, token), time.monotonic() + float(os.environ.get("CR_PATIENCE", "1800"))
    while True:
        count = len(client.call("GET", "/v1/jobs")["jobs"]) + len(client.call("GET", "/v1/files")["files"])
        if count == 0 or time.monotonic() > until:
            return count
        time.sleep(0.1)


fake = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
threading.Thread(target=fake.serve_forever, daemon=True).start()
other = Client(f"http://127.0.0.1:{fake.server_port}")
cut = Work(other, lambda: None, lambda *_: None)
cut.job = {"id": "x", "state": "done"}

made, looks = os.path.join(folder, "made.png"), []
enlarge(lambda: None, {"model": "animevideov3", "scale": 2}, made, looks)
with open(made, "rb") as file:
    head = file.read(24)
print(json.dumps({
    "made": [int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")],
    "looks": looks, "left": left(),
    "interrupted": [interrupted(0), interrupted(1), interrupted(2)],
    "unknown": sentence(lambda: enlarge(lambda: None, {"modl": "x"}, made, [])),
    "no_token": sentence(lambda: Client(url).call("GET", "/v1/system")),
    "wrong_token": sentence(lambda: Client(url, "x").call("GET", "/v1/system")),
    "odd_token": sentence(lambda: Client(url, "x\ny")),
    "odd_url": [sentence(lambda u=u: Client(u)) for u in ("ftp://x", "http://", "http://h:99999", "http://h:0")],
    "nobody": sentence(lambda: Client("127.0.0.1:9").call("GET", "/v1/system")),
    "ended": sentence(lambda: Client("127.0.0.1:9", ended=lambda: "it fell").call("GET", "/v1/system")),
    "junk": [sentence(lambda: other.call("GET", "/v1/junk")), sentence(lambda: other.call("GET", "/v1/teapot"))],
    "cut": sentence(lambda: cut.result(os.path.join(folder, "cut.mp4"))),
    "files": sorted(os.listdir(folder)), "url": other.url,
}))
