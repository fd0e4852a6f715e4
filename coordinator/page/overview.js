import { h, s, fill, tag, bar, table, ms, ago, cores, bytes } from './dom.js';
import { state } from './api.js';

const WORDS = {
  ok: ['ok', 'ok'], down: ['down', 'bad'], unknown: ['unknown', 'warn'], silent: ['silent', 'bad'], suspect: ['suspect', 'warn'],
  no_agent: ['no agent', 'warn'], blind: ['blind', 'bad'], starved: ['starved', 'warn'], short_cpu: ['short cpu', 'warn'],
  short_memory: ['short memory', 'warn'], short_network: ['short network', 'warn'], drain: ['drain', 'note'], pause: ['pause', 'note'],
  leader: ['leader', ''], manager: ['manager', ''],
};
export const link = (kind, name) => h('a', { href: '#/' + kind + '/' + encodeURIComponent(name) }, name);
const since = () => Date.now() - state.at;

export function score(health) {
  const kind = health.score >= 90 ? 'good' : health.score >= 70 ? 'middling' : 'poor';
  const round = 2 * Math.PI * 34;
  return h('div', { class: 'score' },
    s('svg', { width: 84, height: 84, viewBox: '0 0 84 84', role: 'img', 'aria-label': 'Health ' + health.score + ' of 100', class: kind },
      s('circle', { class: 'track', cx: 42, cy: 42, r: 34, 'stroke-width': 8, fill: 'none' }),
      s('circle', { class: 'arc', cx: 42, cy: 42, r: 34, 'stroke-width': 8, fill: 'none', 'stroke-linecap': 'round',
        'stroke-dasharray': round, 'stroke-dashoffset': round * (1 - health.score / 100), transform: 'rotate(-90 42 42)' }),
      s('text', { x: 42, y: 51, 'text-anchor': 'middle' }, String(health.score))),
    h('ul', { class: 'plain' }, health.deductions.length
      ? health.deductions.slice(0, 6).map((one) => h('li', null, h('b', null, '−' + one.points), ' ', one.text))
      : h('li', { class: 'soft' }, 'Nothing takes points away.')));
}

function nodeTable() {
  return table('Nodes', [
    { name: 'Node', value: (row) => row.hostname, key: (row) => row.hostname, cell: (row) => link('node', row.hostname) },
    { name: 'State', key: (row) => row.state.join(), cell: (row) => h('span', null, row.state.map((word) => tag(...(WORDS[word] || [word])))) },
    { name: 'CPU', value: (row) => row.cpu_percent, num: 0, key: (row) => row.cpu_percent, cell: (row) => bar(row.cpu_percent, 75) },
    { name: 'Memory', value: (row) => row.memory_percent, key: (row) => row.memory_percent, cell: (row) => bar(row.memory_percent, 80) },
    { name: 'Network', less: 1, value: (row) => row.network_percent, key: (row) => row.network_percent, cell: (row) => bar(row.network_percent, 65) },
    { name: 'Waiting (PSI)', less: 1, value: (row) => row.psi_percent, key: (row) => row.psi_percent, cell: (row) => bar(row.psi_percent, 20) },
    { name: 'Reserved CPU', less: 1, num: 1, value: (row) => row.reserved_cpu_millis, cell: (row) => cores(row.reserved_cpu_millis) + ' / ' + cores(row.cpu_millis) },
    { name: 'Reserved memory', less: 1, num: 1, value: (row) => row.reserved_memory_bytes, cell: (row) => bytes(row.reserved_memory_bytes) + ' / ' + bytes(row.memory_bytes) },
    { name: 'Replicas', num: 1, value: (row) => row.replicas, cell: (row) => String(row.replicas) },
  ], (row) => row.node);
}

export const verdict = (row) => row.labels_invalid ? ['labels invalid', 'bad'] : row.own ? ['SwarmGuard', '']
  : !row.protected ? ['not protected', ''] : row.action ? ['acting', 'note'] : row.paused ? ['paused', 'note']
    : row.conclusion === 'refuse' ? [row.rule, 'warn'] : row.conclusion === 'act' ? [row.rule, 'note'] : [row.rule || 'calm', 'ok'];

function serviceTable() {
  const short = (row) => row.wanted !== null && row.running < row.wanted;
  return table('Services', [
    { name: 'Service', value: (row) => row.name, key: (row) => row.name, cell: (row) => link('service', row.name) },
    { name: 'Replicas', value: (row) => row.running, key: (row) => row.running + '/' + row.wanted,
      cell: (row) => short(row) ? tag(row.running + ' of ' + row.wanted, row.running ? 'warn' : 'bad') : row.running + (row.wanted === null ? '' : ' / ' + row.wanted) },
    { name: 'Verdict', value: (row) => verdict(row)[0], key: (row) => verdict(row).join() + row.alerts + (row.update || ''),
      cell: (row) => h('span', null, tag(...verdict(row)), row.alerts ? tag(row.alerts + (row.alerts > 1 ? ' alerts' : ' alert'), 'bad') : null, row.update ? tag(row.update, 'note') : null) },
    { name: 'CPU', value: (row) => row.cpu_percent, key: (row) => row.cpu_percent, cell: (row) => bar(row.cpu_percent, 75) },
    { name: 'Memory', value: (row) => row.memory_percent, key: (row) => row.memory_percent, cell: (row) => bar(row.memory_percent, 80) },
    { name: 'CPUs used', less: 1, num: 1, value: (row) => row.cpu_millis, cell: (row) => (row.cpu_millis / 1000).toFixed(2) },
    { name: 'In flight', less: 1, num: 1, value: (row) => row.in_flight, cell: (row) => row.in_flight ?? '–' },
    { name: 'Latency', less: 1, num: 1, value: (row) => row.latency_ms, cell: (row) => row.latency_ms === null ? '–' : row.latency_ms + ' ms' },
  ], (row) => row.service);
}

export function open(root) {
  const health = h('section', { class: 'card' }), now = h('section', { class: 'card' }), day = h('section', { class: 'card' });
  const nodes = nodeTable(), services = serviceTable();
  const filter = h('input', { type: 'search', 'aria-label': 'Only services whose name holds', placeholder: 'Filter by name', oninput: () => update('overview') });
  const only = h('select', { 'aria-label': 'Which services', onchange: () => update('overview') },
    h('option', { value: '' }, 'All services'), h('option', { value: 'protected' }, 'Protected'), h('option', { value: 'trouble' }, 'In trouble'));
  const count = h('span', { class: 'soft', role: 'status' });
  fill(root, h('h1', { class: 'hidden' }, 'Overview'), h('div', { class: 'cards' }, health, now, day),
    h('section', { class: 'card' }, h('h2', null, 'Nodes'), nodes.node),
    h('section', { class: 'card' }, h('h2', null, 'Services'), h('div', { class: 'tools' }, filter, only, count), services.node));

  function update(what) {
    const seen = state.overview;
    if (what !== 'overview') return;
    if (!seen) { fill(health, h('h2', null, 'Health'), h('p', { class: 'empty' }, state.locked ? 'Sign in to read.' : 'Waiting for the coordinator.')); return; }
    fill(health, h('h2', null, 'Health'), score(seen.health));
    const who = seen.coordination;
    fill(now, h('h2', null, 'Now'), h('ul', { class: 'plain' },
      h('li', null, who.acts ? ['Acting: ', link('node', who.acts)] : who.observe ? 'Nobody acts' : h('b', { class: 'poor' }, 'Nobody acts'), who.observe ? [' ', tag('observe', 'note')] : null, who.paused ? [' ', tag('paused', 'warn')] : null),
      seen.actions.map((one) => h('li', null, h('a', { href: '#/actions' }, one.kind), ' ', h('b', null, one.service || one.source || ''),
        one.source && one.service ? ' ' + one.source + ' → ' + (one.target || '…') : '', ' ', h('span', { class: 'still' }, tag(one.step.replaceAll('_', ' '), one.undone ? 'warn' : 'note'), ' ' + ms(one.step_ms + since())))),
      seen.actions.length ? null : h('li', { class: 'soft' }, 'No action under way.'),
      seen.alerts.filter((one) => !one.stale).slice(0, 5).map((one) => h('li', null, one.service ? link('service', one.service) : 'a container', ' on ', one.node, ': ',
        one.condition.replaceAll('_', ' ') + ' ' + one.percent + '% for ' + ago(one.stands_ms + since()), one.unhelped ? [' ', tag(one.unhelped, 'warn')] : null))));
    const last = seen.last_day;
    fill(day, h('h2', null, 'Last 24 hours'), h('dl', { class: 'figures' },
      [['moved', last.moved], ['scaled', last.scaled], ['undone', last.undone], ['MTTR p90', ms(last.mttr_p90_ms)]]
        .map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, String(value))))));
    nodes.show(seen.nodes, 'Swarm was not read yet.');
    const words = filter.value.trim().toLowerCase();
    const wanted = seen.services.filter((row) => row.name.toLowerCase().includes(words)
      && (only.value !== 'protected' || row.protected)
      && (only.value !== 'trouble' || row.alerts || row.labels_invalid || row.conclusion === 'refuse' || (row.wanted !== null && row.running < row.wanted)));
    services.show(wanted, 'No service is so.');
    count.textContent = wanted.length + ' of ' + seen.services.length;
  }
  return { update };
}
