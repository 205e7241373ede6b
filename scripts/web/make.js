// A new video: the request that creates it, and its problems, shown where they belong.

import { state } from './state.js';
import { $, note, capital, dotted, lasting } from './tools.js';
import { Problem, call } from './server.js';
import { titleOf, read, find } from './settings.js';

/** The reason why a slot cannot be used. */
function lack(slot, wanted) {
  if (slot.status === 'uploading') return `The ${wanted} is still uploading: wait for it.`;
  if (slot.status === 'recording') return 'The recording is running: stop it first.';
  return slot.problem?.message || `Add a ${wanted}.`;
}

function idOf(slot, field, wanted) {
  if (slot.status !== 'ready') throw new Problem(1, lack(slot, wanted), field);
  return slot.remote.id;
}

/** The voices that are given, with the numbers of their people. */
const given = voices => [...voices].filter(([, slot]) => slot.status !== 'empty' || slot.problem);

/** The draft as a request; throws a Problem with the field of what is missing. */
function request() {
  const { video, voice, voices, each, who, preset, values } = state.draft, body = { video: idOf(video, 'video', 'video') };
  for (const row of state.rows.filter(one => one.field)) {
    try { read(row, row.field); } catch (error) { throw new Problem(1, error.message, row.name); }
  }
  if (each) {
    body.voices = given(voices).map(([number, slot], i) => ({ face: String(number), audio: idOf(slot, `voices/${i}`, 'voice') }));
    if (!body.voices.length) throw new Problem(1, 'Add a voice for at least one person.', 'voices');
  } else {
    body.audio = idOf(voice, 'audio', 'voice');
  }
  if (preset) body.preset = preset;
  body.settings = { ...values, ...!each && who !== 'largest' && { face: who } };
  return body;
}

/** A key that makes a repeated request the same one. */
export const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join('-');

export async function make() {
  const draft = state.draft;
  forgive();
  $('go').disabled = true;
  try {
    const body = request(), text = JSON.stringify(body);
    if (draft.attempt?.text !== text) draft.attempt = { text, key: newKey() };
    const job = await call('POST', 'v1/jobs', body, { 'Idempotency-Key': draft.attempt.key });
    draft.attempt = null;
    location.hash = '#job/' + job.id;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    blame(problem);
  } finally {
    $('go').disabled = false;
  }
}

/** The length of the result, as long as the server's settings leave it to the voices; empty if it is unknown. */
function lengthInWords({ video, voice, voices, each, values }) {
  const sounds = each ? given(voices).map(([, slot]) => slot) : [voice], start = values.start || 0;
  const [shown, ...heard] = [video.remote?.video?.seconds, ...sounds.map(slot => slot.remote?.audio?.seconds)];
  if (!shown || !heard.every(Boolean) || values.tail === 'keep') return '';
  const length = Math.min(Math.max(...heard) - start, values.duration ?? Infinity), short = length > shown - start + 0.1;
  return length > 0 && `${lasting(length)} long${short ? ', longer than the video, which then runs backward and forward' : ''}`;
}

/** One line that says what will be made, or what is missing. */
export function drawSummary() {
  const { video, voice, voices, each, who, preset } = state.draft, usable = slot => slot.name && slot.status !== 'failed';
  const named = each ? given(voices).filter(([, slot]) => usable(slot)).map(([number, slot]) => `person ${number}: ${slot.name}`)
    : [voice].filter(usable).map(slot => slot.name);
  const wanted = [!usable(video) && 'a video', !named.length && 'a voice'].filter(Boolean);
  const person = !each && /^\d+$/.test(who) && `person ${who}`;
  const all = dotted([video.name, ...named, person, preset, lengthInWords(state.draft)]);
  $('summary').textContent = wanted.length ? `Still missing: ${wanted.join(' and ')}.` : all;
}

/** Removes the messages of an earlier attempt. */
function forgive() {
  for (const id of ['problem', 'preset-problem', 'voices-problem']) note($(id), '');
  for (const row of state.rows) row.refuse?.('');
}

/** The slot that a problem's field names: 'video', 'audio' or 'voices/0'. */
function slotOf(field) {
  const { each, voices, video, voice } = state.draft, number = field.match(/^voices\D*(\d+)/);
  if (number && each) return given(voices)[number[1]]?.[1];
  return { video, audio: voice }[field];
}

/** Shows a problem next to its field, and moves the focus there. */
function blame(problem) {
  const field = (problem.field || '').replace(/^\/?(settings[./])?/, ''), slot = slotOf(field);
  const row = state.rows.find(one => one.name === field && one.view);
  if (row) blameRow(row, problem);
  else if (slot) blameSlot(slot, problem);
  else {
    const place = $({ face: 'who-problem', preset: 'preset-problem', voices: 'voices-problem' }[field] || 'problem');
    note(place, problem.message);
    place.scrollIntoView({ block: 'nearest' });
  }
}

function blameRow(row, problem) {
  row.refuse(problem.message.replace(capital(row.name), titleOf(row)));
  if ($('all').contains(row.view)) {
    $('all').open = true;
    $('find').value = '';
    find();
  }
  row.field.focus();
}

function blameSlot(slot, problem) {
  slot.problem = problem;
  slot.changed();
  const place = slot.status === 'empty' ? 'video-empty' : 'video-stage';
  const view = slot.kind === 'video' ? $(place) : [...document.querySelectorAll('.slot')].find(one => one.holds === slot);
  [...view.querySelectorAll('input, button')].find(one => one.offsetParent)?.focus();
}
