// A real browser: Chromium of an npm package on Linux x64, elsewhere the one that CHROME_PATH names.
import type { Browser } from 'puppeteer-core';

const chrome = process.env.CHROME_PATH;

/** Describes tests that need the browser, where there is one. It is launched before them, and closed after them. */
export function describeInBrowser(name: string, tests: (browser: () => Browser) => void): void {
    const isThere = chrome !== undefined || (process.platform === 'linux' && process.arch === 'x64');
    (isThere ? describe : describe.skip)(name, () => {
        let browser: Browser | undefined;
        beforeAll(async () => {
            const { launch } = await import('puppeteer-core');
            const executablePath = chrome ?? (await (await import('@sparticuz/chromium')).default.executablePath());
            browser = await launch({ executablePath, headless: 'shell', args: ['--no-sandbox'] }); // as root, in a container, it has none
        });
        afterAll(() => browser?.close());
        tests(() => browser!);
    });
}
