// The page in a real browser against a real coordinator with a played swarm. Prints `ok` or `FAILED` for each check.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { play, browse, visit, VIEWS, TOKEN } from './stage.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const [, , program] = process.argv;
let passed = 0, failed = 0;

async function check(name, what) {
  try { await what(); passed++; console.log('ok      ' + name); }
  catch (error) { failed++; console.log('FAILED  ' + name + ': ' + (error.stack || error)); }
}
const must = (holds, why) => { if (!holds) throw new Error(why); };
const until = async (what, why, ms = 30000) => {
  const end = Date.now() + ms;
  for (;;) {
    if (await what()) return;
    if (Date.now() > end) throw new Error(why);
    await new Promise((done) => setTimeout(done, 200));
  }
};

const port = 20000 + process.pid % 20000;
let stage = play(program, '--port', String(port));
const url = await stage.ready;
const browser = await browse();
const { context, page, complaints } = await visit(browser, { viewport: { width: 1280, height: 900 } });
const open = async (view) => { await page.goto(url + '/#/' + view); await page.waitForSelector('h1'); };

await check('overview shows health, nodes and services', async () => {
  await open('');
  await page.waitForSelector('[role=img][aria-label^="Health "]');
  await until(async () => await page.locator('tbody tr').count() >= 19, 'five nodes and fourteen services are rows');
  must((await page.locator('#live').textContent()) === 'live', 'it is live');
});
await check('a live migration is seen, step by step', async () => {
  await open('');
  await until(async () => /migrate/.test(await page.locator('main').textContent()), 'the action shows on the overview', 90000);
  await open('actions');
  await until(async () => /done/.test(await page.locator('main .tag').first().textContent().catch(() => '')), 'it ends', 90000);
  must(await page.locator('svg.chart rect').count() > 8, 'steps are drawn');
  must(/ms|s$/.test(await page.locator('svg.chart text').nth(5).textContent()), 'with how long they took');
});
await check('the timeline has what was alerted, decided and done', async () => {
  await open('timeline');
  for (const kind of ['alert', 'decision', 'action']) await page.waitForSelector('circle.k-' + kind, { state: 'attached', timeout: 20000 });
});
await check('a service says why it is or is not touched', async () => {
  await open('service/shop_web');
  await page.waitForSelector('.verdict');
  must(await page.locator('svg.chart').count() >= 4, 'signals are drawn');
  await until(async () => /CPU.*high from 75%/s.test(await page.locator('main').textContent()), 'against the threshold');
});
await check('balancers show each replica', async () => {
  await open('balancers');
  await until(async () => await page.locator('tbody tr').count() >= 3, 'replicas are rows');
  must(/requests\/s/.test(await page.locator('main').textContent()), 'with rates');
});
await check('bad names are said, not shown as nothing', async () => {
  await open('service/nobody');
  await until(async () => /no service has the ID or name/.test(await page.locator('main').textContent()), 'the coordinator’s words');
});
await check('the map is a grid that the keyboard walks', async () => {
  await open('map');
  await page.waitForSelector('[role=gridcell][tabindex="0"]');
  await page.locator('[role=gridcell][tabindex="0"]').focus();
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowDown');
  must(await page.evaluate(() => document.activeElement.dataset.at) === '1 1', 'arrows move the focus');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => location.hash.startsWith('#/service/'));
});
await check('everything is reached by Tab and Enter alone', async () => {
  // A page just loaded: a change of view alone moves the focus to the content.
  const load = async (view) => { await open(view); await page.reload(); await page.waitForSelector('h1'); };
  await load('map');
  await page.keyboard.press('Tab');
  must(await page.evaluate(() => document.activeElement.className) === 'skip', 'the skip link comes first');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.activeElement.id === 'content');
  must(await page.evaluate(() => location.hash) === '#/map', 'skipping leaves the view as it is');
  for (const [, name] of [['', 'Overview'], ['map', 'Map'], ['timeline', 'Timeline'], ['actions', 'Actions'], ['balancers', 'Balancers']]) {
    await load('');
    let found = false;
    for (let step = 0; step < 12 && !found; step++) {
      await page.keyboard.press('Tab');
      found = await page.evaluate((wanted) => document.activeElement.textContent === wanted && document.activeElement.tagName === 'A', name);
    }
    must(found, name + ' is reached');
    await page.keyboard.press('Enter');
    await page.waitForFunction((wanted) => document.querySelector('nav [aria-current]')?.textContent === wanted, name);
  }
});
await check('without a token a command says how to get one; with it, it is shown, asked and done', async () => {
  await open('service/shop_api');
  await page.getByRole('button', { name: 'Pause', exact: true }).click();
  await until(async () => /sign in/.test(await page.locator('main [role=status]').first().textContent()), 'it says so');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByLabel('Token').fill(TOKEN);
  await page.keyboard.press('Enter');
  await page.getByRole('button', { name: 'Sign out' }).waitFor();
  await page.getByRole('button', { name: 'Pause', exact: true }).click();
  await page.getByRole('button', { name: 'Do it' }).click();
  await until(async () => /taken/.test(await page.locator('main [role=status]').first().textContent()), 'taken');
  await page.getByRole('button', { name: 'Resume' }).waitFor();
  must(await page.evaluate(() => JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie) === '{}{}', 'the token is kept in memory only');
  await open('timeline');
  await until(async () => await page.locator('circle.k-operator').count() > 0, 'the journal knows who asked');
});
for (const scheme of ['light', 'dark']) {
  for (const view of VIEWS) {
    await check('axe finds nothing: ' + (view || 'overview') + ' ' + scheme, async () => {
      const { context: other, page: seen } = await visit(browser, { colorScheme: scheme, viewport: { width: view === 'map' ? 390 : 1280, height: 900 }, bypassCSP: true });
      await seen.goto(url + '/#/' + view);
      await seen.waitForTimeout(2500);
      await seen.evaluate(axe);
      const { violations } = await seen.evaluate(() => window.axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
      await other.close();
      must(!violations.length, violations.map((one) => one.id + ': ' + one.nodes.slice(0, 3).map((node) => node.target + ' ' + node.failureSummary).join('; ')).join('\n'));
    });
  }
}
await check('server gone and back is shown', async () => {
  await open('');
  await stage.stop();
  await until(async () => /no answer for/.test(await page.locator('#live').textContent()), 'gone is said');
  must(await page.evaluate(() => document.body.classList.contains('stale')), 'what is shown is marked as old');
  stage = play(program, '--port', String(port));
  await stage.ready;
  await until(async () => (await page.locator('#live').textContent()) === 'live', 'back is said', 60000);
});
await check('the policy was violated nowhere, and no script failed', async () => {
  const violations = await page.evaluate(() => window.violations);
  must(!violations.length, violations.join('; '));
  must(!complaints.length, complaints.join('; '));
});
await context.close();
await stage.stop();

// Only when asked for: figures of a busy machine say nothing about the page.
if (process.argv.includes('--many')) await check('500 services on 50 nodes stay fluid', async () => {
  const many = play(program, '--nodes', '50', '--services', '500', '--hot-after', '3600');
  const there = await many.ready;
  const { context: other, page: seen } = await visit(browser, { viewport: { width: 1280, height: 900 } });
  const frames = async (ms) => seen.evaluate((span) => new Promise((done) => {
    const gaps = [];
    let last = performance.now();
    const end = last + span;
    const scroller = document.querySelector('.heat');
    requestAnimationFrame(function frame(now) {
      gaps.push(now - last);
      last = now;
      if (scroller) { scroller.scrollTop += 23; scroller.scrollLeft += 5; }
      if (now < end) requestAnimationFrame(frame); else done(gaps.sort((one, other) => one - other));
    });
  }), ms);
  for (const view of ['', 'map']) {
    await seen.goto(there + '/#/' + view);
    await until(async () => await seen.locator(view ? '[role=gridcell]' : 'tbody tr').count() > 100, view + ' shows them', 90000);
    const gaps = await frames(5000);
    const at = (part) => gaps[Math.min(gaps.length - 1, Math.floor(gaps.length * part))].toFixed(1);
    console.log('figure  frame of ' + (view || 'overview') + ': p50 ' + at(.5) + ' ms, p95 ' + at(.95) + ' ms, p99 ' + at(.99) + ' ms, longest ' + gaps.at(-1).toFixed(1) + ' ms, ' + gaps.length + ' frames in 5 s');
    must(Number(at(.95)) < 50, 'nineteen of twenty frames take less than 50 ms');
  }
  await other.close();
  await many.stop();
});
await browser.close();
console.log(passed + ' passed, ' + failed + ' failed');
process.exit(failed ? 1 : 0);
