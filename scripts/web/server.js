// The server's operations under /v1: requests, uploads, events, the token, and the connection,
// which may break and be restored.

import { state } from './state.js';
import { $, show, note, pause, capital, say } from './tools.js';

/** An error: the server's sentence with its status and field. Status 0: the server was not reached; 1: found in the browser. */
export class Problem extends Error {
  constructor(status, message, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

export function problemOf(status, data) {
  const text = data && (data.detail || data.title) || `The server answered with status ${status}.`;
  return new Problem(status, capital(text), data && data.field);
}

// Status codes with which a proxy says that the server behind it is unavailable.
const away = answer => answer.status === 502 || answer.status === 504;

// The token is a cookie, because the browser's own requests (videos, events, downloads) cannot
// carry a header.
function token() {
  const found = document.cookie.match(/(?:^|; )crescent_token=([^;]*)/);
  return found ? decodeURIComponent(found[1]) : '';
}

function keepToken(text) {
  const folder = new URL('.', location.href).pathname, secure = location.protocol === 'https:' ? '; secure' : '';
  document.cookie = `crescent_token=${encodeURIComponent(text)}; path=${folder}; samesite=strict; max-age=31536000${secure}`;
}

let asking = null;
/** Asks for the token, once for all requests that wait for it. */
export function askToken() {
  asking ??= new Promise(resolve => {
    const dialog = $('token');
    note($('token-problem'), token() && 'The server does not know this token.');
    $('token-text').value = '';
    dialog.showModal();
    dialog.addEventListener('close', () => {
      keepToken($('token-text').value.trim());
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

/** Returns an operation's answer, or throws a Problem. */
export async function call(method, path, body, headers = {}) {
  for (;;) {
    const used = token();
    if (used) headers.Authorization = 'Bearer ' + used;
    if (body) headers['Content-Type'] = 'application/json';
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) }).catch(() => null);
    if (!answer || away(answer)) {
      lose();
      throw new Problem(0, 'The server cannot be reached.');
    }
    if (answer.status === 401) {
      if (token() === used) await askToken();
      continue;
    }
    const data = answer.status === 204 ? null : await answer.json().catch(() => null);
    if (!answer.ok) throw problemOf(answer.status, data);
    return data;
  }
}

/** Uploads a file; calls progress(bytes). Returns {done: a promise of its File or a Problem, stop()}. */
export function put(blob, name, progress) {
  const request = new XMLHttpRequest(); // fetch does not report upload progress
  const done = new Promise((resolve, reject) => {
    request.open('PUT', 'v1/files?name=' + encodeURIComponent(name));
    if (token()) request.setRequestHeader('Authorization', 'Bearer ' + token());
    request.upload.onprogress = event => progress(event.loaded);
    request.onload = () => {
      let data = null;
      try { data = JSON.parse(request.responseText); } catch { /* a proxy's page */ }
      if (request.status === 201 || request.status === 200) resolve(data); else reject(problemOf(request.status, data));
    };
    request.onerror = () => reject(new Problem(0, 'The connection broke while the file was sent.'));
    request.send(blob);
  });
  return { done, stop: () => request.abort() };
}

export const ended = job => job.state !== 'queued' && job.state !== 'running';

/** Calls seen(job) at each change until the job ends, and preview(url) for each picture. Returns a function that stops it. */
export function follow(id, seen, preview = () => {}) {
  let source, stopped = false;
  const stop = () => { stopped = true; source.close(); };
  const tell = job => {
    if (stopped) return;
    if (ended(job)) stop();
    seen(job);
  };
  const open = () => {
    source = new EventSource(`v1/jobs/${id}/events`);
    source.addEventListener('job', event => tell(JSON.parse(event.data)));
    source.addEventListener('preview', event => stopped || preview(JSON.parse(event.data).url));
    source.onerror = resume;
  };
  // Asks the server itself, because the browser does not say why an event stream broke.
  const resume = async () => {
    source.close();
    while (!stopped) {
      await pause(1000);
      await state.back;
      try {
        tell(await call('GET', `v1/jobs/${id}`));
        if (!stopped) open();
        return;
      } catch (problem) {
        if (problem.status === 404) stop();
      }
    }
  };
  open();
  return stop;
}

/** Shows that the connection is lost until the server answers again; then the event 'regained' is sent. */
export function lose() {
  if (!state.online) return;
  state.online = false;
  show($('offline'), true);
  const alive = () => fetch('healthz', { cache: 'no-store' }).then(answer => !away(answer), () => false);
  state.back = (async () => {
    do await pause(1500); while (!await alive());
    state.online = true;
    show($('offline'), false);
    say('The server answers again.');
    document.dispatchEvent(new Event('regained'));
  })();
}

/** A File by its id; null if it does not exist any more. */
export async function fileOf(id) {
  if (!state.files.has(id)) {
    try { state.files.set(id, await call('GET', `v1/files/${id}`)); } catch (problem) {
      if (problem.status !== 404) return null;
      state.files.set(id, null);
    }
  }
  return state.files.get(id);
}

export const contentOf = file => `v1/files/${file.id}/content`;
export const pictureOf = (crowd, number) => `v1/jobs/${crowd.id}/people/${number}`;
