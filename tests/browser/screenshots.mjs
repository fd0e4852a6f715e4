// Pictures of the page for the docs: `cargo xtask screenshots`. The second argument is the directory.
import { play, browse, visit } from './stage.mjs';

const [, , program, out] = process.argv;
const stage = play(program, '--hot-after', '20');
const url = await stage.ready;
const browser = await browse();
const shoot = async (name, view, scheme, width, height, wait) => {
  const { context, page } = await visit(browser, { colorScheme: scheme, viewport: { width, height } });
  await page.goto(url + '/#/' + view);
  await page.waitForTimeout(wait);
  await page.screenshot({ path: out + '/' + name + '.png' });
  await context.close();
  console.log(name + '.png');
};
// Long enough for lines to have a past, and for the migration to be under way.
const { context, page } = await visit(browser, {});
await page.goto(url + '/#/actions');
await page.waitForFunction(() => /migrate/.test(document.querySelector('main').textContent), null, { timeout: 120000 });
await shoot('page-overview-light', '', 'light', 1280, 860, 2500);
await shoot('page-overview-dark', '', 'dark', 1280, 860, 2500);
await page.waitForFunction(() => /done/.test(document.querySelector('main .tag')?.textContent), null, { timeout: 120000 });
await context.close();
await shoot('page-actions-light', 'actions', 'light', 1280, 860, 2500);
await shoot('page-map-dark', 'map', 'dark', 1280, 760, 3500);
await shoot('page-timeline-light', 'timeline', 'light', 1280, 760, 2500);
await shoot('page-service-dark', 'service/shop_web', 'dark', 1280, 900, 3500);
await shoot('page-balancers-light', 'balancers', 'light', 1280, 760, 3500);
await shoot('page-overview-phone', '', 'light', 390, 844, 2500);
await shoot('page-service-phone-dark', 'service/shop_web', 'dark', 390, 844, 3500);
await browser.close();
await stage.stop();
