// What the balancers see of the replicas they send requests to.
import { h, fill, tag, bar, table, ago } from './dom.js';
import { get, Refused } from './api.js';
import { link } from './overview.js';

const STANDING = { ok: ['ok', 'ok'], starting: ['starting', 'note'], draining: ['draining', 'note'], sick: ['sick', 'bad'], ejected: ['ejected', 'bad'] };
const rate = (value) => value === null ? '–' : value < 10 ? value.toFixed(1) : String(Math.round(value));

export function open(root) {
  const body = h('div');
  const tables = new Map();
  let timer = 0, closed = false;
  fill(root, h('h1', null, 'Balancers'), body);
  function one(key) {
    if (!tables.has(key)) {
      tables.set(key, table('Replicas of ' + key, [
        { name: 'Replica', value: (row) => row.task, cell: (row) => row.task.slice(0, 12) },
        { name: 'Node', value: (row) => row.node, cell: (row) => row.node || '–' },
        { name: 'Standing', value: (row) => row.standing, key: (row) => row.standing, cell: (row) => tag(...STANDING[row.standing]) },
        { name: 'Requests/s', num: 1, value: (row) => row.requests_per_s, cell: (row) => rate(row.requests_per_s) },
        { name: 'In flight', num: 1, value: (row) => row.in_flight, cell: (row) => String(row.in_flight) },
        { name: 'Latency p50', num: 1, value: (row) => row.latency_ms, cell: (row) => row.latency_ms === null ? '–' : rate(row.latency_ms) + ' ms' },
        { name: 'p99', less: 1, num: 1, value: (row) => row.latency_p99_ms, cell: (row) => row.latency_p99_ms === null ? '–' : rate(row.latency_p99_ms) + ' ms' },
        { name: 'Share of mean', less: 1, value: (row) => row.share_of_mean_percent, key: (row) => row.share_of_mean_percent, cell: (row) => bar(row.share_of_mean_percent === null ? null : Math.round(row.share_of_mean_percent)) },
        { name: 'Failed', less: 1, num: 1, value: (row) => row.failures, cell: (row) => String(row.failures) },
      ], (row) => row.task));
    }
    return tables.get(key);
  }
  async function load() {
    try {
      const { balancers } = await get('balancers');
      if (closed) return;
      const cards = balancers.map((own) => h('section', { class: 'card' }, h('h2', null, own.name, ' ', own.connected ? tag('connected', 'ok') : tag('gone', 'bad'),
        h('small', null, own.stats_age_ms === null ? ' no figures yet' : ' figures ' + ago(own.stats_age_ms) + ' old')),
      own.services.map((service) => {
        const shown = one(own.name + ' ' + service.name);
        shown.show(service.replicas, 'No replica.');
        return [h('h2', null, link('service', service.name), h('small', null, ' ' + (service.algorithm || 'default algorithm') + ', ' + rate(service.requests_per_s) + ' requests/s, ' + rate(service.failures_per_s) + ' failed/s')), shown.node];
      })));
      if (!body.contains(document.activeElement)) fill(body, cards.length ? cards : h('section', { class: 'card' }, h('p', { class: 'empty' }, 'No balancer is connected to this coordinator. docs/balancer.md says how to run one.')));
    } catch (error) { if (!closed && error instanceof Refused) fill(body, h('section', { class: 'card' }, h('p', { class: 'empty' }, error.message))); }
    if (!closed) timer = setTimeout(load, document.hidden ? 8000 : 1000);
  }
  load();
  return { update() {}, close() { closed = true; clearTimeout(timer); } };
}
