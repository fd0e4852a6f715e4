// Actions step by step: how long each step took, and from when on the new replica served.
import { h, s, fill, tag, ms, clock } from './dom.js';
import { get, state } from './api.js';
import { link } from './overview.js';

const host = (node) => state.overview?.nodes.find((row) => row.node === node)?.hostname || node?.slice(0, 12) || '?';
const words = (code) => code.replaceAll('_', ' ');

// The steps as bars on one axis, one below the other.
function chart(row) {
  const steps = row.steps, wide = 820, left = 170, line = 22;
  const end = Math.max(1, ...steps.map((step) => step.after_ms), row.ended_at_ms ? row.ended_at_ms - row.started_at_ms : Date.now() - state.at + (state.overview?.at_ms || 0) - row.started_at_ms);
  const x = (after) => left + (wide - left - 96) * after / end;
  const serves = steps.find((step) => /healthy|settled|successor_healthy/.test(step.code))?.after_ms;
  const stops = steps.find((step) => /remove|removed|victim_gone|old_gone|drained/.test(step.code))?.after_ms;
  const undone = row.outcome === 'undone';
  const lanes = [
    ['old' + (row.source ? ' on ' + host(row.source) : ''), 0, stops ?? end, 'seg-old'],
    ['new' + (row.target ? ' on ' + host(row.target) : ''), serves ?? end, end, undone ? 'seg-bad' : 'seg-new'],
  ];
  const isMove = row.what === 'migrate' || row.what === 'rebalance';
  const top = isMove ? 2 * line + 10 : 0, tall = top + steps.length * line + 22;
  return s('svg', { class: 'chart', viewBox: '0 0 ' + wide + ' ' + tall, role: 'img', 'aria-label': 'Steps of this action; the list below has them as text' },
    isMove ? lanes.map(([name, from, to, kind], index) => [
      s('text', { class: 'strong', x: 0, y: index * line + 15 }, name),
      s('rect', { class: 'seg-wait', x: x(0), y: index * line + 4, width: x(end) - x(0), height: 14, rx: 4 }),
      to > from ? s('rect', { class: kind, x: x(from), y: index * line + 4, width: Math.max(2, x(to) - x(from)), height: 14, rx: 4 }) : null]) : null,
    steps.map((step, index) => {
      const from = index ? steps[index - 1].after_ms : 0;
      return [s('text', { x: 0, y: top + index * line + 15 }, words(step.code).slice(0, 28)),
        s('rect', { class: /undone|failed|gave_up/.test(step.code) ? 'seg-bad' : 'seg-new', x: x(from), y: top + index * line + 5, width: Math.max(2, x(step.after_ms) - x(from)), height: 12, rx: 3 }),
        s('text', { x: Math.max(x(step.after_ms), x(from) + 2) + 6, y: top + index * line + 15 }, ms(step.after_ms - from))];
    }),
    s('text', { x: left, y: tall - 4 }, '0'), s('text', { x: x(end), y: tall - 4, 'text-anchor': 'middle' }, ms(end)));
}

export function open(root, { rest }) {
  const list = h('div'), detail = h('div');
  let rows = [], chosen = rest?.[0] || null, timer = 0, closed = false, said = '';
  fill(root, h('h1', null, 'Actions'), h('div', { class: 'two aside' }, h('section', { class: 'card' }, h('h2', null, 'Newest first'), list), h('section', { class: 'card' }, detail)));
  async function load() {
    clearTimeout(timer);
    try { rows = await get('history?limit=40'); if (!closed) draw(); } catch { /* the head of the page says it */ }
    if (!closed) timer = setTimeout(load, 4000);
  }
  function draw() {
    const row = rows.find((one) => one.action === chosen) || rows[0];
    const key = JSON.stringify([rows.map((one) => [one.action, one.outcome, one.steps.length]), row?.action, row?.outcome === 'running' && state.at]);
    if (key === said) return;
    said = key;
    const held = document.activeElement?.dataset?.action;
    fill(list, rows.length ? h('ul', { class: 'plain' }, rows.map((one) => h('li', null,
      h('a', { href: '#/actions/' + one.action, 'data-action': one.action, 'aria-current': one === row ? 'true' : null }, clock(one.started_at_ms) + ' ' + words(one.what || 'action') + ' ' + (one.service_name || host(one.source))),
      ' ', tag(one.outcome, one.outcome === 'done' ? 'ok' : one.outcome === 'undone' ? 'warn' : 'note'),
      one.mttr_ms ? h('span', { class: 'soft' }, ' MTTR ' + ms(one.mttr_ms)) : null))) : h('p', { class: 'empty' }, 'Nothing was done yet.'));
    if (held) list.querySelector('[data-action="' + CSS.escape(held) + '"]')?.focus();
    if (!row) { fill(detail, h('h2', null, 'Steps'), h('p', { class: 'empty' }, 'A migration shows here while it runs.')); return; }
    const took = (row.ended_at_ms || row.started_at_ms + (row.steps.at(-1)?.after_ms || 0)) - row.started_at_ms;
    fill(detail, h('h2', null, words(row.what || 'action') + ' ', row.service_name ? link('service', row.service_name) : '', row.source ? ' ' + host(row.source) + (row.target ? ' → ' + host(row.target) : '') : '', ' ', tag(row.outcome, row.outcome === 'done' ? 'ok' : row.outcome === 'undone' ? 'warn' : 'note')),
      h('p', null, row.reason), chart(row),
      h('dl', { class: 'figures' }, [['took', ms(took)], ['MTTR', ms(row.mttr_ms)], ['steps', row.steps.length]].map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, String(value))))),
      h('h2', null, 'Step by step'), h('ol', null, row.steps.map((step, index) => h('li', null, step.text, ' ', h('span', { class: 'soft' }, '+' + ms(step.after_ms - (index ? row.steps[index - 1].after_ms : 0)))))));
  }
  load();
  return { close() { closed = true; clearTimeout(timer); }, update(what) { if (what === 'entries') load(); else if (rows.length) draw(); } };
}
