// The whole state of the page. Views are drawn from it; nothing is read back from them.

export const state = {
  online: true, back: Promise.resolve(), // whether the server answers, and what waits until it does again
  system: {}, rows: [], presets: [],     // what the server says of itself, its settings and its presets
  files: new Map(),                      // File by id, null: there is none
  crowds: new Map(),                     // {id: job that found them, people} by a video's id
  draft: null,                           // the video that is being put together
  job: null, stop: null,                 // the job that is shown, and what ends following it
  view: { mode: 'divide', sound: 'result', split: 50, zoom: 1, x: 0.5, y: 0.5, offset: 0, source: true },
  history: { jobs: [], next: null, timer: 0, open: false },
};

/** Notifies the modules that the draft has changed. */
export const changed = () => { document.dispatchEvent(new Event('draft')); };
