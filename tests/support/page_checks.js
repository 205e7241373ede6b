// Accessibility problems of the page in its current state, for people with low vision, screen
// readers or keyboards only: a list of sentences. tests/page_test.lua evaluates this in the page.
(() => {
  const wrong = [];
  const seen = node => node.checkVisibility({ visibilityProperty: true }) && !node.closest('.unseen') && !node.closest('svg');
  const named = node => node.id ? '#' + node.id : `${node.tagName.toLowerCase()} "${node.textContent.trim().slice(0, 30)}"`;

  // ---- contrast: texts 4.5 (large ones 3), edges of fields 3 ----
  const colour = text => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => ({ r: top.r * top.a + below.r * (1 - top.a), g: top.g * top.a + below.g * (1 - top.a), b: top.b * top.a + below.b * (1 - top.a), a: 1 });
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  // The background of a node. Images can have any colour: half-transparent nodes on them are tested
  // on white and on black.
  const behind = (node, picture) => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) {
      const c = colour(getComputedStyle(n).backgroundColor);
      if (n.matches('.screen')) return layers.reduceRight((below, top) => over(top, below), picture);
      if (c.a > 0) layers.push(c);
      if (c.a === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), colour(getComputedStyle(document.body).backgroundColor));
  };
  const pictures = [{ r: 255, g: 255, b: 255 }, { r: 0, g: 0, b: 0 }];
  const enough = (node, paint, wanted, what) => {
    for (const picture of pictures) {
      const back = behind(node, picture), ratio = contrast(over(paint, back), back);
      if (ratio < wanted) return wrong.push(`${named(node)}: contrast of its ${what} is ${ratio.toFixed(2)}, less than ${wanted}`);
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !seen(node) || node.closest(':disabled') || node.closest('template, option')) continue;
    const style = getComputedStyle(node), size = parseFloat(style.fontSize);
    enough(node, colour(style.color), size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5, 'text');
  }
  for (const field of document.querySelectorAll('input, select')) {
    if (!seen(field) || field.matches('[type=range], [type=checkbox], [type=radio], [type=file]')) continue;
    enough(field.parentElement, colour(getComputedStyle(field).borderTopColor), 3, 'edge of a field');
    if (field.placeholder) enough(field, colour(getComputedStyle(field, '::placeholder').color), 4.5, 'placeholder');
  }

  // ---- structure ----
  const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
  for (const id of ids.filter((one, i) => ids.indexOf(one) !== i)) wrong.push(`the id ${id} is there twice`);
  for (const node of document.querySelectorAll('[aria-labelledby], [aria-describedby], [aria-controls], label[for]')) {
    for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for']) {
      for (const id of (node.getAttribute(name) || '').split(' ').filter(Boolean)) {
        if (!ids.includes(id)) wrong.push(`${named(node)}: ${name} names ${id}, which does not exist`);
      }
    }
  }
  for (const image of document.querySelectorAll('img:not([alt])')) wrong.push(`${named(image)} has no alt`);
  if ([...document.querySelectorAll('h1')].filter(seen).length !== 1) wrong.push('there is not exactly one h1');
  if (document.querySelector('[tabindex]:not([tabindex="0"], [tabindex="-1"])')) wrong.push('a tabindex changes the order');
  if (document.querySelector('[style*=":"][onclick], [onclick]')) wrong.push('there is a handler in an attribute');

  // ---- size: nothing beside the screen, nothing too small for a finger ----
  const wide = document.scrollingElement;
  if (wide.scrollWidth > wide.clientWidth) wrong.push(`the page is ${wide.scrollWidth - wide.clientWidth} pixels wider than the screen`);
  const least = matchMedia('(pointer: coarse)').matches ? 44 : 24;
  for (const node of document.querySelectorAll('button, a[href], select, input:not([type=range]), label.button, summary')) {
    if (!seen(node) || node.matches('.link, .unseen, p a, .card a')) continue;
    const { width, height } = (node.closest('.choices label, .switch, .person, .row .control') || node).getBoundingClientRect();
    if (Math.min(width, height) < least) wrong.push(`${named(node)} is ${Math.round(width)} x ${Math.round(height)}, less than ${least} pixels`);
  }
  return wrong;
})()
