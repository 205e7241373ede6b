// Where the focus is, and whether it is visible: {at, shown}. tests/page_test.lua evaluates this in
// the page.
(() => {
  const node = document.activeElement;
  if (!node || node === document.body) return { at: '', shown: true };
  const drawn = [node, node.closest('label'), node.closest('.card')].filter(Boolean).some(one => {
    const { outlineStyle, outlineWidth } = getComputedStyle(one), { width, height } = one.getBoundingClientRect();
    return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 && width > 4 && height > 4;
  });
  const at = node.id || node.getAttribute('aria-label') || node.textContent.trim().slice(0, 30);
  return { at, shown: drawn || node.tagName === 'VIDEO', name: node.name || '' };
})()
