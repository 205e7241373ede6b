"""Verifies a request's AWS Signature 4 by the published rules; moto does not."""
import hashlib
import hmac
import re
import time
from calendar import timegm
from urllib.parse import quote, unquote


def _hash(data):
    return hashlib.sha256(data).hexdigest()


def _mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def problem(method, target, headers, body, keys):
    """Why the signature is wrong; None: it is right. `target` is path and query as they were sent, `headers` a list of
    (name, value), `keys` {id: (secret, token or None)}."""
    given = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(' '.join(value.split()))
    given = {name: ','.join(values) for name, values in given.items()}
    match = re.fullmatch(r'AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?'
                         r'SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})', given.get('authorization', ''))
    if not match:
        return 'no signature'
    key_id, day, region, service, signed, signature = match.groups()
    if key_id not in keys:
        return 'unknown key'
    secret, token = keys[key_id]
    if given.get('x-amz-security-token') != token:
        return 'wrong token'
    names = signed.split(';')
    if names != sorted(names):
        return 'signed headers are not sorted'
    for name in given:
        if (name == 'host' or name.startswith('x-amz-')) and name not in names:
            return f'{name} is not signed'
    stamp = given.get('x-amz-date', '')
    if stamp[:8] != day or abs(timegm(time.strptime(stamp, '%Y%m%dT%H%M%SZ')) - time.time()) > 900:
        return 'wrong time'
    payload = given.get('x-amz-content-sha256')
    if service == 's3' and not payload:
        return 'x-amz-content-sha256 is missing'
    if payload not in (None, 'UNSIGNED-PAYLOAD') and payload != _hash(body):
        return 'the body has another SHA-256'
    path, _, query = target.partition('?')
    if service != 's3':
        path = quote(path, safe='/-._~')
    pairs = []
    for pair in filter(None, query.split('&')):
        name, _, value = pair.partition('=')
        pairs.append((quote(unquote(name), safe='-._~'), quote(unquote(value), safe='-._~')))
    canonical = '\n'.join([
        method, path or '/', '&'.join(f'{name}={value}' for name, value in sorted(pairs)),
        ''.join(f'{name}:{given.get(name, "")}\n' for name in names), signed, payload or _hash(body)])
    scope = f'{day}/{region}/{service}/aws4_request'
    text = '\n'.join(['AWS4-HMAC-SHA256', stamp, scope, _hash(canonical.encode())])
    key = ('AWS4' + secret).encode()
    for part in (day, region, service, 'aws4_request'):
        key = _mac(key, part)
    return None if hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == signature else 'wrong signature'
