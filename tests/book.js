// What a browser finds on a page of the book: its width, controls that nobody sees, tables that stayed text, and words that are too faint
// in light or dark (WCAG 2, AA).
async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const root = document.documentElement;
  const found = { wide: root.scrollWidth, faint: {}, unseen: 0, raw: 0 };
  for (const e of document.querySelectorAll("article input")) found.unseen += !e.closest("details") && !e.getBoundingClientRect().width;
  for (const e of document.querySelectorAll("article p")) found.raw += /\|\s*:?---/.test(e.textContent);

  const parse = (colour) => {
    const m = colour.match(/[\d.]+/g).map(Number);
    return [m[0], m[1], m[2], m[3] ?? 1];
  };
  const luminance = (c) => {
    const [r, g, b] = c.map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3]));
  const known = new Map();
  const style = (e) => {
    if (!known.has(e)) {
      const s = getComputedStyle(e);
      known.set(e, {
        colour: s.color, back: parse(s.backgroundColor), picture: s.backgroundImage !== "none",
        size: parseFloat(s.fontSize), weight: +s.fontWeight, hidden: s.visibility === "hidden",
      });
    }
    return known.get(e);
  };
  const behind = (e) => {
    const layers = [];
    for (let a = e; a; a = a.parentElement) {
      const s = style(a);
      if (s.picture) return null;
      if (s.back[3] > 0) layers.push(s.back);
      if (s.back[3] >= 1) break;
    }
    return layers.reduceRight((below, c) => over(c, below), [255, 255, 255]);
  };

  const texts = new Set();
  const walk = document.createTreeWalker(document.querySelector("article, .bd-search-container, main"), NodeFilter.SHOW_TEXT);
  const not_prose = "script, style, svg, mjx-container, .headerlink, .visually-hidden";
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (walk.currentNode.data.trim() && !texts.has(e) && !e.closest(not_prose)) texts.add(e);
  }
  for (const theme of ["light", "dark"]) {
    root.dataset.theme = root.dataset.mode = theme;
    known.clear();
    const done = new Set();
    for (const e of texts) {
      const s = style(e), back = behind(e);
      const kind = [s.colour, back, s.size, s.weight].join();
      if (!back || s.hidden || done.has(kind)) continue;
      done.add(kind);
      const [a, b] = [luminance(over(parse(s.colour), back)), luminance(back)].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      const large = s.size >= 24 || (s.size >= 18.66 && s.weight >= 700);
      const what = `${theme} <${e.tagName.toLowerCase()} class="${e.className}"> ${e.textContent.trim().slice(0, 30)}`;
      if (ratio < (large ? 3 : 4.5)) found.faint[`${what} (${s.colour} on ${back.map(Math.round)})`] = ratio.toFixed(2);
    }
  }
  return found;
}
