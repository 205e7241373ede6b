// Shows the result beside its source: a divider, the sound of either, and a close-up of a face. The
// source follows the result's playback.

import { state } from './state.js';
import { $, show, el, icon, clamp, clock, shape, whenUnplayable } from './tools.js';
import { call, fileOf, contentOf, pictureOf } from './server.js';

export async function openViewer(job) {
  const { id, video, result, settings } = job, view = state.view, source = $('source');
  Object.assign(view, { mode: 'divide', split: 50, zoom: 1, x: 0.5, y: 0.5, offset: settings?.start || 0, source: true });
  $('viewer').dataset.of = id;
  show($('viewer'), true);
  show($('viewer-word'), false);
  shape($('screen'), result);
  $('screen').classList.toggle('wide', result.width > result.height);
  source.src = contentOf({ id: video });
  $('result').src = `v1/jobs/${id}/result`;
  $('seek').max = result.seconds;
  $('download').href = `v1/jobs/${id}/result?download=1`;
  $('download').download = '';
  $('report-link').href = `v1/jobs/${id}/report`;
  $('report').open = false;
  drawViewer();
  drawTime();
  await findCrowd(video);
  const file = await fileOf(video);
  if (state.job?.id !== id) return;
  if (view.split === 50 && file?.video) view.split = middleOf(file.video);
  drawViewer();
}

/** Where the divider begins: on the only face with a generated mouth, so that both halves of it are seen. */
function middleOf({ width }) {
  const { face = 'largest' } = state.job.settings || {}, area = ({ box }) => box[2] * box[3];
  const people = seenPeople().toSorted((a, b) => area(b) - area(a)), one = people.length === 1 || !state.job.voices && face === 'largest';
  return one && people.length ? clamp(100 * (people[0].box[0] + people[0].box[2] / 2) / width, 10, 90) : 50;
}

/** The people in a video, if the server has searched for them. */
async function findCrowd(video) {
  if (state.crowds.has(video)) return;
  const { jobs } = await call('GET', 'v1/jobs?kind=faces&state=done&limit=100').catch(() => ({ jobs: [] }));
  const job = jobs.find(one => one.video === video && one.people?.length);
  if (job) state.crowds.set(video, { id: job.id, people: job.people });
}

/** The people with a generated mouth and a known position. */
function seenPeople() {
  const { video, voices, settings } = state.job, people = state.crowds.get(video)?.people || [];
  const wanted = voices ? voices.map(voice => voice.face) : [settings?.face || 'largest'];
  const made = people.filter(p => wanted.includes(String(p.number)));
  return made.length ? made : people;
}

const MODES = { divide: 'Divider', beside: 'Side by side', result: 'Result' };
const SOUNDS = { result: 'Result', source: 'Source', off: 'Off' };

function drawViewer() {
  const view = state.view, screen = $('screen'), part = id => screen.querySelector(id);
  const mode = view.source ? view.mode : 'result';
  screen.classList.toggle('beside', mode === 'beside');
  screen.classList.toggle('zoomed', view.zoom > 1);
  show(part('.pane.of-source'), mode !== 'result');
  show(part('.tag.of-source'), mode !== 'result');
  show($('divider'), mode === 'divide');
  part('.pane.of-result').style.clipPath = mode === 'divide' ? `inset(0 0 0 ${view.split}%)` : 'none';
  $('divider').style.left = view.split + '%';
  $('divider').setAttribute('aria-valuenow', Math.round(view.split));
  // The close-up: the point (x, y) of the image moves to the centre, or as close as the edges
  // allow.
  const shift = at => 100 * clamp(0.5 / view.zoom - at, 1 / view.zoom - 1, 0);
  const transform = `scale(${view.zoom}) translate(${shift(view.x)}%, ${shift(view.y)}%)`;
  for (const id of ['source', 'result']) $(id).style.transform = transform;
  $('source').muted = view.sound !== 'source' || !view.source;
  $('result').muted = view.sound !== 'result';
  for (const [id, value] of [['modes', mode], ['sounds', view.sound]]) {
    for (const button of $(id).querySelectorAll('button')) {
      button.setAttribute('aria-pressed', button.value === value);
      button.disabled = !view.source && (id === 'modes' ? button.value !== 'result' : button.value === 'source');
    }
  }
  $('closeup').setAttribute('aria-pressed', view.zoom > 1);
  show($('source-word'), !view.source);
  drawAim();
}

/** Selects the person of the close-up, if there are several. */
function drawAim() {
  const people = seenPeople(), crowd = state.crowds.get(state.job.video);
  show($('aim'), state.view.zoom > 1 && people.length > 1);
  if ($('aim').dataset.of === state.job.id + crowd?.id) return;
  $('aim').dataset.of = state.job.id + crowd?.id;
  $('aim').replaceChildren(...people.map(person => {
    const picture = el('img', { src: pictureOf(crowd, person.number), alt: '' });
    return el('button', { type: 'button', className: 'button', onclick: () => aim(person) }, picture, `Person ${person.number}`);
  }));
}

/** Magnifies the face of a person; if no position is known, the middle of the picture. */
async function aim(person) {
  const view = state.view, video = await fileOf(state.job.video);
  if (person && video?.video) {
    const [x, y, w, h] = person.box, { width, height } = video.video;
    const zoom = clamp(Math.min(width / w, height / h) / 1.4, 1.4, 8);
    Object.assign(view, { x: (x + w / 2) / width, y: (y + h / 2) / height, zoom });
  } else {
    Object.assign(view, { x: 0.5, y: 0.4, zoom: 2.5 });
  }
  drawViewer();
}

function toggleCloseup() {
  if (state.view.zoom === 1) return aim(seenPeople()[0]);
  state.view.zoom = 1;
  drawViewer();
}

function pan(dx, dy) {
  const view = state.view, half = 0.5 / view.zoom;
  Object.assign(view, { x: clamp(view.x + dx, half, 1 - half), y: clamp(view.y + dy, half, 1 - half) });
  drawViewer();
}

function split(percent) {
  state.view.split = clamp(percent, 0, 100);
  drawViewer();
}

function togglePlay() { if ($('result').paused) $('result').play().catch(() => {}); else $('result').pause(); }

function go(seconds) {
  $('result').currentTime = clamp(seconds, 0, $('result').duration || 0);
  drawTime();
}

/** Synchronizes the source with the result: always while both are paused, otherwise if they have drifted apart. */
function align() {
  const source = $('source'), result = $('result'), wanted = result.currentTime + state.view.offset;
  if (source.readyState < 1 || wanted > source.duration) return;
  if (Math.abs(source.currentTime - wanted) > (result.paused ? 0.001 : 0.06)) source.currentTime = wanted;
}

/** A time with tenths of a second, because lips are compared frame by frame. */
const moment = seconds => `${clock(seconds)}.${Math.floor(10 * seconds + 1e-3) % 10}`;

function drawTime() {
  const { currentTime, paused } = $('result'), text = `${moment(currentTime)} / ${moment(state.job.result.seconds)}`;
  $('seek').value = currentTime;
  $('seek').setAttribute('aria-valuetext', text);
  $('time').textContent = text;
  $('play').replaceChildren(icon(paused ? 'play' : 'pause'));
  $('play').setAttribute('aria-label', paused ? 'Play' : 'Pause');
}

/** Updates the source and the time while the result plays. */
function playAlong() {
  if (!state.job?.result) return;
  drawTime();
  if (!$('result').paused) {
    $('source').play().catch(() => {});
    return tick();
  }
  $('source').pause();
  align();
}

function tick() {
  if ($('result').paused) return;
  align();
  if (Math.abs($('seek').value - $('result').currentTime) > 0.1) drawTime();
  requestAnimationFrame(tick);
}

function bindVideos() {
  const source = $('source'), result = $('result');
  result.onplay = result.onpause = result.onended = playAlong;
  result.onseeked = () => {
    align();
    drawTime();
  };
  source.onloadedmetadata = align;
  whenUnplayable(result, () => show($('viewer-word'), true));
  whenUnplayable(source, () => {
    state.view.source = false;
    if (state.view.sound === 'source') state.view.sound = 'result';
    drawViewer();
  });
}

function bindDivider() {
  const divider = $('divider');
  const steps = {
    ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100,
  };
  divider.onpointerdown = event => {
    divider.setPointerCapture(event.pointerId);
    event.stopPropagation();
  };
  divider.onpointermove = event => {
    const { left, width } = $('screen').getBoundingClientRect();
    if (divider.hasPointerCapture(event.pointerId)) split(100 * (event.clientX - left) / width);
  };
  divider.onclick = event => event.stopPropagation();
  divider.onkeydown = event => {
    if (!steps[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    split(state.view.split + steps[event.key]);
  };
}

/** A click plays or pauses; a drag moves the close-up. */
function bindScreen() {
  const screen = $('screen');
  let moved = 0;
  screen.onpointerdown = event => {
    moved = 0;
    if (state.view.zoom > 1) screen.setPointerCapture(event.pointerId);
  };
  screen.onpointermove = event => {
    if (!screen.hasPointerCapture(event.pointerId)) return;
    const { width, height } = screen.querySelector('.pane.of-result').getBoundingClientRect();
    moved += Math.abs(event.movementX) + Math.abs(event.movementY);
    pan(-event.movementX / width / state.view.zoom, -event.movementY / height / state.view.zoom);
  };
  screen.onclick = () => { if (moved < 5) togglePlay(); };
}

function bindKeys() {
  const arrows = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] };
  const frames = { ',': -0.04, '.': 0.04 };
  $('viewer').onkeydown = event => {
    const { key, target } = event;
    if (key === ' ' && target.tagName !== 'BUTTON') togglePlay();
    else if (frames[key]) {
      $('result').pause();
      go($('result').currentTime + frames[key]);
    } else if (arrows[key] && target === $('screen') && state.view.zoom > 1) pan(...arrows[key]);
    else return;
    event.preventDefault();
  };
}

export function bindViewer() {
  const choose = (id, words, pick) => $(id).append(...Object.entries(words).map(([value, text]) => {
    const onclick = () => {
      pick(value);
      drawViewer();
    };
    return el('button', { type: 'button', className: 'button', value, onclick }, text);
  }));
  choose('modes', MODES, value => { state.view.mode = value; });
  choose('sounds', SOUNDS, value => { state.view.sound = value; });
  $('play').onclick = togglePlay;
  $('closeup').onclick = toggleCloseup;
  $('seek').oninput = () => go(Number($('seek').value));
  bindVideos();
  bindDivider();
  bindScreen();
  bindKeys();
}
