// Starts the played coordinator and a browser. One argument names the built example `played`.
import { spawn } from 'node:child_process';
import { chromium } from 'playwright-core';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
export const VIEWS = ['', 'map', 'timeline', 'actions', 'balancers', 'service/shop_web', 'node/node2'];
export const TOKEN = 'a-token-long-enough';

export function play(program, ...args) {
  const child = spawn(program, ['--token', TOKEN, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ready = new Promise((done, fail) => {
    let text = '';
    child.stdout.on('data', (piece) => {
      text += piece;
      const found = /listening ([\d.:]+)/.exec(text);
      if (found) done('http://' + found[1]);
    });
    child.on('exit', (code) => fail(new Error('the played coordinator ended with ' + code)));
  });
  const gone = new Promise((done) => child.on('exit', done));
  return { ready, stop: () => { child.kill('SIGINT'); return gone; } };
}

export const browse = () => chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });

// A page that remembers whatever the browser complained about.
export async function visit(browser, options) {
  const context = await browser.newContext(options);
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective + ' ' + event.blockedURI));
  });
  const page = await context.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => { if (message.type() === 'error' && !/Failed to load resource|ERR_/.test(message.text())) complaints.push(message.text()); });
  return { context, page, complaints };
}
