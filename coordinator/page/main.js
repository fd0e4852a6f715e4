import { h, fill, tag, ask, ago } from './dom.js';
import { state, listen, start, again, mayCommand } from './api.js';
import * as overview from './overview.js';
import * as heat from './heat.js';
import * as timeline from './timeline.js';
import * as migration from './migration.js';
import * as service from './service.js';
import * as balancer from './balancer.js';

const VIEWS = [
  ['', 'Overview', overview], ['map', 'Map', heat], ['timeline', 'Timeline', timeline],
  ['actions', 'Actions', migration], ['balancers', 'Balancers', balancer],
];
const byId = (id) => document.getElementById(id);
const content = byId('content');
let shown = null;

fill(byId('nav'), VIEWS.map(([path, name]) => h('a', { href: '#/' + path, 'data-path': path }, name)));

function open() {
  const [path, ...rest] = location.hash.replace(/^#\/?/, '').split('/').map(decodeURIComponent);
  const isSubject = (path === 'service' || path === 'node') && rest[0];
  const view = isSubject ? service : (VIEWS.find(([own]) => own === path) || VIEWS[0])[2];
  shown?.close?.();
  for (const link of byId('nav').children) {
    const here = link.dataset.path === (isSubject ? '' : path);
    if (here) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
  }
  const root = h('div');
  fill(content, root);
  shown = view.open(root, isSubject ? { kind: path, name: rest[0] } : { rest });
  const title = content.querySelector('h1')?.textContent || 'Overview';
  document.title = title + ' · SwarmGuard';
  shown.update?.('overview');
  shown.update?.('entries');
}

function connection() {
  const live = byId('live');
  const { gone, why, locked, overview: seen } = state;
  live.classList.toggle('gone', gone !== null);
  document.body.classList.toggle('stale', gone !== null && seen !== null);
  const text = gone === null ? 'live' : locked ? locked : 'no answer for ' + ago(Date.now() - gone) + ', trying again';
  if (live.textContent !== text) live.textContent = text;
  live.title = why || '';
  byId('sign').textContent = state.viaTunnel ? 'Signed in' : state.token ? 'Sign out' : 'Sign in';
  byId('sign').hidden = state.viaTunnel;
}

let said = '';
function banner() {
  const lines = state.overview?.banner || [];
  const key = JSON.stringify(lines);
  if (key === said) return;
  said = key;
  const words = { critical: 'Critical', warning: 'Warning', notice: 'Notice' };
  fill(byId('banner'), lines.map((line) => h('div', { class: 'line ' + line.severity }, h('b', null, words[line.severity]), h('span', null, line.text))));
}

export async function sign() {
  if (state.token) { state.token = null; connection(); again(); return; }
  const secure = location.protocol === 'https:' || ['localhost', '127.0.0.1', '[::1]'].includes(location.hostname);
  const input = h('input', { type: 'password', autocomplete: 'off', spellcheck: 'false' });
  const text = secure
    ? 'The operator’s token allows commands, the reader’s token reading. It is kept in this tab’s memory only.'
    : 'Over plain HTTP only the reader’s token is taken, which allows reading. For commands use swarmguard ui, or https. It is kept in this tab’s memory only.';
  const token = await ask('Sign in', h('div', null, h('p', { class: 'soft' }, text), h('label', null, 'Token', input)),
    [['Cancel', null], ['Sign in', () => input.value.trim(), true]]);
  if (!token) return;
  state.token = token;
  connection();
  again();
}

listen((what) => {
  if (what === 'overview') {
    const { swarm } = state.overview || {};
    if (swarm) byId('swarm').textContent = swarm.name || swarm.id.slice(0, 12);
    byId('swarm').title = swarm ? swarm.id : '';
    banner();
    connection();
  }
  if (what === 'connection') connection();
  shown?.update?.(what);
});
addEventListener('hashchange', () => { open(); content.focus({ preventScroll: true }); scrollTo(0, 0); });
byId('sign').addEventListener('click', sign);
// Not by the address: what stands behind its # is the view.
document.querySelector('.skip').addEventListener('click', (event) => { event.preventDefault(); content.focus(); });
setInterval(connection, 1000);

// `swarmguard ui` opens the page with a one-time key, which becomes a cookie of this browser.
async function enter() {
  const key = /^#key=([\w-]+)$/.exec(location.hash)?.[1];
  if (!key) return;
  history.replaceState(null, '', '#/');
  const answer = await fetch('/ui/session', { method: 'POST', headers: { 'Swarmguard-Key': key } }).catch(() => null);
  state.viaTunnel = Boolean(answer?.ok);
}
await enter();
open();
start();
