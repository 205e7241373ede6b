// Files that are being uploaded: the video, and each voice, which may also be recorded. clear()
// releases their object URLs and the microphone.

import { state, changed } from './state.js';
import { $, show, note, icon, dotted, clock, lasting, size } from './tools.js';
import { Problem, askToken, put, lose, contentOf } from './server.js';

const EMPTY = {
  status: 'empty', name: '', blob: null, url: '', remote: null, loaded: 0, problem: null, upload: null, recorder: null,
};

/**
 * A slot holds one file: it is empty, recording, uploading, ready or failed. `changed` draws it, `full` is called once
 * the file is there.
 * @param kind 'video' or 'audio': what the file must have
 */
export const newSlot = kind => ({ ...EMPTY, kind, changed() {}, full() {} });

/** Every slot of the draft. */
export function slots() {
  const draft = state.draft;
  return draft ? [draft.video, draft.voice, ...draft.voices.values()] : [];
}

/** Empties a slot and releases its resources. */
export function clear(slot) {
  slot.upload?.stop();
  slot.recorder?.drop();
  if (slot.url.startsWith('blob:')) URL.revokeObjectURL(slot.url);
  Object.assign(slot, EMPTY);
}

/** Uploads a file that the user selected. */
export function take(slot, file, name = file.name) {
  clear(slot);
  Object.assign(slot, { name, blob: file, url: URL.createObjectURL(file) });
  const most = state.system.limits?.upload_bytes;
  if (!most || file.size <= most) return send(slot);
  fail(slot, new Problem(413, `${name} has ${size(file.size)}; this server takes ${size(most)} at most.`));
}

function fail(slot, problem) {
  Object.assign(slot, { status: 'failed', problem });
  slot.changed();
}

/** Whether the file itself is the problem, so that a second attempt fails too. */
export const refused = slot => slot.status === 'failed' && [413, 415, 422].includes(slot.problem.status);

/** Whether a second attempt may succeed. */
export const retriable = slot => slot.status === 'failed' && !!slot.blob && !refused(slot);

/** Shows the progress of an upload as text and as a bar. */
export function drawUpload(slot, bar) {
  const sending = slot.status === 'uploading';
  show(bar, sending);
  if (sending) Object.assign(bar, { max: slot.blob.size || 1, value: slot.loaded });
  return sending ? `Uploading: ${size(slot.loaded)} of ${size(slot.blob.size)}` : '';
}

export async function send(slot) {
  const upload = slot.upload = put(slot.blob, slot.name, loaded => { slot.loaded = loaded; slot.changed(); });
  Object.assign(slot, { status: 'uploading', problem: null, loaded: 0 });
  slot.changed();
  try {
    const file = await upload.done;
    if (slot.upload === upload) fill(slot, file);
  } catch (problem) {
    if (slot.upload !== upload) return;
    if (problem.status === 0) fetch('healthz').catch(lose);
    if (problem.status !== 401) return fail(slot, problem);
    await askToken();
    if (slot.upload === upload) send(slot);
  }
}

/** Puts a file of the server into a slot. */
export function fill(slot, file) {
  state.files.set(file.id, file);
  const url = slot.url || contentOf(file);
  Object.assign(slot, { status: 'ready', name: file.name, url, remote: file, blob: null, upload: null });
  if (!file[slot.kind]) {
    const lacks = slot.kind === 'video' ? 'no picture: choose a video' : 'no sound: choose another file';
    return fail(slot, new Problem(422, `${file.name} has ${lacks}.`));
  }
  slot.changed();
  slot.full();
}

const WHY_NOT_RECORDED = {
  insecure: 'Browsers record only on pages from https or from this machine. Choose a sound file instead.',
  NotAllowedError: 'The browser does not let this page use the microphone. Allow it in the address bar, then record again.',
  NotFoundError: 'There is no microphone. Choose a sound file instead.',
};

/** The loudness of a moment of sound, 0 to 1. */
function levelOf(analyser) {
  const wave = new Uint8Array(analyser.fftSize);
  analyser.getByteTimeDomainData(wave);
  return Math.min(1, wave.reduce((most, x) => Math.max(most, Math.abs(x - 128)), 0) / 64);
}

function recordingName(begin, type) {
  const ending = type.includes('mp4') ? 'm4a' : type.includes('ogg') ? 'ogg' : 'webm';
  return `Recording ${begin.toTimeString().slice(0, 8).replaceAll(':', '.')}.${ending}`;
}

/** Records a voice with the microphone until it is stopped. */
async function record(slot) {
  let stream;
  try {
    if (!navigator.mediaDevices) throw new Error('insecure');
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const why = WHY_NOT_RECORDED[error.message] || WHY_NOT_RECORDED[error.name];
    slot.problem = new Problem(1, why || `The microphone does not work: ${error.message}`);
    return slot.changed();
  }
  const recorder = new MediaRecorder(stream), parts = [], begin = new Date();
  const audio = new AudioContext(), analyser = audio.createAnalyser();
  audio.createMediaStreamSource(stream).connect(analyser);
  const timer = setInterval(() => {
    Object.assign(slot.recorder, { level: levelOf(analyser), seconds: (Date.now() - begin) / 1000 });
    slot.changed();
  }, 100);
  recorder.ondataavailable = event => parts.push(event.data);
  recorder.onstop = () => {
    clearInterval(timer);
    audio.close();
    for (const track of stream.getTracks()) track.stop();
    if (slot.recorder?.of !== recorder) return;
    slot.recorder = null;
    const type = recorder.mimeType || 'audio/webm';
    take(slot, new Blob(parts, { type }), recordingName(begin, type));
  };
  clear(slot);
  slot.status = 'recording';
  slot.recorder = {
    of: recorder, seconds: 0, level: 0,
    stop: () => recorder.stop(),
    drop() {
      slot.recorder = null;
      if (recorder.state !== 'inactive') recorder.stop();
    },
  };
  recorder.start();
  slot.changed();
}

/** The view of a voice's slot. @param whose what follows "voice" in the names of its buttons */
export function voiceView(slot, whose) {
  const root = $('slot-template').content.cloneNode(true).firstElementChild;
  const part = name => root.querySelector(`[data-part=${name}]`);
  const audio = part('audio'), input = part('input'), play = part('play'), named = 'voice' + whose;
  const drawPlaying = () => {
    play.replaceChildren(icon(audio.paused ? 'play' : 'pause'));
    play.setAttribute('aria-label', `${audio.paused ? 'Play' : 'Pause'} the ${named}`);
  };
  input.setAttribute('aria-label', `Choose a sound: ${named}`);
  part('record').setAttribute('aria-label', `Record the ${named}`);
  part('remove').setAttribute('aria-label', `Remove the ${named}`);
  audio.onplay = audio.onpause = drawPlaying;
  input.onchange = () => {
    if (input.files[0]) take(slot, input.files[0]);
    input.value = '';
  };
  part('record').onclick = async () => {
    await record(slot);
    part('stop').focus();
  };
  part('stop').onclick = () => {
    slot.recorder.stop();
    play.focus();
  };
  play.onclick = () => { if (audio.paused) audio.play().catch(() => {}); else audio.pause(); };
  part('remove').onclick = () => {
    clear(slot);
    slot.changed();
    input.focus();
  };
  part('retry').onclick = () => send(slot);
  root.holds = slot;
  slot.changed = () => drawVoice(slot, part);
  drawPlaying();
  slot.changed();
  return root;
}

function drawVoice(slot, part) {
  const { status, recorder, remote, url } = slot, held = status !== 'empty' && status !== 'recording', audio = part('audio');
  show(part('empty'), status === 'empty');
  show(part('recording'), status === 'recording');
  show(part('file'), held);
  if (!held) audio.removeAttribute('src'); else if (audio.getAttribute('src') !== url) audio.src = url;
  if (recorder) {
    part('elapsed').textContent = clock(recorder.seconds);
    part('level').style.width = 100 * recorder.level + '%';
  }
  part('name').textContent = slot.name;
  const facts = remote?.audio ? dotted([lasting(remote.audio.seconds), size(remote.bytes)]) : '';
  part('facts').textContent = drawUpload(slot, part('progress')) || facts;
  note(part('problem'), slot.problem?.message);
  show(part('retry'), retriable(slot));
  note($('voices-problem'), '');
  changed();
}
