// One service, or one node: why it is or is not touched, its figures against their thresholds, and what can be done.
import { h, s, fill, tag, bar, table, ask, ms, ago } from './dom.js';
import { get, command, mayCommand, state, Refused } from './api.js';
import { link, verdict } from './overview.js';
import { entryTable } from './timeline.js';

export function sparkline(name, values, limit, unit, most) {
  const wide = 600, tall = 110, known = values.filter((value) => value !== null);
  const top = most || Math.max(1, limit || 0, ...known) * 1.1, last = known.at(-1);
  const x = (index) => wide - (values.length - 1 - index) * wide / 299, y = (value) => tall - 4 - (tall - 10) * Math.min(1, value / top);
  const runs = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) { run = null; return; }
    if (!run) runs.push(run = []);
    run.push(x(index).toFixed(1) + ' ' + y(value).toFixed(1));
  });
  const text = name + (last === undefined ? ' unknown' : ' ' + last + unit) + (limit ? ', threshold ' + limit + unit : '');
  return h('figure', { class: 'curves' }, h('figcaption', null, h('b', null, name), ' ', last === undefined ? '–' : last + unit, limit ? h('span', { class: 'soft' }, '  high from ' + limit + unit) : null),
    s('svg', { class: 'chart', viewBox: '0 0 ' + wide + ' ' + tall, preserveAspectRatio: 'none', role: 'img', 'aria-label': text + ', last five minutes' },
      runs.map((points) => [s('path', { class: 'area', d: 'M' + points[0].split(' ')[0] + ' ' + tall + 'L' + points.join('L') + 'L' + points.at(-1).split(' ')[0] + ' ' + tall + 'Z' }), s('path', { class: 'curve', d: 'M' + points.join('L') })]),
      limit ? s('line', { class: 'limit', x1: 0, x2: wide, y1: y(limit), y2: y(limit) }) : null));
}

function curves(series, policy) {
  const round = (list) => list.map((value) => (value === null ? null : Math.round(value * 10) / 10));
  return [
    sparkline('CPU', round(series.cpu_percent), policy?.cpu_high_percent, '%', 100),
    sparkline('Memory', round(series.memory_percent), policy?.memory_high_percent, '%', 100),
    series.network_percent.some((value) => value !== null) ? sparkline('Network', round(series.network_percent), policy?.network_high_percent, '%', 100) : null,
    series.psi_percent.some((value) => value !== null) ? sparkline('Waiting for CPU (PSI)', round(series.psi_percent), 20, '%', 100) : null,
    series.in_flight.some((value) => value !== null) ? sparkline('In flight', series.in_flight, null, '') : null,
    series.latency_ms.some((value) => value !== null) ? sparkline('Latency', round(series.latency_ms), null, ' ms') : null,
    sparkline('Replicas', series.running, null, ''),
  ];
}

// Shows what would be done, asks, and does it.
async function run(name, body, says) {
  if (!mayCommand()) { says(h('span', null, 'Commands need the operator’s token: sign in over https or from this machine, or open the page with ', h('code', null, 'swarmguard ui'), '.')); return; }
  try {
    const plan = await command(name, body, true);
    const sure = await ask('Shall this be done?', h('p', null, plan.text), [['Cancel', null], ['Do it', true, true]]);
    if (!sure) return;
    const taken = await command(name, body);
    says(h('span', null, tag('taken', 'ok'), ' ', taken.text));
  } catch (error) {
    const problem = error instanceof Refused ? error.problem : {};
    says(h('span', null, tag('refused', 'warn'), ' ', error.message, problem.otherwise ? h('b', null, ' What would change it: ' + problem.otherwise) : null));
  }
}

export function open(root, { kind, name }) {
  return kind === 'node' ? openNode(root, name) : openService(root, name);
}

function openService(root, name) {
  const head = h('span'), why = h('section', { class: 'card' }), signals = h('div'), answer = h('p', { role: 'status' });
  const says = (node) => fill(answer, node);
  const replicas = table('Replicas', [
    { name: 'Replica', value: (row) => row.task || row.container, cell: (row) => (row.task || row.container).slice(0, 12) },
    { name: 'Node', value: (row) => row.node, cell: (row) => state.overview?.nodes.find((one) => one.node === row.node)?.hostname || row.node },
    { name: 'CPU', value: (row) => row.load?.cpu_percent, key: (row) => row.load?.cpu_percent, cell: (row) => bar(row.load && row.load.cpu_percent !== null ? Math.round(row.load.cpu_percent) : null, 75) },
    { name: 'Memory', value: (row) => row.load?.memory_percent, key: (row) => row.load?.memory_percent, cell: (row) => bar(row.load && row.load.memory_percent !== null ? Math.round(row.load.memory_percent) : null, 80) },
    { name: 'Throttled', less: 1, num: 1, value: (row) => row.load?.throttled_percent, cell: (row) => row.load?.throttled_percent === null || !row.load ? '–' : Math.round(row.load.throttled_percent) + '%' },
    { name: 'In flight', less: 1, num: 1, value: (row) => row.load?.in_flight, cell: (row) => row.load?.in_flight ?? '–' },
    { name: 'Latency', less: 1, num: 1, value: (row) => row.load?.latency_ms, cell: (row) => ms(row.load?.latency_ms ?? null) },
  ], (row) => row.container);
  const journal = entryTable('Journal of this service, newest first');
  const count = h('input', { type: 'number', min: 1, max: 10000, 'aria-label': 'Number of replicas', size: 4 });
  const button = (text, command, body) => h('button', { type: 'button', class: 'quiet', onclick: () => run(command, body(), says) }, text);
  const self = () => ({ service: name });
  const pause = button('Pause', 'pause', self), resume = button('Resume', 'resume', self);
  const buttons = h('div', { class: 'tools' }, button('Migrate', 'migrate', self), pause, resume, button('Cancel action', 'cancel', self),
    h('span', null, count, ' ', button('Scale', 'scale', () => ({ service: name, replicas: Number(count.value) || 0 }))));
  fill(root, h('h1', null, name, ' ', head), why, h('section', { class: 'card' }, h('h2', null, 'Do something ', h('small', null, 'what would happen is shown first')), buttons, answer),
    h('div', { class: 'two' }, h('section', { class: 'card' }, h('h2', null, 'Signals ', h('small', null, 'last five minutes')), signals), h('section', { class: 'card' }, h('h2', null, 'Replicas'), replicas.node)),
    h('br'), h('section', { class: 'card' }, h('h2', null, 'Journal'), journal.node));
  let timer = 0, closed = false;

  async function load() {
    const of = '?service=' + encodeURIComponent(name);
    try {
      const [told, series, containers] = await Promise.all([get('explain' + of), get('series' + of), get('containers' + of)]);
      if (closed) return;
      explain(told);
      fill(signals, curves(series, told.policy));
      replicas.show(containers, 'No agent reports a replica.');
      if (!count.value && document.activeElement !== count) count.value = state.overview?.services.find((row) => row.name === name)?.wanted ?? '';
    } catch (error) { if (!closed && error instanceof Refused) fill(why, h('h2', null, 'Why'), h('p', { class: 'empty' }, error.message)); }
    if (!closed) timer = setTimeout(load, document.hidden ? 8000 : 2000);
  }
  function explain(told) {
    const row = state.overview?.services.find((one) => one.name === name);
    if (row) fill(head, tag(...verdict(row)), told.observe ? tag('observe', 'note') : null);
    pause.hidden = told.paused;
    resume.hidden = !told.paused;
    const said = told.verdict, list = (items) => h('ul', { class: 'plain' }, items);
    const shown = ([key]) => !/_ms$/.test(key);
    fill(why, h('h2', null, 'Why it is ' + (said?.conclusion === 'act' ? 'touched' : 'not touched')),
      told.label_errors.length ? h('div', { class: 'verdict refuse' }, h('p', { class: 'big' }, 'Its labels make no sense, so it is left alone'), list(told.label_errors.map((text) => h('li', null, text)))) : null,
      said ? h('div', { class: 'verdict ' + said.conclusion }, h('p', null, h('span', { class: 'big' }, { act: 'ACT', refuse: 'REFUSED', calm: 'CALM' }[said.conclusion] + ' ' + said.rule), h('span', { class: 'soft' }, '  ' + ago(told.verdict_age_ms) + ' ago')),
        h('p', null, said.text), said.otherwise ? h('p', null, h('b', null, 'What would change it: '), said.otherwise) : null,
        Object.keys(said.signals).length ? h('p', { class: 'soft' }, Object.entries(said.signals).filter(shown).map(([key, value]) => key.replaceAll('_', ' ').replace(' percent', '') + ' ' + Math.round(value * 10) / 10 + (/percent$/.test(key) ? '%' : '')).join(' · ')) : null)
        : told.label_errors.length ? null : h('p', { class: 'empty' }, told.policy?.enabled ? 'Not judged yet.' : 'Not protected: set the label swarmguard.enable=true.'),
      told.alerts.length ? list(told.alerts.map((one) => h('li', null, tag(one.condition.replaceAll('_', ' '), 'warn'), ' ' + Math.round(one.percent) + '%, stands for ' + ago(one.stands_ms)))) : null,
      Object.keys(told.cooldowns_ms).length ? h('p', null, 'Cooling down: ', Object.entries(told.cooldowns_ms).map(([key, left]) => key.replaceAll('_', ' ') + ' ' + ago(left)).join(', ')) : null,
      told.preflight.length ? [h('h2', null, 'What stands against moving it'), list(told.preflight.map((one) => h('li', null, tag(one.code, one.refuses ? 'warn' : 'note'), ' ', one.text, one.otherwise ? h('span', { class: 'soft' }, '. ' + one.otherwise) : null)))] : null);
  }
  function update(what) {
    if (what !== 'entries') return;
    journal.show(state.entries.filter((entry) => entry.service_name === name).slice(-60).reverse(), 'Nothing was said of it lately.');
  }
  load();
  return { update, close() { closed = true; clearTimeout(timer); } };
}

function openNode(root, name) {
  const head = h('span'), facts = h('section', { class: 'card' }), signals = h('div'), answer = h('p', { role: 'status' });
  const journal = entryTable('Journal of this node, newest first');
  const says = (node) => fill(answer, node);
  fill(root, h('h1', null, name, ' ', head), facts, h('section', { class: 'card' }, h('h2', null, 'Do something ', h('small', null, 'what would happen is shown first')),
    h('div', { class: 'tools' }, h('button', { type: 'button', class: 'quiet', onclick: () => run('drain', { node: name }, says) }, 'Drain'),
      h('button', { type: 'button', class: 'quiet', onclick: () => run('cancel', { node: name }, says) }, 'Cancel what leaves it')), answer),
    h('section', { class: 'card' }, h('h2', null, 'Signals ', h('small', null, 'last five minutes')), signals), h('section', { class: 'card' }, h('h2', null, 'Journal'), journal.node));
  let timer = 0, closed = false;
  async function load() {
    try { const series = await get('series?node=' + encodeURIComponent(name)); if (!closed) fill(signals, curves(series, null)); }
    catch (error) { if (!closed && error instanceof Refused) fill(signals, h('p', { class: 'empty' }, error.message)); }
    if (!closed) timer = setTimeout(load, document.hidden ? 8000 : 2000);
  }
  function update(what) {
    const row = state.overview?.nodes.find((one) => one.hostname === name);
    if (what === 'entries') journal.show(state.entries.filter((entry) => row && (entry.node === row.node || entry.target === row.node)).slice(-60).reverse(), 'Nothing was said of it lately.');
    if (what !== 'overview' || !row) return;
    fill(head, row.state.map((word) => tag(word.replaceAll('_', ' '), word === 'ok' ? 'ok' : '')));
    fill(facts, h('dl', { class: 'figures' }, [['CPU', row.cpu_percent], ['Memory', row.memory_percent], ['Network', row.network_percent], ['PSI', row.psi_percent]].map(([title, value]) => h('div', null, h('dt', null, title), h('dd', null, value === null ? '–' : value + '%'))),
      h('div', null, h('dt', null, 'Replicas'), h('dd', null, String(row.replicas))), h('div', null, h('dt', null, 'Lease'), h('dd', null, row.lease || 'none'))));
  }
  load();
  return { update, close() { closed = true; clearTimeout(timer); } };
}
