// Earlier jobs: a card for each, the newest first.

import { state } from './state.js';
import { $, show, note, el, icon, clamp, dotted, lasting, ago } from './tools.js';
import { call, ended, fileOf } from './server.js';
import { STATES, nameOf, shareOf, remove } from './job.js';

/** Fetches the newest jobs, or those before a given one. */
export async function openHistory(after) {
  const history = state.history;
  clearTimeout(history.timer);
  history.open = true;
  note($('history-problem'), '');
  try {
    const limit = after ? 24 : clamp(history.jobs.length, 24, 200);
    const { jobs, next } = await call('GET', `v1/jobs?limit=${limit}${after ? `&after=${after}` : ''}`);
    Object.assign(history, { jobs: after ? history.jobs.concat(jobs) : jobs, next });
    await drawHistory();
  } catch (problem) { note($('history-problem'), problem.message); }
  if (!history.open) return;
  const busy = history.jobs.some(job => !ended(job));
  history.timer = setTimeout(() => { if (!document.hidden) openHistory(); }, busy ? 2000 : 15000);
}

async function drawHistory() {
  const made = state.history.jobs.filter(job => job.kind !== 'faces');
  const old = new Map([...$('cards').children].map(card => [card.dataset.id, card]));
  const names = await Promise.all(made.map(async job => nameOf(await fileOf(job.video))));
  const cards = made.map((job, i) => {
    const card = old.get(job.id);
    return card?.dataset.state === job.state && job.state !== 'running' ? card : jobCard(job, names[i]);
  });
  const focus = document.activeElement?.closest('.card')?.dataset.id;
  $('cards').replaceChildren(...cards);
  if (focus) cards.find(card => card.dataset.id === focus)?.querySelector('a').focus();
  show($('none'), !made.length && !state.history.next);
  show($('more'), !!state.history.next);
}

/** The newest frame of a job, or an icon if there is none. */
function thumbOf(job) {
  const thumb = el('div', { className: 'thumb' }, icon('film'));
  if (job.state !== 'done' && !job.progress?.frames) return thumb;
  const picture = el('img', { src: `v1/jobs/${job.id}/preview?n=${job.progress?.frames || 0}`, alt: '', loading: 'lazy' });
  picture.onerror = () => picture.replaceWith(icon('film'));
  thumb.replaceChildren(picture);
  return thumb;
}

function deleteButton(job, name) {
  const button = el('button', { type: 'button', className: 'button quiet danger', 'aria-label': `Delete ${name}` }, 'Delete');
  button.onclick = async () => {
    if (!await remove(job, 'history-problem')) return;
    openHistory();
    $('history-title').focus();
  };
  return button;
}

function jobCard(job, name) {
  const share = shareOf(job), percent = share === undefined ? '' : `${Math.floor(100 * share)} %`;
  const facts = dotted([job.kind === 'upscale' && 'Enlarged', job.result && lasting(job.result.seconds), ago(job.created)]);
  const text = el('div', { className: 'text' }, el('a', { href: '#job/' + job.id }, name), el('p', { className: 'hint' }, facts));
  const how = el('span', { className: 'state', 'data-state': job.state }, STATES[job.state]);
  const last = ended(job) ? deleteButton(job, name) : el('span', { className: 'hint time' }, percent);
  const card = el('li', { className: 'card' }, thumbOf(job), text, el('div', { className: 'spread' }, how, last));
  Object.assign(card.dataset, { id: job.id, state: job.state });
  return card;
}

export function closeHistory() {
  clearTimeout(state.history.timer);
  state.history.open = false;
}
