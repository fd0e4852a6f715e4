// What was alerted, decided and done, beside each other on one axis, and as sentences below it.
import { h, s, fill, tag, table, clock } from './dom.js';
import { state } from './api.js';
import { link } from './overview.js';

const LANES = [['alert', 'Alerts'], ['decision', 'Decisions'], ['refusal', 'Refusals'], ['action', 'Steps'], ['operator', 'Operators']];
export const KINDS = { alert: 'warn', decision: 'ok', refusal: 'bad', action: 'note', operator: 'note', lease: '', notice: 'warn' };
const host = (node) => state.overview?.nodes.find((row) => row.node === node)?.hostname || node?.slice(0, 12);

export function entryTable(caption) {
  return table(caption, [
    { name: 'Time', value: (row) => row.id, cell: (row) => clock(row.at_ms) },
    { name: 'Kind', value: (row) => row.kind, cell: (row) => tag(row.kind, KINDS[row.kind]), key: (row) => row.kind },
    { name: 'Service', less: 1, value: (row) => row.service_name || '', key: (row) => row.service_name, cell: (row) => row.service_name ? link('service', row.service_name) : '' },
    { name: 'Node', less: 1, value: (row) => row.node || '', key: (row) => row.node + row.target, cell: (row) => row.node ? host(row.node) + (row.target ? ' → ' + host(row.target) : '') : '' },
    { name: 'What', wrap: 1, value: (row) => row.code, key: (row) => row.text, cell: (row) => h('span', null, row.text, row.otherwise ? h('span', { class: 'soft' }, ' Otherwise: ' + row.otherwise) : null) },
  ], (row) => row.id, true);
}

export function open(root) {
  const minutes = h('select', { 'aria-label': 'How far back', onchange: update }, [[5, 'last 5 minutes'], [15, 'last 15 minutes'], [60, 'last hour'], [1440, 'last day']].map(([value, text]) => h('option', { value, selected: value === 15 }, text)));
  const kind = h('select', { 'aria-label': 'Which kinds', onchange: update }, h('option', { value: '' }, 'All kinds'), Object.keys(KINDS).map((word) => h('option', { value: word }, word)));
  const filter = h('input', { type: 'search', placeholder: 'Filter', 'aria-label': 'Only entries that hold', oninput: update });
  const chart = h('div'), rows = entryTable('Journal entries, newest first');
  fill(root, h('h1', null, 'Timeline'), h('section', { class: 'card' }, h('div', { class: 'tools' }, minutes, kind, filter), chart), h('section', { class: 'card' }, h('h2', null, 'Journal'), rows.node));

  function update() {
    const until = state.overview ? state.overview.at_ms + Date.now() - state.at : Date.now(), span = minutes.value * 60000;
    const words = filter.value.trim().toLowerCase();
    const wanted = state.entries.filter((entry) => entry.at_ms > until - span && (!kind.value || entry.kind === kind.value)
      && (!words || (entry.text + ' ' + (entry.service_name || '') + ' ' + entry.code).toLowerCase().includes(words)));
    const wide = 1000, top = 8, tall = 30, left = 86;
    const x = (at) => left + (wide - left - 10) * (1 - (until - at) / span);
    const bottom = top + LANES.length * tall;
    const ticks = [0, .25, .5, .75, 1].map((part) => until - span * (1 - part));
    fill(chart, s('svg', { class: 'chart', viewBox: '0 0 ' + wide + ' ' + (bottom + 22), role: 'img', 'aria-label': wanted.length + ' journal entries by kind and time; the table below has them as text' },
      LANES.map(([, name], lane) => [s('rect', { class: 'lane', x: left, y: top + lane * tall + 2, width: wide - left - 10, height: tall - 4, rx: 4 }),
        s('text', { x: 0, y: top + lane * tall + 19 }, name)]),
      ticks.map((at, index) => [s('line', { class: 'axis', x1: x(at), x2: x(at), y1: top, y2: bottom }),
        s('text', { x: x(at), y: bottom + 15, 'text-anchor': index === 4 ? 'end' : 'middle' }, clock(at))]),
      wanted.map((entry) => {
        const lane = LANES.findIndex(([word]) => word === entry.kind);
        return lane < 0 ? null : s('circle', { class: 'mark k-' + entry.kind, cx: x(entry.at_ms), cy: top + lane * tall + tall / 2, r: 5 }, s('title', null, clock(entry.at_ms) + ' ' + entry.text));
      })));
    const newest = wanted.slice(-200).reverse();
    rows.show(newest, state.entries.length ? 'Nothing happened then.' : 'The journal is empty, or was not read yet.');
  }
  return { update: (what) => what !== 'connection' && update() };
}
