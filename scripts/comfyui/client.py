"""The API of `crescent serve`, as far as the nodes need it, by the standard library alone.

Invariants: what goes wrong is raised as a CrescentError, whose text is one sentence for people, the server's own where it sent
one; what a Work has uploaded and started is cancelled at its end, whatever ended it, and deleted as soon as the server lets go of it;
nothing that can be large is held in memory.
"""

import http.client
import json
import os
import ssl
import threading
import time
import urllib.parse
import uuid

PIECE = 1 << 20  # bytes sent or read at a time; the user can cancel between two pieces
ANSWER = 60  # seconds within which the server must answer
PATIENCE = 60  # seconds for which a server with a running job may be away, because it is being restarted
PAUSE = 0.2  # seconds between two status requests for a job
ENDED = ("done", "failed", "cancelled")
BROKEN = (OSError, http.client.HTTPException)


class CrescentError(Exception):
    """An error, as one sentence."""


class Away(CrescentError):
    """The server did not answer."""


class Client:
    """A server at a URL.

    ended: () -> a message if the server is known to have ended, else None
    """

    def __init__(self, url, token="", ended=lambda: None):
        self.parts = urllib.parse.urlsplit(url if "://" in url else "http://" + url)
        try:
            good = self.parts.scheme in ("http", "https") and self.parts.hostname and self.parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise CrescentError(f"{url} is not a server's address: write it as http://127.0.0.1:7860")
        if any(not 32 < ord(c) < 127 for c in token):
            raise CrescentError("the token contains characters that are not allowed in a token: copy it again")
        self.url, self.token, self.ended = self.parts.geturl().rstrip("/"), token, ended

    def open(self, method, path, body=None, headers=None):
        """Returns (connection, response) of a successful request; the caller closes the connection."""
        secure = self.parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        more = {"context": ssl.create_default_context()} if secure else {}
        connection = kind(self.parts.hostname, self.parts.port, timeout=ANSWER, blocksize=PIECE, **more)
        headers = dict(headers or {})
        if self.token:
            headers["Authorization"] = "Bearer " + self.token
        try:
            try:
                connection.request(method, self.parts.path.rstrip("/") + path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server that refuses a body may answer before it has received all of it
            response = connection.getresponse()
            if response.status >= 300:
                raise CrescentError(self._problem(response))
            return connection, response
        except BROKEN as error:
            connection.close()
            raise self.away(error) from error
        except BaseException:
            connection.close()
            raise

    def away(self, error):
        """The error for a broken connection."""
        ended = self.ended()
        if ended:
            return CrescentError(ended)
        if isinstance(error, ConnectionRefusedError):
            return Away(f"no server answers at {self.url}: start `crescent serve`, or leave the url empty")
        if isinstance(error, http.client.HTTPException):
            return Away(f"{self.url}: the connection broke during the answer")
        return Away(f"{self.url}: {error}")

    def _problem(self, response):
        try:
            problem = json.loads(response.read(PIECE))
            return str(problem.get("detail") or problem["title"])
        except (ValueError, LookupError, AttributeError):
            return f"{self.url} answered {response.status} {response.reason}: is it a `crescent serve`?"

    def read(self, method, path, body=None, headers=None):
        """Makes a request and returns the answer's bytes; for small answers."""
        connection, response = self.open(method, path, body, headers)
        try:
            return response.read()
        except BROKEN as error:
            raise self.away(error) from error
        finally:
            connection.close()

    def call(self, method, path, value=None, headers=None):
        """Makes a request with a JSON value or none, and returns the answer's JSON value."""
        body, headers = None, dict(headers or {})
        if value is not None:
            body, headers["Content-Type"] = json.dumps(value).encode(), "application/json"
        text = self.read(method, path, body, headers)
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise CrescentError(f"{self.url} answered, but not with JSON: is it a `crescent serve`?") from None


class _Watched:
    """A file that is read in pieces; `check` may raise before each, but not behind the last one: then the server has the file,
    and its answer says by which name it can be deleted."""

    def __init__(self, file, size, check):
        self.file, self.left, self.check = file, size, check

    def read(self, size):
        if self.left > 0:
            self.check()
        piece = self.file.read(min(size, self.left))
        self.left -= len(piece)
        return piece


class Work:
    """One job with its files, as a context, which leaves nothing of them on the server.

    check: () -> None, called often; what it raises ends what is under way
    show:  (job, preview) -> None, called after each look at the job; preview: bytes of a picture, None: as before
    """

    def __init__(self, client, check, show):
        self.client, self.check, self.show = client, check, show
        self.job, self.files = None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.job and self.job["state"] not in ENDED:
            self._quietly("POST", f"/v1/jobs/{self.job['id']}/cancel")
            threading.Thread(target=self._clean, daemon=True).start()  # a job is cancelled between two steps; nobody waits for that
        else:
            self._clean()

    def _clean(self):
        if self.job:
            path, until = "/v1/jobs/" + self.job["id"], time.monotonic() + PATIENCE
            while self.job["state"] not in ENDED and time.monotonic() < until:
                self.job = self._quietly("GET", path) or {**self.job, "state": "done"}
                time.sleep(PAUSE)
            self._quietly("DELETE", path)
        for name in self.files:
            self._quietly("DELETE", "/v1/files/" + name)

    def _quietly(self, method, path):
        try:
            return self.client.call(method, path)
        except CrescentError:
            return None

    def upload(self, path, name=None):
        """Uploads a file and returns its id."""
        query = urllib.parse.urlencode({"name": name or os.path.basename(path)})
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            answer = self.client.read("PUT", "/v1/files?" + query, _Watched(file, size, self.check), {
                "Content-Length": str(size), "Content-Type": "application/octet-stream"})
        self.files.append(json.loads(answer)["id"])
        return self.files[-1]

    def run(self, path, request):
        """Creates a job, waits until it is done, and returns it."""
        key = {"Idempotency-Key": str(uuid.uuid4())}
        try:
            self.job = self.client.call("POST", path, request, key)
        except Away:  # perhaps only the answer was lost
            self.job = self.client.call("POST", path, request, key)
        self._follow()
        if self.job["state"] == "failed":
            raise CrescentError((self.job.get("error") or {}).get("detail") or "the job failed, but the server gives no reason")
        if self.job["state"] == "cancelled":
            raise CrescentError("the job was cancelled on the server")
        return self.job

    def _follow(self):
        path = "/v1/jobs/" + self.job["id"]
        seen, looked, away = 0, 0.0, None
        while True:
            ended = self.job["state"] in ENDED
            frames, preview = self.job.get("progress", {}).get("frames", 0), None
            if frames != seen and (ended or time.monotonic() - looked > 1):
                seen, looked = frames, time.monotonic()
                try:
                    preview = self.client.read("GET", path + "/preview")
                except CrescentError:
                    pass  # there is no preview yet
            self.show(self.job, preview)
            if ended:
                return
            self.check()
            time.sleep(PAUSE)
            try:
                self.job, away = self.client.call("GET", path), None
            except Away:
                away = away or time.monotonic()
                if time.monotonic() - away > PATIENCE:
                    raise

    def result(self, path):
        """Downloads the job's result to a file, which appears only when it is complete."""
        connection, response = self.client.open("GET", f"/v1/jobs/{self.job['id']}/result")
        part = path + ".part"
        try:
            with open(part, "wb") as file:
                for piece in self._pieces(response):
                    file.write(piece)
            os.replace(part, path)
        finally:
            connection.close()
            if os.path.exists(part):
                os.remove(part)

    def _pieces(self, response):
        left = response.length
        while True:
            self.check()
            try:
                piece = response.read(PIECE)
                if not piece and left:
                    raise http.client.IncompleteRead(b"", left)
            except BROKEN as error:
                raise self.client.away(error) from error
            if not piece:
                return
            left = left and left - len(piece)
            yield piece

    def picture(self, number):
        """The portrait of a person that the job found, as PNG bytes."""
        return self.client.read("GET", f"/v1/jobs/{self.job['id']}/people/{number}")
