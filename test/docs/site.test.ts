/// <reference lib="dom" />
/// <reference lib="dom.iterable" />
// The site of the documents, as a reader opens it: from files, without a server and without a network.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describeInBrowser } from '../browser';
import { temporaryFolder } from '../models';

const root = path.resolve(__dirname, '..', '..');
const folder = temporaryFolder();

describeInBrowser('the site', (browser) => {
    let pages: string[];
    beforeAll(() => {
        const typedoc = path.join(root, 'node_modules', 'typedoc', 'bin', 'typedoc');
        const options = ['--options', path.join(root, 'docs', 'site.json'), '--treatWarningsAsErrors'];
        execFileSync(process.execPath, [typedoc, ...options, '--out', folder], { cwd: root, stdio: 'pipe' });
        const documents = fs.readdirSync(path.join(folder, 'documents')).map((name) => path.join('documents', name));
        pages = ['index.html', ...documents].map((name) => pathToFileURL(path.join(folder, name)).href);
    });

    test('has a page for the README and for each document', () => {
        const documents = fs.readdirSync(path.join(root, 'docs')).filter((name) => name.endsWith('.md'));
        expect(pages).toHaveLength(1 + documents.length + ['CONTRIBUTING', 'SECURITY', 'CHANGELOG'].length);
    });

    test('has no link that leads nowhere, and asks for nothing but its files', async () => {
        const page = await browser().newPage();
        const asked = new Set<string>();
        page.on('request', (request) => asked.add(new URL(request.url()).protocol));
        const links: [string, string][] = [];
        const anchors = new Map<string, string[]>();
        for (const url of pages) {
            await page.goto(url);
            anchors.set(url, await page.$$eval('[id]', (all) => all.map(({ id }) => id)));
            const here = await page.$$eval('a[href]', (all) => all.map((link) => link.href));
            links.push(...here.map((link): [string, string] => [url, link]));
        }
        await page.close();
        const broken = links.filter(([, link]) => {
            const { protocol, hash, href } = new URL(link);
            const target = href.split('#')[0]!;
            return (
                protocol === 'file:' &&
                (!fs.existsSync(fileURLToPath(target)) ||
                    (hash !== '' && anchors.get(target)?.includes(decodeURIComponent(hash.slice(1))) === false))
            );
        });
        expect(links.length).toBeGreaterThan(500);
        expect(broken).toEqual([]);
        expect([...asked]).toEqual(['file:']);
    });

    test('finds a word of its text', async () => {
        const page = await browser().newPage();
        await page.goto(pages[0]!);
        await page.click('#tsd-search-trigger');
        const input = await page.waitForSelector('#tsd-search-input', { visible: true });
        await input!.type('ModelFile'); // of Ollama
        const found = await page.waitForSelector('#tsd-search-results a');
        expect(await found!.evaluate((link) => link.href)).toBe(pages.find((url) => url.endsWith('/Recipes.html')));
        await page.close();
    });
});
