// The page live.html: a session over the WebSocket /v1/live (scripts/README.md, "Live"), whose
// video is played while it arrives.

import { $, el, note, show, shape, size, capital } from './tools.js';
import { call } from './server.js';

const BEHIND = 0.15; // target delay of the player, in seconds
const LATE = 0.6; // delay in seconds from which it jumps ahead
const KEPT = 20; // seconds of past video that are kept

const video = $('video');
let socket = null, buffer = null, waiting = [], jump = null, microphone = null, metrics = null;

// ---- the video ----------------------------------------------------------------------------------

const end = () => video.buffered.length ? video.buffered.end(video.buffered.length - 1) : 0;

// Appends received data to the player, and keeps it close to the end of the data.
function feed() {
  if (!buffer || buffer.updating) return;
  if (end() > 2 * KEPT && video.buffered.start(0) < end() - 2 * KEPT) return buffer.remove(0, end() - KEPT);
  const bytes = waiting.shift();
  if (bytes) buffer.appendBuffer(bytes);
}

function keepUp() {
  feed();
  if (jump !== null && end() > jump + 0.04) {
    video.currentTime = jump;
    jump = null;
  } else if (end() - video.currentTime > LATE) {
    video.currentTime = end() - BEHIND;
  }
}

function openVideo(mime) {
  const source = new MediaSource();
  video.src = URL.createObjectURL(source);
  source.addEventListener('sourceopen', () => {
    URL.revokeObjectURL(video.src);
    buffer = source.addSourceBuffer(mime);
    buffer.addEventListener('updateend', keepUp);
    feed();
  }, { once: true });
  video.play().catch(() => {});
}

// ---- the session --------------------------------------------------------------------------------

const send = message => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

function tell(text) { $('state').textContent = text; }

function live(on) {
  for (const id of ['speak', 'mic', 'stop']) $(id).disabled = !on;
  show($('begin'), !socket);
  show($('end'), !!socket);
  $('clip').disabled = !!socket;
}

const heard = {
  ready(message) {
    shape($('screen'), message);
    show($('word'), false);
    openVideo(message.mime);
    tell('Live');
    live(true);
  },
  flushed(message) { jump = message.seconds; },
  metrics(message) {
    metrics = message.metrics;
    drawFigures();
  },
  ended(message) { heard.metrics(message); },
  error(message) { note($('problem'), capital(message.detail) + '.'); },
};

function begin() {
  const address = new URL('v1/live', location.href);
  address.protocol = address.protocol.replace('http', 'ws');
  note($('problem'), '');
  socket = new WebSocket(address);
  socket.binaryType = 'arraybuffer';
  tell('Preparing the clip…');
  live(false);
  socket.onopen = () => send({ type: 'start', ...($('clip').value && { idle: $('clip').value }) });
  socket.onmessage = event => {
    if (typeof event.data === 'string') {
      const message = JSON.parse(event.data);
      heard[message.type]?.(message);
    } else {
      waiting.push(event.data);
      feed();
    }
  };
  socket.onclose = event => {
    if (event.code === 1006) note($('problem'), 'The connection to the server broke, or it has no live sessions.');
    finish();
  };
}

function finish() {
  socket?.close();
  socket = buffer = jump = null;
  waiting = [];
  stopMicrophone();
  live(false);
  tell('Ended');
}

// ---- what is said -------------------------------------------------------------------------------

function speak(event) {
  event.preventDefault();
  const text = $('text').value.trim();
  if (text) {
    send({ type: 'say', text });
    $('text').select();
  }
}

async function startMicrophone() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true } });
    const context = new AudioContext();
    await context.audioWorklet.addModule('recorder.js');
    const recorder = new AudioWorkletNode(context, 'recorder', { numberOfOutputs: 0 });
    send({ type: 'sound', rate: context.sampleRate, channels: 1, format: 's16' });
    recorder.port.onmessage = event => { if (socket?.readyState === WebSocket.OPEN) socket.send(event.data); };
    context.createMediaStreamSource(stream).connect(recorder);
    microphone = { stream, context };
  } catch (problem) {
    note($('problem'), 'The microphone cannot be used: ' + problem.message);
  }
  drawMicrophone();
}

function stopMicrophone() {
  if (!microphone) return;
  for (const track of microphone.stream.getTracks()) track.stop();
  microphone.context.close();
  microphone = null;
  send({ type: 'finish' });
  drawMicrophone();
}

function drawMicrophone() {
  $('mic').setAttribute('aria-pressed', String(!!microphone));
  $('mic').querySelector('span').textContent = microphone ? 'Stop the microphone' : 'Microphone';
}

// ---- figures ------------------------------------------------------------------------------------

const ms = seconds => Math.round(seconds * 1000) + ' ms';

function drawFigures() {
  const { seconds: s, ...counts } = metrics, rows = [['', 'median', '99 % below']];
  const time = (name, d) => d && rows.push([name, ms(d.p50), ms(d.p99)]);
  time('Sound in to frame out', s.latency);
  rows.push(['In this player', ms(Math.max(0, end() - video.currentTime))]);
  time('Waiting for sound', s.buffer);
  time('Hearing', s.hear);
  time('Steps', s.denoise);
  time('Decoding', s.decode);
  time('Pasting, encoding', s.encode);
  time('Stop', s.flush);
  if (counts.steps_mean) rows.push(['Steps of a window', counts.steps_mean.toFixed(1)]);
  rows.push(['Frames', String(counts.frames), `${counts.speaking} speaking`]);
  if (counts.held) rows.push(['Mouths held', String(counts.held)]);
  if (counts.torn) rows.push(['Sound came late for', counts.torn + ' frames']);
  $('figures').replaceChildren(...rows.flatMap(([name, ...values]) =>
    [el('dt', {}, name), ...[0, 1].map(k => el('dd', {}, values[k] ?? ''))]));
}

// ---- the start ----------------------------------------------------------------------------------

async function load() {
  const [system, { files }] = await Promise.all([call('GET', 'v1/system'), call('GET', 'v1/files')]);
  const wanted = new URL(location.href).searchParams.get('idle');
  if (!system.live) return note($('problem'), 'This server has no live sessions: it was started with --live 0.');
  if (system.live.idle) $('clip').append(el('option', { value: '' }, "The server's clip"));
  for (const file of files.filter(f => f.video)) {
    $('clip').append(el('option', { value: file.id, selected: file.id === wanted }, `${file.name} (${size(file.bytes)})`));
  }
  const types = !!system.live.say;
  show($('form'), types);
  show($('untyped'), !types);
  if (types) $('about').textContent = 'The face says what you type or say, in real time.';
  $('begin').disabled = !$('clip').length;
  if (!$('clip').length) note($('problem'), 'There is no video yet: upload one on the page Make.');
  $('machine').textContent = system.devices.map(d => d.name).join(', ');
}

$('begin').onclick = begin;
$('end').onclick = finish;
$('form').onsubmit = speak;
$('mic').onclick = () => microphone ? stopMicrophone() : startMicrophone();
$('stop').onclick = () => {
  stopMicrophone();
  send({ type: 'flush' });
};
setInterval(() => { if (buffer) keepUp(); }, 100);
load().catch(problem => note($('problem'), problem.message));
