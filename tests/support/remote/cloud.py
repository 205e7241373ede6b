"""A cloud for tests, on loopback: moto (SQS, S3, STS) behind a gate of our own that verifies signatures and, when told to,
fails, cuts connections or is away; beside it what gives credentials (IMDSv2, a container's endpoint) and plain files.

    python3 cloud.py [--no-moto] [--seed N] [--everywhere]

prints one line of JSON, {"port": of the gate}; --everywhere listens on all addresses, not loopback alone. GET /-/set?NAME=VALUE sets
    fail    share of requests that are answered with 503, or whose answer is cut off half-way
    away    1: connections are closed before anything is read
    expires seconds that credentials last
and /-/seen gives {"requests", "failed", "bad": [problems of signatures], "credentials": how often given, "open": uploads in parts}.
/-/file?bytes=N gives N bytes of a pattern (Range, ETag); cut=B: each answer breaks off after B bytes; ranges=0: whole
only; to=URL: sends on there. s3://pattern/N is such a file as an object; what is put into that bucket is thrown away.
"""
import base64
import datetime
import functools
import http.client
import http.server
import json
import os
import random
import socket
import sys
import threading
import zlib
from urllib.parse import parse_qs, urlsplit

from signature import problem

KEYS = {'AKIATEST': ('secret/of+tests', None)}
state = {'fail': 0.0, 'away': 0.0, 'expires': 3600.0}
seen = {'requests': 0, 'failed': 0, 'bad': [], 'credentials': 0, 'renewed': []}
lock = threading.Lock()
draw = random.Random(1)
moto_port = None


PART = 16 << 20
BLOCK = random.Random(7).randbytes(65521)  # a prime number of bytes, so that no two parts are equal


def pattern(first, count):
    """Bytes of /-/file from `first` on."""
    skip = first % len(BLOCK)
    return (BLOCK * ((skip + count) // len(BLOCK) + 1))[skip:skip + count]


@functools.lru_cache
def composite(size):
    """How many parts a file of the pattern has, and the CRC-32 of its parts' CRC-32s."""
    def crc(data):
        return zlib.crc32(data).to_bytes(4, 'big')
    parts = [crc(pattern(at, min(PART, size - at))) for at in range(0, size, PART)]
    return len(parts), base64.b64encode(crc(b''.join(parts))).decode()


def new_credentials(kind):
    with lock:
        seen['credentials'] += 1
        n = seen['credentials']
        key_id, secret, token = f'ASIA{kind}{n}', f'secret-{kind}-{n}', f'token-{kind}-{n}'
        KEYS[key_id] = (secret, token)
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=state['expires'])
    return key_id, secret, token, end.strftime('%Y-%m-%dT%H:%M:%SZ')


class Gate(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, status, body=b'', headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def cut(self):
        """Ends the connection in the middle of whatever it is."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        self.connection.close()

    def give_json(self, value):
        self.answer(200, json.dumps(value).encode(), [('Content-Type', 'application/json')])

    def handle_one(self):
        length = int(self.headers.get('Content-Length') or 0)
        body = self.rfile.read(length) if length else b''
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if parts.path == '/-/set':
            state.update({name: float(value) for name, value in query.items()})
            self.give_json(state)
        elif parts.path == '/-/seen':
            self.give_json(seen)
        elif state['away']:
            self.cut()
        elif parts.path == '/-/file':
            self.give_file(query)
        elif parts.path.startswith('/pattern/') and not self.bad_signature(body):
            self.act_as_bucket(parts.path, query)
        elif parts.path.startswith('/latest/') or parts.path == '/-/container' or b'Action=AssumeRole' in body:
            self.give_credentials(parts.path, body)
        else:
            self.pass_on(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

    def give_file(self, query):
        if 'to' in query:
            return self.answer(302, headers=[('Location', query['to'])])
        size, first, status = int(query['bytes']), 0, 200
        asked = self.headers.get('Range')
        if asked and query.get('ranges') != '0':
            start, last = asked.split('=')[1].split('-')
            first, status, size = int(start), 206, int(last or size - 1) + 1
        count = size - first
        self.send_response(status)
        self.send_header('Content-Length', str(count))
        self.end_headers()
        end = min(size, first + int(query['cut'])) if 'cut' in query else size
        while first < end:
            piece = pattern(first, min(1 << 20, end - first))
            self.wfile.write(piece)
            first += len(piece)
        if end < size:
            self.cut()

    def act_as_bucket(self, path, query):
        """A bucket for measuring: the object N has N bytes of the pattern; what is put is thrown away, unchecked."""
        if self.command == 'POST':
            return self.answer(200, b'<R><UploadId>1</UploadId></R>')
        if self.command == 'PUT':
            checksum = self.headers.get('x-amz-checksum-crc32')
            return self.answer(200, headers=[('ETag', '"1"')] + ([('x-amz-checksum-crc32', checksum)] if checksum else []))
        size = int(path.rsplit('/', 1)[1])
        if self.command == 'HEAD':
            self.send_response(200)
            count, digest = composite(size)
            self.send_header('ETag', f'"{"0" * 32}-{count}"')
            self.send_header('x-amz-meta-part-bytes', str(PART))
            self.send_header('x-amz-checksum-crc32', f'{digest}-{count}')
            self.send_header('Content-Length', str(size))
            return self.end_headers()
        self.give_file({'bytes': size})

    def give_credentials(self, path, body):
        if path == '/latest/api/token':
            ok = self.command == 'PUT' and self.headers.get('X-aws-ec2-metadata-token-ttl-seconds')
            return self.answer(200 if ok else 400, b'imds-token')
        if path.startswith('/latest/') and self.headers.get('X-aws-ec2-metadata-token') != 'imds-token':
            return self.answer(401)
        if path == '/latest/meta-data/iam/security-credentials/':
            return self.answer(200, b'the-role\n')
        if path == '/-/container' and self.headers.get('Authorization') != 'pod-token':
            return self.answer(401)
        if path.startswith('/latest/') or path == '/-/container':
            key_id, secret, token, end = new_credentials('IMDS' if path.startswith('/latest/') else 'POD')
            return self.give_json({'AccessKeyId': key_id, 'SecretAccessKey': secret, 'Token': token, 'Expiration': end})
        form = {name: values[-1] for name, values in parse_qs(body.decode()).items()}
        if form['Action'] == 'AssumeRoleWithWebIdentity' and form.get('WebIdentityToken') != 'web-token':
            return self.answer(403, b'<Error><Code>InvalidIdentityToken</Code></Error>')
        if form['Action'] == 'AssumeRole' and self.bad_signature(body):
            return self.answer(403, b'<Error><Code>SignatureDoesNotMatch</Code></Error>')
        key_id, secret, token, end = new_credentials('STS')
        self.answer(200, (f'<R><Credentials><AccessKeyId>{key_id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>'
                          f'<SessionToken>{token}</SessionToken><Expiration>{end}</Expiration></Credentials></R>').encode())

    def bad_signature(self, body):
        wrong = problem(self.command, self.path, self.headers.items(), body, KEYS)
        if wrong:
            with lock:
                seen['bad'].append(f'{self.command} {self.path}: {wrong}')
        return wrong

    def pass_on(self, body):
        with lock:
            seen['requests'] += 1
            luck, kind = draw.random(), draw.random()
            failed = luck < state['fail']
            seen['failed'] += failed
        if self.bad_signature(body):
            return self.answer(403, b'<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>')
        if failed and kind < 0.4:
            return self.answer(503, b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>later</Message></Error>')
        if failed and kind < 0.6:
            return self.cut()
        back = http.client.HTTPConnection('127.0.0.1', moto_port)
        back.request(self.command, self.path, body, dict(self.headers.items()))
        got = back.getresponse()
        data = got.read()
        headers = [(n, v) for n, v in got.getheaders() if n.lower() not in ('content-length', 'connection', 'transfer-encoding')]
        size = len(data)
        if self.command == 'HEAD':
            size = int(got.getheader('Content-Length') or 0)
        back.close()
        self.send_response(got.status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header('Content-Length', str(size))
        self.end_headers()
        if failed:  # it was carried out, but the client does not learn it
            self.wfile.write(data[:size // 2] if self.command != 'HEAD' else b'')
            return self.cut()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args):
        pass


def main():
    global moto_port
    if '--seed' in sys.argv:
        draw.seed(int(sys.argv[sys.argv.index('--seed') + 1]))
    if '--no-moto' not in sys.argv:
        os.environ.pop('AWS_ENDPOINT_URL', None)
        from moto.server import ThreadedMotoServer
        moto = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
        moto.start()
        moto_port = moto.get_host_and_port()[1]
    server = Server(('0.0.0.0' if '--everywhere' in sys.argv else '127.0.0.1', 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({'port': server.server_port}), flush=True)
    threading.Event().wait()


main()
