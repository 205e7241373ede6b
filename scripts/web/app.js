// The page: navigation by its address, dropped files, and the server's description.

import { state } from './state.js';
import { $, show, note, capital, dotted, size, lasting, shape, whenUnplayable } from './tools.js';
import { call } from './server.js';
import { slots, clear, take, send, refused } from './slots.js';
import { newDraft, startDraft, drawVideo, drawBoxes, drawPeople, findPeople } from './draft.js';
import { buildOptions, drawOptions, resetOptions, find } from './settings.js';
import { make, drawSummary } from './make.js';
import { openJob, closeJob, drawReport, cancel, again, change, remove } from './job.js';
import { bindViewer } from './viewer.js';
import { openHistory, closeHistory } from './history.js';

// What each address after # opens: a section with that id, and functions that start and end it.
const pages = {
  make: { open() {}, close() { $('video').pause(); } },
  job: { open: openJob, close() { closeJob(); delete $('viewer').dataset.of; } },
  history: { open: () => openHistory(), close: closeHistory },
};

let current = null;

function route() {
  const [name, rest] = location.hash.slice(1).split('/'), next = pages[name] ? name : 'make', moved = current !== null;
  current?.close();
  current = pages[next];
  for (const id of Object.keys(pages)) show($(id), id === next);
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.page === next) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  if (moved) {
    scrollTo(0, 0);
    $(next + '-title').focus({ preventScroll: true });
  }
  current.open(rest);
}

/** Uploads dropped files: to the drop target under the pointer, otherwise to the one for their type. */
function bindDrops() {
  const placeOf = target => target?.closest?.('[data-drop]');
  const slotAt = (target, file) => {
    const place = placeOf(target);
    if (place?.dataset.drop === 'voice') return place.holds;
    return !place && file.type.startsWith('audio/') ? state.draft.voice : state.draft.video;
  };
  const mark = target => {
    for (const node of document.querySelectorAll('.over')) node.classList.remove('over');
    placeOf(target)?.classList.add('over');
  };
  addEventListener('dragover', event => {
    event.preventDefault();
    mark(event.target);
  });
  addEventListener('dragleave', event => { if (!event.relatedTarget) mark(); });
  addEventListener('drop', event => {
    event.preventDefault();
    mark();
    if (current === pages.make) for (const file of event.dataTransfer.files) take(slotAt(event.target, file), file);
  });
}

function bindMake() {
  const video = $('video');
  for (const id of ['video-file', 'video-other']) {
    $(id).onchange = () => {
      if ($(id).files[0]) take(state.draft.video, $(id).files[0]);
      $(id).value = '';
    };
  }
  whenUnplayable(video, () => show($('video-word'), !refused(state.draft.video)));
  video.onloadedmetadata = () => {
    const { videoWidth: width, videoHeight: height } = video;
    if (width) shape($('video-screen'), { width, height });
  };
  video.onplay = video.onpause = video.onseeked = video.onloadeddata = drawBoxes;
  $('video-retry').onclick = () => send(state.draft.video);
  $('video-remove').onclick = () => {
    clear(state.draft.video);
    drawVideo();
    $('video-file').focus();
  };
  $('who-retry').onclick = findPeople;
  $('each').onchange = () => {
    state.draft.each = $('each').checked;
    drawPeople();
  };
  $('find').oninput = find;
  $('reset').onclick = () => {
    resetOptions();
    $('all-title').focus();
  };
  $('form').onsubmit = event => {
    event.preventDefault();
    make();
  };
}

function bind() {
  $('cancel').onclick = cancel;
  $('again').onclick = again;
  $('change').onclick = change;
  $('delete').onclick = async () => { if (await remove(state.job, 'job-problem')) location.hash = '#history'; };
  $('report').ontoggle = drawReport;
  $('more').onclick = () => openHistory(state.history.next);
  $('token').oncancel = event => event.preventDefault();
  addEventListener('hashchange', route);
  document.addEventListener('draft', drawSummary);
  document.addEventListener('regained', regained);
  document.addEventListener('visibilitychange', () => { if (!document.hidden && current === pages.history) openHistory(); });
  bindMake();
  bindViewer();
  bindDrops();
}

/** Continues after a lost connection. */
function regained() {
  for (const slot of slots()) if (slot.status === 'failed' && slot.problem.status === 0) send(slot);
  if (!state.rows.length) load();
  if (current === pages.history || current === pages.job && !state.job) route();
}

/** Fetches the server's description and capabilities. */
async function load() {
  try {
    const asked = ['system', 'settings', 'presets'].map(name => call('GET', 'v1/' + name));
    const [system, { kinds: { lipsync: rows } }, { presets }] = await Promise.all(asked);
    Object.assign(state, { system, rows, presets });
  } catch (problem) { return note($('problem'), problem.message); }
  const { devices = [], checkpoint, limits = {} } = state.system;
  $('machine').textContent = dotted([checkpoint?.name, ...devices.map(device => device.description || device.name)]);
  $('limits').textContent = capital(dotted([limits.upload_bytes && `up to ${size(limits.upload_bytes)}`,
    limits.seconds && `up to ${lasting(limits.seconds)} long`]));
  note($('problem'), '');
  buildOptions();
  drawOptions();
}

bind();
startDraft(newDraft());
load();
route();
