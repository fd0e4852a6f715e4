// Which replicas are where: services down, nodes across. The count is text; colour says how hot, in one hue from light to
// dark; a frame and "!" say that an alert stands. Beyond 2,000 cells only those in sight are made, and a canvas shows all.
import { h, fill } from './dom.js';
import { getPlacement, state } from './api.js';

const MANY = 2000, ROW = 30;
const level = (percent) => percent === null ? 0 : percent < 20 ? 1 : percent < 40 ? 2 : percent < 60 ? 3 : percent < 80 ? 4 : 5;

export function open(root) {
  const filter = h('input', { type: 'search', 'aria-label': 'Only services whose name holds', placeholder: 'Filter services', oninput: () => draw(true) });
  const count = h('span', { class: 'soft', role: 'status' });
  const canvas = h('canvas', { role: 'img', hidden: true });
  const grid = h('div', { class: 'heat', role: 'grid', 'aria-label': 'Replicas by service and node', tabindex: -1 });
  const says = h('p', { class: 'soft', role: 'status' }, ' ');
  fill(root, h('h1', null, 'Map'), h('section', { class: 'card' },
    h('div', { class: 'tools' }, filter, count), canvas, grid, says,
    h('ul', { class: 'legend' }, ['no figures', 'below 20% CPU', '20%', '40%', '60%', '80% and more'].map((text, index) => h('li', null, h('i', { class: 'h' + index }), text)),
      h('li', null, h('i', { class: 'cell alarm' }), '! an alert stands'))));

  let data = null, rows = [], cells = new Map(), at = [0, 0], timer = 0, closed = false, key = '';
  const columnWidth = () => innerWidth <= 720 ? 50 : 58;
  const nameWidth = () => innerWidth <= 720 ? 116 : 168;

  async function load() {
    try {
      const news = await getPlacement();
      if (closed) return;
      if (news !== data) {
        data = news;
        cells = new Map(data.cells.map((cell) => [cell[1] * data.nodes.length + cell[0], cell]));
        draw(false);
      }
    } catch { /* the head of the page says it */ }
    if (!closed) timer = setTimeout(load, document.hidden ? 5000 : 2000);
  }

  const find = (row, column) => cells.get(rows[row] * data.nodes.length + column);
  function words(row, column) {
    const cell = find(row, column), where = data.services[rows[row]][1] + ' on ' + data.nodes[column][1];
    if (!cell) return where + ': none';
    return where + ': ' + cell[3] + ' of ' + cell[2] + ' running' + (cell[4] === null ? '' : ', hottest at ' + cell[4] + '% CPU') + (cell[5] ? ', ' + cell[5] + ' alerts' : '');
  }
  function make(row, column) {
    const cell = find(row, column);
    const text = cell ? (cell[3] === cell[2] ? String(cell[2]) : cell[3] + '/' + cell[2]) + (cell[5] ? ' !' : '') : '';
    return h('div', { class: 'cell ' + (cell ? 'h' + level(cell[4]) + (cell[5] ? ' alarm' : '') : ''), role: 'gridcell', 'aria-label': words(row, column),
      'aria-colindex': column + 2, 'data-at': row + ' ' + column, tabindex: row === at[0] && column === at[1] ? 0 : -1 }, text);
  }
  const name = (row) => h('div', { class: 'head name', role: 'rowheader', title: data.services[rows[row]][1] }, h('a', { href: '#/service/' + encodeURIComponent(data.services[rows[row]][1]), tabindex: -1 }, data.services[rows[row]][1]));

  function draw(filtered) {
    if (!data) return;
    const words = filter.value.trim().toLowerCase();
    rows = data.services.map((_, index) => index).filter((index) => data.services[index][1].toLowerCase().includes(words));
    if (filtered) { at = [0, 0]; grid.scrollTop = 0; }
    at = [Math.min(at[0], Math.max(0, rows.length - 1)), Math.min(at[1], Math.max(0, data.nodes.length - 1))];
    count.textContent = rows.length + ' services on ' + data.nodes.length + ' nodes, ' + data.cells.reduce((all, cell) => all + cell[2], 0) + ' replicas';
    grid.setAttribute('aria-rowcount', rows.length + 1);
    grid.setAttribute('aria-colcount', data.nodes.length + 1);
    key = '';
    const many = rows.length * data.nodes.length > MANY;
    canvas.hidden = !many;
    if (many) paint();
    sight();
  }

  // The rows and columns in sight, and a few around them.
  function sight() {
    if (!data) return;
    const width = columnWidth(), left = nameWidth(), columns = data.nodes.length;
    const all = rows.length * columns <= MANY;
    const first = all ? 0 : Math.max(0, Math.floor(grid.scrollTop / ROW) - 4);
    const last = all ? rows.length : Math.min(rows.length, first + Math.ceil(grid.clientHeight / ROW || 20) + 8);
    const from = all ? 0 : Math.max(0, Math.floor(grid.scrollLeft / width) - 3);
    const to = all ? columns : Math.min(columns, from + Math.ceil((grid.clientWidth - left) / width || 20) + 6);
    const now = [first, last, from, to, width].join();
    if (now === key) return;
    key = now;
    const held = grid.contains(document.activeElement) && document.activeElement.dataset.at;
    const gap = (wide) => { const node = h('div'); node.style.flex = 'none'; node.style.width = wide + 'px'; return node; };
    const total = (node) => { node.style.width = left + columns * width + 'px'; return node; };
    const heads = total(h('div', { role: 'row', class: 'heads', 'aria-rowindex': 1 }, h('div', { class: 'head name', role: 'columnheader' }, 'Service'), gap(from * width),
      data.nodes.slice(from, to).map(([, host]) => h('div', { class: 'head', role: 'columnheader', title: host }, host))));
    const lines = [];
    for (let row = first; row < last; row++) {
      const line = total(h('div', { role: 'row', class: all ? null : 'placed', 'aria-rowindex': row + 2 }, name(row), gap(from * width)));
      for (let column = from; column < to; column++) line.append(make(row, column));
      if (!all) line.style.top = row * ROW + 'px';
      lines.push(line);
    }
    const space = total(h('div', { class: 'space', role: 'rowgroup' }, lines));
    if (!all) space.style.height = rows.length * ROW + 'px';
    fill(grid, heads, rows.length ? space : h('div', { class: 'empty', role: 'row' }, h('div', { role: 'gridcell' }, 'No service is called so.')));
    if (held) focus(false);
  }

  function focus(scroll) {
    if (scroll) {
      const width = columnWidth(), top = at[0] * ROW, left = at[1] * width, view = grid.clientWidth - nameWidth();
      if (top < grid.scrollTop) grid.scrollTop = top; else if (top + 2 * ROW > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + 2 * ROW - grid.clientHeight;
      if (left < grid.scrollLeft) grid.scrollLeft = left; else if (left + width > grid.scrollLeft + view) grid.scrollLeft = left + width - view;
      key = '';
      sight();
    }
    const node = grid.querySelector('[data-at="' + at.join(' ') + '"]');
    if (!node) return;
    grid.querySelector('[role=gridcell][tabindex="0"]')?.setAttribute('tabindex', -1);
    node.setAttribute('tabindex', 0);
    node.focus({ preventScroll: true });
    says.textContent = words(...at);
  }

  grid.addEventListener('scroll', () => requestAnimationFrame(sight), { passive: true });
  grid.addEventListener('keydown', (event) => {
    const page = Math.max(1, Math.floor(grid.clientHeight / ROW) - 2), columns = data?.nodes.length || 1;
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-page, 0], PageDown: [page, 0], Home: [0, -columns], End: [0, columns] }[event.key];
    if (event.key === 'Enter' && rows.length) location.hash = '#/service/' + encodeURIComponent(data.services[rows[at[0]]][1]);
    if (!move || !rows.length) return;
    event.preventDefault();
    at = [Math.min(rows.length - 1, Math.max(0, at[0] + move[0])), Math.min(columns - 1, Math.max(0, at[1] + move[1]))];
    focus(true);
  });
  grid.addEventListener('click', (event) => {
    const spot = event.target.closest('[data-at]')?.dataset.at;
    if (spot) { at = spot.split(' ').map(Number); focus(false); }
  });

  function paint() {
    const width = Math.max(1, canvas.clientWidth || grid.clientWidth), scale = devicePixelRatio || 1, columns = data.nodes.length;
    const tall = Math.max(1, Math.min(6, 260 / rows.length)), wide = width / columns;
    canvas.style.height = Math.ceil(tall * rows.length) + 'px';
    canvas.width = width * scale;
    canvas.height = Math.ceil(tall * rows.length) * scale;
    const pen = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
    const colours = [0, 1, 2, 3, 4, 5].map((step) => style.getPropertyValue('--heat' + step)), alarm = style.getPropertyValue('--bad');
    pen.scale(scale, scale);
    rows.forEach((service, row) => {
      for (let column = 0; column < columns; column++) {
        const cell = cells.get(service * columns + column);
        if (!cell) continue;
        pen.fillStyle = cell[5] ? alarm : colours[level(cell[4])];
        pen.fillRect(column * wide, row * tall, Math.max(1, wide - .5), Math.max(1, tall - (tall > 3 ? .5 : 0)));
      }
    });
    canvas.setAttribute('aria-label', 'All ' + rows.length + ' services by ' + columns + ' nodes; the table below has the same in text');
    canvas.onclick = (event) => {
      const box = canvas.getBoundingClientRect();
      at = [Math.min(rows.length - 1, Math.floor((event.clientY - box.top) / tall)), Math.min(columns - 1, Math.floor((event.clientX - box.left) / wide))];
      focus(true);
    };
  }
  const resized = () => { key = ''; draw(false); };
  addEventListener('resize', resized);
  load();
  return { close() { closed = true; clearTimeout(timer); removeEventListener('resize', resized); }, update(what) { if (what === 'connection' && !state.gone && !data) { clearTimeout(timer); load(); } } };
}
