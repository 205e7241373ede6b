// A new video: the video itself, the people in it, and their voices. (Its settings: settings.js; making it: make.js.)

import { state, changed } from './state.js';
import { $, show, note, el, ordinal, dotted, clock, lasting, extent, size, shape } from './tools.js';
import { call, problemOf, ended, follow, pictureOf } from './server.js';
import { newSlot, slots, clear, drawUpload, refused, retriable, voiceView } from './slots.js';
import { drawOptions } from './settings.js';

export function newDraft() {
  const draft = {
    video: newSlot('video'), voice: newSlot('audio'),
    each: false, voices: new Map(), // a voice for each person, by number
    who: 'largest',                 // whom the one voice is for, as the setting `face` takes it
    crowd: null,                    // who was found: {state, position, id, people, problem, stop}
    preset: '', values: {},         // settings that differ from the preset's and the defaults
    attempt: null,                  // {text, key} of a request whose answer was lost
    pieceChanged() { if (draft.video.status === 'ready') findPeople(); },
  };
  draft.video.changed = drawVideo;
  draft.video.full = findPeople;
  return draft;
}

/** Replaces the current draft. */
export function startDraft(draft) {
  for (const slot of slots()) clear(slot);
  forgetPeople();
  state.draft = draft;
  $('voice').replaceChildren(voiceView(draft.voice, ''));
  drawVideo();
  drawPeople();
  drawOptions();
}

export function drawVideo() {
  const slot = state.draft.video, { status, remote } = slot, video = $('video'), none = status === 'empty';
  changed();
  show($('video-empty'), none);
  show($('video-stage'), !none);
  note($('video-problem-empty'), none && slot.problem?.message);
  note($('video-problem'), slot.problem?.message);
  if (none) {
    video.removeAttribute('src');
    video.load();
  } else if (video.getAttribute('src') !== slot.url) {
    show($('video-word'), false);
    video.src = slot.url;
  }
  if (refused(slot)) show($('video-word'), false);
  if (!remote && state.draft.crowd) {
    forgetPeople();
    drawPeople();
  }
  $('video-name').textContent = slot.name;
  $('video-facts').textContent = drawUpload(slot, $('video-progress')) || (remote?.video ? factsOf(remote) : '');
  show($('video-retry'), retriable(slot));
  if (remote?.video) shape($('video-screen'), remote.video);
}

function factsOf(file) {
  const v = file.video;
  const rate = `${+v.frames_per_second.toFixed(2)} frames a second`;
  return dotted([extent(v), rate, lasting(v.seconds), size(file.bytes)]);
}

/** Draws a box around everybody who is first visible at the time of the paused video. */
export function drawBoxes() {
  const video = $('video'), { crowd, video: { remote } } = state.draft;
  const people = remote?.video && video.paused && $('video-word').hidden && crowd?.people || [];
  const here = people.filter(person => Math.abs(person.first - video.currentTime) < 0.05);
  $('boxes').replaceChildren(...here.map(person => boxOf(person, remote.video)));
}

function boxOf({ number, box: [x, y, w, h] }, { width, height }) {
  const box = el('div', { className: 'box' }, el('span', {}, `Person ${number}`));
  const percent = (part, whole) => 100 * part / whole + '%';
  box.classList.toggle('chosen', String(number) === state.draft.who);
  box.classList.toggle('high', y < 0.12 * height);
  const place = { left: percent(x, width), top: percent(y, height), width: percent(w, width), height: percent(h, height) };
  Object.assign(box.style, place);
  return box;
}

/** Discards the people: another video has other ones. */
function forgetPeople() {
  const draft = state.draft;
  if (!draft) return;
  draft.crowd?.stop?.();
  for (const slot of draft.voices.values()) clear(slot);
  Object.assign(draft, { crowd: null, who: 'largest', each: false, voices: new Map() });
}

/** The part of the video that the job processes; the numbers of people depend on it. */
function piece() {
  const { start, duration } = state.draft.values;
  return { ...start !== undefined && { start }, ...duration !== undefined && { duration } };
}

// The texts for rules that select a person without a number.
const RULES = { largest: 'Largest face', all: 'Everyone', speaking: 'Who speaks in the source' };

/** Starts the search for people on the server. */
export async function findPeople() {
  const draft = state.draft, video = draft.video.remote.id;
  draft.crowd?.stop?.();
  const crowd = draft.crowd = { state: 'queued', people: null, problem: null, id: null, stop: null };
  const current = () => draft.crowd === crowd;
  drawPeople();
  try {
    const job = await call('POST', `v1/files/${video}/faces`, piece());
    const cancel = () => { call('POST', `v1/jobs/${job.id}/cancel`).catch(() => {}); };
    if (!current()) return cancel();
    crowd.id = job.id;
    const unfollow = follow(job.id, seen => {
      const { state: now, position, people = null, error } = seen;
      Object.assign(crowd, { state: now, position, people, problem: error ? problemOf(422, error) : null });
      if (ended(seen)) crowd.stop = null;
      if (crowd.people) state.crowds.set(video, crowd);
      if (!current()) return;
      if (people) keepChoices(people.map(person => person.number));
      drawPeople();
    });
    crowd.stop = () => { unfollow(); cancel(); };
  } catch (problem) {
    Object.assign(crowd, { state: 'failed', problem });
    if (current()) drawPeople();
  }
}

/** Keeps the selected people if they are still there, for example in another part of the video. */
function keepChoices(numbers) {
  const draft = state.draft;
  if (/^\d+$/.test(draft.who) && !numbers.includes(Number(draft.who))) draft.who = 'largest';
  if (numbers.length < 2) draft.each = false;
  for (const [number, slot] of draft.voices) {
    if (draft.each && numbers.includes(number)) continue;
    clear(slot);
    draft.voices.delete(number);
  }
}

/** A choice of who speaks. */
function whoInput(value) {
  const input = el('input', { type: 'radio', name: 'who', value, checked: state.draft.who === value });
  input.onchange = () => {
    state.draft.who = value;
    const person = state.draft.crowd.people.find(p => String(p.number) === value);
    if (person && $('video-word').hidden) {
      $('video').pause();
      $('video').currentTime = person.first;
    }
    drawBoxes();
    changed();
  };
  return input;
}

function personCard(crowd, { number, first, last, share }) {
  const span = last < 10 ? `${first.toFixed(1)}–${last.toFixed(1)} s` : `${clock(first)}–${clock(last)}`;
  const when = dotted([span, share < 0.995 && `${Math.round(100 * share)} %`]);
  const picture = el('img', { src: pictureOf(crowd, number), alt: '' });
  return el('label', { className: 'person' }, whoInput(String(number)), picture, el('b', {}, `Person ${number}`),
    el('span', { className: 'hint' }, when));
}

/** The message about the search for people. */
function crowdInWords({ crowd, video, each }) {
  if (!crowd) return video.status === 'empty' ? 'The people in the video appear here.' : '';
  if (crowd.state === 'queued' && crowd.position) return `Waiting for the search for people: ${ordinal(crowd.position)} in the queue.`;
  if (crowd.state === 'queued' || crowd.state === 'running') return 'Searching for people…';
  if (!crowd.people) return '';
  if (crowd.people.length === 0) return 'No face was found in this video. Choose another one.';
  if (crowd.people.length === 1) return 'One person was found.';
  return each ? 'Each person has their own voice.' : `${crowd.people.length} people were found.`;
}

export function drawPeople() {
  const { crowd, each } = state.draft, people = crowd?.people || [], many = people.length > 1;
  $('who-word').textContent = crowdInWords(state.draft);
  show($('who-progress'), crowd?.state === 'queued' || crowd?.state === 'running');
  note($('who-problem'), crowd?.problem?.message);
  show($('who-retry'), !!crowd?.problem);
  show($('who'), people.length > 0 && !each);
  $('people').replaceChildren(...people.map(person => personCard(crowd, person)));
  if (people.length === 1) $('people').querySelector('input').checked = true;
  const rules = many ? Object.entries(RULES) : [];
  $('rules').replaceChildren(...rules.map(([value, text]) => el('label', {}, whoInput(value), text)));
  show($('each-switch'), many);
  $('each').checked = each;
  drawVoices();
  drawBoxes();
  changed();
}

/** Shows one voice, or one for each person. */
function drawVoices() {
  const { each, voices, crowd } = state.draft;
  show($('voice'), !each);
  show($('voices'), each);
  note($('voices-problem'), '');
  if (!each || !crowd?.people) return $('voices').replaceChildren();
  $('voices').replaceChildren(...crowd.people.map(({ number }) => {
    if (!voices.has(number)) voices.set(number, newSlot('audio'));
    return el('div', { className: 'own' }, el('img', { src: pictureOf(crowd, number), alt: '' }),
      el('div', {}, el('h3', {}, `Person ${number}`), voiceView(voices.get(number), ` of person ${number}`)));
  }));
}
