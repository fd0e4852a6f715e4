// What the coordinator says: one request a second that is mostly "nothing new", and one stream of journal entries.
export const state = {
  overview: null, at: 0, entries: [], gone: null, why: null, locked: false, token: null, viaTunnel: false,
};
const listeners = new Set();
export const listen = (fn) => { listeners.add(fn); return () => listeners.delete(fn); };
const tell = (what) => listeners.forEach((fn) => fn(what));
const KEPT = 600;
const tags = new Map();

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || 'HTTP ' + status);
    this.status = status;
    this.problem = problem;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (state.token) headers.Authorization = 'Bearer ' + state.token;
  const answer = await fetch(path, { ...options, headers, cache: 'no-store', signal: options.signal || AbortSignal.timeout(8000) });
  // `swarmguard ui` says so with each answer, so that a page loaded anew knows it too.
  if (answer.headers.get('Swarmguard-Ui')) state.viaTunnel = true;
  if (answer.ok || answer.status === 304) return answer;
  throw new Refused(answer.status, await answer.json().catch(() => ({})));
}

export const get = async (path) => (await call('/api/v1/' + path)).json();

// null: nothing new since the last time.
async function fresh(path) {
  const known = tags.get(path);
  const answer = await call('/api/v1/' + path, { headers: known ? { 'If-None-Match': known } : {} });
  if (answer.status === 304) return null;
  tags.set(path, answer.headers.get('ETag'));
  return answer.json();
}
let placement = null;
export async function getPlacement() {
  placement = (await fresh('placement')) || placement;
  return placement;
}

export async function command(name, body, dry) {
  const answer = await call('/api/v1/commands/' + name + (dry ? '?dry_run=true' : ''), {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
  });
  return answer.json();
}
export const mayCommand = () => Boolean(state.token) || state.viaTunnel;

const pause = (wait) => new Promise((done) => setTimeout(done, wait));

function lost(error) {
  const locked = error instanceof Refused && (error.status === 401 || error.status === 403);
  state.locked = locked && (error.problem.code === 'session_needed' ? 'start swarmguard ui again' : 'sign in to read');
  state.gone ??= Date.now();
  state.why = error.message;
  tell('connection');
}

let wake = null;
export const again = () => { tags.clear(); wake?.(); };

async function watchOverview() {
  for (;;) {
    try {
      const news = await fresh('overview');
      const back = state.gone !== null;
      state.gone = state.why = null;
      state.locked = false;
      if (news) { state.overview = news; state.at = Date.now(); }
      if (back) tell('connection');
      tell('overview');
    } catch (error) { lost(error); tags.delete('overview'); }
    const hidden = document.hidden ? 5000 : 1000;
    await Promise.race([pause(state.gone ? 2000 : hidden), new Promise((done) => { wake = done; })]);
  }
}

function take(entries) {
  const known = new Set(state.entries.map((entry) => entry.id));
  const news = entries.filter((entry) => !known.has(entry.id));
  if (!news.length) return;
  state.entries = [...state.entries, ...news].sort((one, other) => one.id - other.id).slice(-KEPT);
  tell('entries');
}

// Not EventSource: that cannot carry a token.
async function watchJournal() {
  for (;;) {
    try {
      if (!state.entries.length) take(await get('journal?limit=300'));
      const last = state.entries.at(-1)?.id ?? 0;
      const answer = await call('/api/v1/events?since=' + last, { signal: new AbortController().signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split('\n\n');
        text = blocks.pop();
        const entries = [];
        for (const block of blocks) {
          const lines = block.split('\n');
          if (lines.includes('event: dropped')) { state.entries = []; continue; }
          const data = lines.filter((line) => line.startsWith('data:')).map((line) => line.slice(5)).join('');
          if (data) entries.push(JSON.parse(data));
        }
        if (entries.length) { take(entries); wake?.(); }
      }
    } catch { /* told by the other watch */ }
    await pause(1500);
  }
}

export function start() {
  watchOverview();
  watchJournal();
}
