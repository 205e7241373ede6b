// A new video: its settings, from the server's schema, and its presets.

import { state, changed } from './state.js';
import { $, show, note, el, capital } from './tools.js';

export const OWN = ['face']; // settings that have their own place on the page
const HEADINGS = {
  input: 'Input', load: 'Model', find: 'Faces and sound', sample: 'Steps', paste: 'Mouth in the picture', output: 'Result',
  encode: 'File',
};
export const titleOf = row => capital(row.name.replaceAll('_', ' '));
export const presetOf = name => state.presets.find(preset => preset.name === name);

/** A row's value if the user sets nothing: the preset's, or the default; undefined: the checkpoint's. */
const baseOf = row => presetOf(state.draft.preset)?.settings[row.name] ?? row.default ?? undefined;

export const inWords = value => value === true ? 'on' : value === false ? 'off' : String(value);

/** An element with a sentence, whose words in backticks are code. */
const marked = text => text.split('`').map((piece, i) => i % 2 ? el('code', {}, piece) : piece);

function listOf(values) {
  const options = values.map(value => el('option', { value: String(value) }, inWords(value)));
  return el('select', {}, el('option', { value: '' }, 'Default'), ...options);
}

/** A text that may be any, with the most usual values to choose from. */
function textOf(name, examples) {
  const field = el('input', { type: 'text', autocomplete: 'off', spellcheck: false });
  if (!examples?.length) return [field];
  field.setAttribute('list', `examples-${name}`);
  return [field, el('datalist', { id: `examples-${name}` }, ...examples.map(value => el('option', { value })))];
}

/** The input of a row, and what belongs to it. A flag without a default can be unset, so it is a list. */
function fieldsOf({ name, type, choices, examples, minimum, maximum, default: standard }) {
  if (!choices?.length && !['flag', 'int', 'number'].includes(type)) return textOf(name, examples);
  return [fieldOf({ type, choices, minimum, maximum, default: standard })];
}

function fieldOf({ type, choices, minimum, maximum, default: standard }) {
  if (choices?.length) return listOf(choices);
  if (type === 'flag' && typeof standard !== 'boolean') return listOf([true, false]);
  if (type === 'flag') return el('input', { type: 'checkbox', role: 'switch' });
  const whole = type === 'int' && !(minimum < 0); // phones' integer keyboards have no minus
  const field = el('input', { type: 'number', step: type === 'int' ? 1 : 'any', inputMode: whole ? 'numeric' : 'decimal' });
  if (minimum != null) field.min = minimum;
  if (maximum != null) field.max = maximum;
  return field;
}

/** The value of an input; undefined if it is empty; throws an error if it is invalid. */
export function read(row, field) {
  const { type, minimum, maximum } = row, text = field.value.trim(), value = Number(text);
  const refuse = what => { throw new Error(`${titleOf(row)}: ${what}.`); };
  if (field.type === 'checkbox') return field.checked;
  if (field.validity.badInput) refuse('a number is wanted');
  if (text === '') return undefined;
  if (type === 'flag') return text === 'true';
  if (field.type !== 'number') return text;
  if (minimum != null && value < minimum) refuse(`${text} is less than ${minimum}`);
  if (maximum != null && value > maximum) refuse(`${text} is more than ${maximum}`);
  if (type === 'int' && !Number.isInteger(value)) refuse(`${text} is not a whole number`);
  return value;
}

/** A button that opens a longer text about a setting. */
function moreAbout(row, doc) {
  const more = el('button', { type: 'button', className: 'link', 'aria-label': `More about ${titleOf(row)}` }, 'More');
  const draw = () => more.setAttribute('aria-expanded', !doc.hidden);
  more.setAttribute('aria-controls', doc.id);
  more.onclick = () => {
    show(doc, doc.hidden);
    draw();
  };
  draw();
  return more;
}

/** A setting: its input, its help, its error. draw() shows the value of the draft, refuse(text) shows an error. */
function rowView(row) {
  const title = titleOf(row), fields = fieldsOf(row), [field] = fields, standard = el('span');
  const label = el('label', { htmlFor: `set-${row.name}` }, title);
  const help = el('p', { className: 'hint', id: `help-${row.name}` }, ...marked(capital(row.help) + '. '), standard);
  const problem = el('p', { className: 'problem', id: `problem-${row.name}`, role: 'alert', hidden: true });
  const undo = el('button', { type: 'button', className: 'link', 'aria-label': `Reset ${title}` }, 'Reset');
  const about = el('div', { className: 'about' }, label, ' ', undo), view = el('div', { className: 'row' }, about);
  if (row.unit) label.append(el('span', { className: 'unit' }, ` (${row.unit})`));
  view.append(el('div', { className: 'control' }, ...fields), help);
  if (row.doc && row.doc !== row.help) {
    const doc = el('p', { className: 'doc', id: `doc-${row.name}`, hidden: true }, ...marked(capital(row.doc) + '.'));
    help.append(moreAbout(row, doc));
    view.append(doc);
  }
  view.append(problem);
  field.id = `set-${row.name}`;
  field.setAttribute('aria-describedby', `${help.id} ${problem.id}`);
  field.oninput = () => row.refuse('');
  field.onchange = () => accept(row);
  field.onkeydown = event => { // Enter ends the input; it starts no job of minutes
    if (event.key !== 'Enter') return;
    event.preventDefault();
    if (field.tagName === 'INPUT' && field.type !== 'checkbox') accept(row);
  };
  undo.onclick = () => {
    set(row, undefined);
    field.focus();
  };
  row.refuse = text => {
    note(problem, text);
    field.setAttribute('aria-invalid', !!text);
  };
  row.draw = () => {
    const value = state.draft.values[row.name], base = baseOf(row), said = base === undefined ? row.default_text : inWords(base);
    if (field.type === 'checkbox') field.checked = value ?? base; else field.value = value === undefined ? '' : String(value);
    if (field.tagName === 'INPUT') field.placeholder = base !== undefined ? inWords(base) : row.examples && row.default_text || '';
    standard.textContent = said && field.type !== 'checkbox' ? `Default: ${said}. ` : '';
    show(undo, value !== undefined);
    row.refuse('');
  };
  return Object.assign(row, { view, field }).view;
}

function accept(row) {
  try { set(row, read(row, row.field)); } catch (error) { row.refuse(error.message); }
}

/** Writes a value into the draft; undefined or the default removes it. */
function set(row, value) {
  const values = state.draft.values;
  if (value === undefined || value === baseOf(row)) delete values[row.name]; else values[row.name] = value;
  row.draw();
  drawCount();
  if (row.name === 'start' || row.name === 'duration') state.draft.pieceChanged();
}

function drawCount() {
  const count = state.rows.filter(row => row.group !== 'simple' && state.draft.values[row.name] !== undefined).length;
  $('all-title').textContent = count ? `All settings (${count} changed)` : 'All settings';
  show($('reset'), Object.keys(state.draft.values).length > 0);
  changed();
}

/** Builds the inputs after the server has sent its settings. */
export function buildOptions() {
  const shown = state.rows.filter(row => !OWN.includes(row.name));
  const advanced = shown.filter(row => row.group !== 'simple');
  $('simple').replaceChildren(...shown.filter(row => row.group === 'simple').map(rowView));
  const stages = new Map(advanced.map(row => [row.stage, []]));
  for (const row of advanced) stages.get(row.stage).push(rowView(row));
  $('advanced').replaceChildren(...[...stages].map(([stage, views]) =>
    el('div', {}, el('h3', {}, HEADINGS[stage] || capital(stage || 'Others')), el('div', { className: 'rows' }, ...views))));
  show($('all'), advanced.length > 0);
  show($('presets-part'), state.presets.length > 0);
  $('presets').replaceChildren(...['', ...state.presets.map(preset => preset.name)].map(name => {
    const input = el('input', { type: 'radio', name: 'preset', value: name });
    input.onchange = () => {
      state.draft.preset = name;
      drawOptions();
    };
    return el('label', {}, input, name ? capital(name) : 'Default');
  }));
}

/** Resets all settings. */
export function resetOptions() {
  for (const row of state.rows) if (state.draft.values[row.name] !== undefined) set(row, undefined);
}

export function drawOptions() {
  const { preset } = state.draft;
  for (const input of $('presets').querySelectorAll('input')) input.checked = input.value === preset;
  $('preset-help').textContent = capital(presetOf(preset)?.help || "the model's own settings") + '.';
  note($('preset-problem'), '');
  for (const row of state.rows) row.draw?.();
  drawCount();
}

/** Shows the settings whose name or help contains a word. */
export function find() {
  const word = $('find').value.trim().toLowerCase();
  let any = false;
  for (const group of $('advanced').children) {
    const rows = [...group.querySelectorAll('.row')];
    for (const row of rows) show(row, !word || row.textContent.toLowerCase().includes(word));
    show(group, rows.some(row => !row.hidden));
    any ||= !group.hidden;
  }
  show($('find-none'), !any);
}
