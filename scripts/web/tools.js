// Shared by all parts of the page: elements, texts, messages. It does not depend on the server.

export const $ = id => document.getElementById(id);

export const show = (node, visible) => { node.hidden = !visible; };

/** Shows a sentence in an element; without a sentence the element is hidden. */
export function note(node, text) {
  node.textContent = text || '';
  show(node, !!text);
}

/** An element with properties, attributes (names with a dash) and children; strings become text nodes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role') node.setAttribute(name, value); else node[name] = value;
  }
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', '#i-' + name);
  svg.append(use);
  return svg;
}

export const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
export const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
export const capital = text => text.charAt(0).toUpperCase() + text.slice(1);
export const dotted = list => list.filter(Boolean).join(' · ');

/** Formats 22 as 22nd. */
export const ordinal = n => n + (n % 100 > 10 && n % 100 < 14 ? 'th' : ['th', 'st', 'nd', 'rd'][n % 10] || 'th');

const SPACE = '\u00a0'; // between a number and its unit: no line ends there

/** Formats 75.3 as 1:15. */
export function clock(seconds) {
  const whole = Math.floor(seconds + 1e-3), h = Math.floor(whole / 3600), two = n => String(n).padStart(2, '0');
  return (h ? h + ':' + two(Math.floor(whole / 60) % 60) : Math.floor(whole / 60)) + ':' + two(whole % 60);
}

/** Formats 75.3 as '1 min 15 s'. */
export function lasting(seconds) {
  if (seconds < 10) return +seconds.toFixed(1) + SPACE + 's';
  const s = Math.round(seconds), m = Math.floor(s / 60);
  const parts = m >= 60 ? [Math.floor(m / 60), 'h', m % 60, 'min'] : m ? [m, 'min', ...s % 60 ? [s % 60, 's'] : []] : [s, 's'];
  return parts.join(SPACE);
}

/** Formats a size as 400 × 300, in pixels. */
export const extent = ({ width, height }) => [width, '×', height].join(SPACE);

export function size(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let k = 0;
  while (bytes >= 1000 && k < 4) { bytes /= 1000; k++; }
  return (k === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)) + SPACE + units[k];
}

export function ago(time) {
  const seconds = (Date.now() - new Date(time)) / 1000;
  if (seconds < 60) return 'just now';
  if (seconds < 3600) return Math.floor(seconds / 60) + ' min ago';
  if (seconds < 86400) return Math.floor(seconds / 3600) + ' h ago';
  return new Date(time).toLocaleDateString(undefined, { day: 'numeric', month: 'short', year: 'numeric' });
}

/** Announces an event to screen readers; a repeated sentence only once. */
export function say(text) { if ($('say').textContent !== text) $('say').textContent = text; }

/** Asks before something is deleted. Resolves to whether the user agrees. */
export function confirmed(title, text) {
  const dialog = $('confirm');
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

/** Sets the aspect ratio of a frame to that of its content. */
export const shape = (screen, { width, height }) => screen.style.setProperty('--ratio', width / height);

/** Calls fn if the browser cannot show a video, even if it can play its sound. */
export function whenUnplayable(video, fn) {
  video.addEventListener('error', () => { if (video.getAttribute('src')) fn(); });
  video.addEventListener('loadedmetadata', () => { if (!video.videoWidth) fn(); });
}
