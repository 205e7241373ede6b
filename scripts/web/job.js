// A waiting, running or finished job: its progress, inputs, report and actions.

import { state } from './state.js';
import { $, show, note, el, ordinal, capital, dotted, lasting, extent, size, ago, say, confirmed, shape } from './tools.js';
import { Problem, problemOf, call, ended, follow, fileOf, contentOf } from './server.js';
import { newSlot, fill } from './slots.js';
import { newDraft, startDraft } from './draft.js';
import { OWN, presetOf, inWords } from './settings.js';
import { newKey } from './make.js';
import { openViewer } from './viewer.js';

export const STATES = { queued: 'Waiting', running: 'Running', done: 'Done', failed: 'Failed', cancelled: 'Cancelled' };
const STAGES = {
  load: 'Loading the model', audio: 'Analysing the voice', decode: 'Reading the video', detect: 'Finding faces',
  align: 'Finding faces',
};
const FACES = {
  largest: 'The largest face', all: 'Everyone', speaking: 'Who speaks in the source', left: 'The left face', right: 'The right face',
};
const faceInWords = face => FACES[face] || (/^\d+$/.test(face) ? `Person ${face}` : face);
export const nameOf = file => file ? file.name : 'a file that is gone';

export async function openJob(id) {
  closeJob();
  for (const place of ['before', 'viewer', 'report-part', 'download', 'again', 'change', 'delete']) show($(place), false);
  for (const place of ['job-problem', 'cancel-problem']) note($(place), '');
  $('job-title').textContent = 'Job';
  $('job-state').textContent = '';
  $('facts').replaceChildren();
  let job;
  try { job = await call('GET', `v1/jobs/${id}`); } catch (problem) {
    note($('job-problem'), problem.message);
    if (problem.status === 404) $('job-title').textContent = 'There is no such job';
    return;
  }
  if (location.hash !== '#job/' + id) return;
  state.job = job;
  show($('change'), job.kind === 'lipsync');
  $('progress-video').src = contentOf({ id: job.video });
  $('preview').removeAttribute('src');
  show($('preview'), false);
  drawJob(job);
  drawFacts(job);
  if (!ended(job)) {
    if (job.progress?.frames) preview(`v1/jobs/${id}/preview`);
    state.stop = follow(id, seen => {
      state.job = seen;
      drawJob(seen);
      if (ended(seen)) drawFacts(seen);
    }, preview);
  }
}

/** Leaves the view of a job and stops its requests and timers. */
export function closeJob() {
  state.stop?.();
  Object.assign(state, { job: null, stop: null });
  for (const id of ['progress-video', 'source', 'result']) {
    $(id).pause();
    $(id).removeAttribute('src');
    $(id).load();
  }
  document.title = 'Crescent';
}

/** Shows a new frame after it is loaded, so that the picture does not flicker. */
function preview(url) {
  const next = new Image(), id = state.job.id;
  next.onload = () => {
    if (state.job?.id !== id) return;
    $('preview').src = next.src;
    show($('preview'), true);
    shape($('progress-screen'), { width: next.naturalWidth, height: next.naturalHeight });
  };
  next.src = url.replace(/^\//, '');
}

function drawJob(job) {
  const over = ended(job), words = STATES[job.state];
  $('job-state').textContent = words;
  $('job-state').dataset.state = job.state;
  show($('before'), job.state !== 'done');
  show($('progress'), !over);
  show($('failure'), over && job.state !== 'done');
  $('failure').firstElementChild.textContent = job.state === 'failed' ? 'The video could not be made' : 'This job was cancelled';
  note($('failure').lastElementChild, job.state === 'failed' && problemOf(500, job.error).message);
  for (const id of ['download', 'report-part']) show($(id), !!job.result);
  show($('again'), job.state === 'failed' || job.state === 'cancelled');
  show($('delete'), over);
  if (!over) drawProgress(job);
  if (over) {
    document.title = `${words} · Crescent`;
    say(job.state === 'failed' ? 'The job failed.' : `${words}.`);
  }
  if (job.result && !$('viewer').dataset.of) openViewer(job);
}

function doingInWords({ state: now, position, progress }) {
  // Once there are steps, all stages run at the same time.
  if (now === 'running') return progress?.step || progress?.frames ? 'Making frames' : STAGES[progress?.stage] || 'Getting ready';
  return position === 1 ? 'Waiting: next in the queue' : position ? `Waiting: ${ordinal(position)} in the queue` : 'Waiting';
}

/** A job's progress from 0 to 1, if it is known: steps are nine tenths of the work. */
export function shareOf({ state: now, progress: { step, steps, window, windows, frames, total } = {} }) {
  if (now !== 'running' || !total) return undefined;
  const written = frames / total;
  return windows && steps ? 0.9 * (window - 1 + step / steps) / windows + 0.1 * written : written;
}

function drawProgress(job) {
  const { step, steps, frames, total, seconds_left } = job.progress || {};
  const bar = $('progress-bar'), running = job.state === 'running', share = shareOf(job), doing = doingInWords(job);
  const facts = dotted([total && `${frames} of ${total} frames`, step && steps && `step ${step} of ${steps}`,
    seconds_left && `about ${lasting(Math.ceil(seconds_left))} left`]);
  if (share === undefined) bar.removeAttribute('value'); else bar.value = share;
  $('progress-stage').textContent = doing;
  const meanwhile = running ? 'This takes a moment.' : 'You may leave this page: the job stays in the history.';
  $('progress-facts').textContent = running && facts || meanwhile;
  document.title = `${share === undefined ? STATES[job.state] : Math.floor(100 * share) + ' %'} · Crescent`;
  say(share === undefined ? doing : `${doing}: ${25 * Math.floor(4 * share)} percent`);
}

/** Terms and their values, without empty ones. */
const terms = facts => Object.entries(facts).filter(([, text]) => text)
  .flatMap(([name, text]) => [el('dt', {}, name), el('dd', {}, String(text))]);

/** A job's inputs and results. */
async function drawFacts(job) {
  const { voices = [], settings = {}, result, started, finished } = job;
  const [video, audio] = await Promise.all([fileOf(job.video), job.audio && fileOf(job.audio)]);
  const own = await Promise.all(voices.map(async voice => `${faceInWords(voice.face)}: ${nameOf(await fileOf(voice.audio))}`));
  if (state.job?.id !== job.id) return;
  const changed = Object.entries(settings).filter(([name]) => !OWN.includes(name));
  if (video?.video && $('preview').hidden) shape($('progress-screen'), video.video);
  $('job-title').textContent = nameOf(video);
  $('facts').replaceChildren(...terms({
    Voice: job.audio && nameOf(audio),
    Voices: own.join(', '),
    'Who speaks': job.audio && faceInWords(settings.face || 'largest'),
    Preset: job.preset && capital(job.preset),
    Settings: changed.map(([name, value]) => `${name.replaceAll('_', ' ')} ${inWords(value)}`).join(', '),
    Result: result && dotted([extent(result), lasting(result.seconds), size(result.bytes)]),
    Took: started && finished && lasting((new Date(finished) - new Date(started)) / 1000),
    Started: ago(job.created),
  }));
}

export async function drawReport() {
  if (!$('report').open || $('report').dataset.of === state.job.id) return;
  const { id } = state.job;
  try {
    const report = await call('GET', `v1/jobs/${id}/report`);
    $('report').dataset.of = id;
    $('report-facts').replaceChildren(...terms({
      Frames: report.frames, Seconds: report.seconds?.toFixed(1), Seed: report.seed, 'Without a face': report.frames_without_face,
    }));
    $('report-stages').replaceChildren(...Object.entries(report.stages || {}).map(([name, { frames, seconds, working_seconds }]) =>
      el('tr', {}, el('th', { scope: 'row' }, capital(name)), el('td', {}, frames ?? ''),
        el('td', {}, (working_seconds ?? seconds).toFixed(2)))));
  } catch (problem) { note($('report-problem'), problem.message); }
}

/** Runs an action on the shown job; an error is shown in the given element. */
async function attempt(place, action) {
  note($(place), '');
  try { await action(state.job); } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    note($(place), problem.message);
  }
}

export const cancel = () => attempt('cancel-problem', async job => {
  await call('POST', `v1/jobs/${job.id}/cancel`);
});

export const again = () => attempt('job-problem', async ({ kind, video, audio, voices, preset, settings }) => {
  const job = await call('POST', 'v1/jobs', { kind, video, audio, voices, preset, settings }, { 'Idempotency-Key': newKey() });
  location.hash = '#job/' + job.id;
});

/** Makes a new draft from the shown job. */
export const change = () => attempt('job-problem', async job => {
  const { face, ...values } = job.settings || {}, draft = newDraft();
  const voices = (job.voices || []).filter(one => /^\d+$/.test(one.face));
  const ids = [job.video, job.audio, ...voices.map(one => one.audio)];
  const [video, audio, ...own] = await Promise.all(ids.map(id => id && fileOf(id)));
  if (presetOf(job.preset)) draft.preset = job.preset;
  for (const { name } of state.rows) if (values[name] !== undefined) draft.values[name] = values[name];
  Object.assign(draft, { who: face || 'largest', each: voices.length > 0 });
  voices.forEach((one, i) => {
    const slot = newSlot('audio');
    draft.voices.set(Number(one.face), slot);
    if (own[i]) fill(slot, own[i]);
  });
  startDraft(draft);
  if (audio) fill(draft.voice, audio);
  if (video) fill(draft.video, video);
  location.hash = '';
});

/** Deletes a job if the user confirms. Returns whether it is deleted; an error is shown in the given element. */
export async function remove(job, place) {
  const text = 'The result is deleted from the server. The source video and the voice are kept.';
  if (!await confirmed('Delete this video?', text)) return false;
  try { await call('DELETE', `v1/jobs/${job.id}`); } catch (problem) {
    note($(place), problem.message);
    return false;
  }
  say('Deleted.');
  return true;
}
