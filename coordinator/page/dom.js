// Elements without markup text: whatever is shown is set as text, so nothing that Swarm says can become code.
const SVG = 'http://www.w3.org/2000/svg';

function build(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'value') node.value = value;
    else if (name === 'disabled') node.disabled = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);
export const s = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);
export const fill = (node, ...children) => node.replaceChildren(...children.flat(9).filter(Boolean));
export const tag = (text, kind) => h('span', { class: 'tag ' + (kind || '') }, text);

// A share with its number: never by colour alone.
export function bar(percent, high) {
  if (percent === null || percent === undefined) return h('span', { class: 'soft' }, '–');
  const inner = h('i');
  inner.style.width = Math.min(100, percent) + '%';
  return h('span', { class: 'bar' + (high && percent >= high ? ' high' : '') }, h('i', null, inner), h('span', null, percent + '%'));
}

// A table whose rows are kept by key: a second later only cells that say something else are touched.
// A column: { name, num, less, value: row -> sortable, key: row -> text that decides whether it changed, cell: row -> node or text }
export function table(caption, columns, keyOf, newestFirst) {
  let by = 0, down = Boolean(newestFirst), rows = [];
  const kept = new Map();
  const heads = columns.map((column, index) => h('th', { scope: 'col', class: css(column) },
    column.value ? h('button', { type: 'button', onclick: () => order(index) }, column.name) : column.name));
  const body = h('tbody');
  const empty = h('p', { class: 'empty' });
  const node = h('div', null, h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
    h('table', null, h('caption', { class: 'hidden' }, caption), h('thead', null, h('tr', null, heads)), body)), empty);
  function css(column) { return ((column.num ? 'num ' : '') + (column.less ? 'less ' : '') + (column.wrap ? 'wrap' : '')).trim() || null; }
  function order(index) {
    if (by === index) down = !down; else { by = index; down = Boolean(columns[index].num); }
    show(rows);
  }
  function show(all, none) {
    rows = all;
    const value = columns[by].value || keyOf;
    const sorted = [...rows].sort((one, other) => {
      const a = value(one) ?? -1, b = value(other) ?? -1;
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    });
    heads.forEach((head, index) => (index === by && columns[index].value
      ? head.setAttribute('aria-sort', down ? 'descending' : 'ascending') : head.removeAttribute('aria-sort')));
    const seen = new Set();
    let at = body.firstChild;
    for (const row of sorted) {
      const key = keyOf(row);
      seen.add(key);
      let line = kept.get(key);
      if (!line) {
        line = { tr: h('tr'), said: [] };
        line.cells = columns.map((column, index) => h(index ? 'td' : 'th', { class: css(column), scope: index ? null : 'row' }));
        line.tr.append(...line.cells);
        kept.set(key, line);
      }
      columns.forEach((column, index) => {
        const said = String(column.key ? column.key(row) : column.cell(row));
        if (line.said[index] === said) return;
        line.said[index] = said;
        line.cells[index].replaceChildren(column.cell(row));
      });
      if (line.tr === at) at = at.nextSibling; else body.insertBefore(line.tr, at);
    }
    for (const [key, line] of kept) if (!seen.has(key)) { line.tr.remove(); kept.delete(key); }
    empty.textContent = rows.length ? '' : none || 'Nothing to show.';
    empty.hidden = Boolean(rows.length);
  }
  return { node, show };
}

// A question with buttons; resolves with what was chosen, or null.
export function ask(title, content, buttons) {
  const dialog = document.getElementById('dialog');
  return new Promise((resolve) => {
    let answer = null;
    const close = (value) => { answer = value; dialog.close(); };
    fill(dialog, h('h2', { id: 'dialog-title' }, title), content,
      h('div', { class: 'buttons' }, buttons.map(([text, value, main]) =>
        h('button', { type: 'button', class: main ? null : 'quiet', onclick: () => close(typeof value === 'function' ? value() : value) }, text))));
    dialog.onkeydown = (event) => {
      if (event.key !== 'Enter' || event.target.tagName !== 'INPUT') return;
      // Else the key would also press the button that gets the focus back.
      event.preventDefault();
      const main = buttons.find(([, , isMain]) => isMain);
      if (main) close(typeof main[1] === 'function' ? main[1]() : main[1]);
    };
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
  });
}

export const ms = (value) => value === null || value === undefined ? '–'
  : value < 1000 ? Math.round(value) + ' ms' : value < 60000 ? (value / 1000).toFixed(1) + ' s' : ago(value);
export function ago(value) {
  if (value === null || value === undefined) return '–';
  const seconds = Math.floor(value / 1000);
  if (seconds < 60) return seconds + ' s';
  if (seconds < 3600) return Math.floor(seconds / 60) + ' min ' + (seconds % 60) + ' s';
  return Math.floor(seconds / 3600) + ' h ' + Math.floor(seconds % 3600 / 60) + ' min';
}
export const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false });
export const cores = (millis) => (millis / 1000).toFixed(millis % 1000 ? 1 : 0);
export const bytes = (value) => value >= 2 ** 30 ? (value / 2 ** 30).toFixed(1) + ' GiB' : Math.round(value / 2 ** 20) + ' MiB';
