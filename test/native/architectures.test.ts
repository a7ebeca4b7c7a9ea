// Every architecture that llama.cpp's own test can make a model of, against two oracles: examine.mjs says which. What
// is found must be what docs/architectures.md says; `npm run architectures` writes that page anew.
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { fixtureNames } from '../models';

interface Examined {
    name: string;
    /** kinds of the blocks in the order of the residual stream, a letter each */
    blocks?: string;
    dense?: number;
    /** skipping against zeroing: the largest difference of perplexities, and the smallest effect that a block has */
    zeroed?: { worst: number; effect: number; block: string };
    /** from a kept residual stream against from the start: the largest difference of perplexities */
    prefix?: number;
    host?: string;
    reason?: string;
    /** how many blocks go at a time, at least */
    together?: number;
    /** stock runtime against search, and how far they may differ */
    tolerance?: number;
    verified?: number;
    removed?: string;
    error?: string;
}

const root = path.resolve(__dirname, '../..');
const page = path.join(root, 'docs', 'architectures.md');
const run = promisify(execFile);

const names = fixtureNames();

async function examine(name: string): Promise<Examined> {
    try {
        const { stdout } = await run(process.execPath, [path.join(__dirname, 'examine.mjs'), name]);
        return JSON.parse(stdout) as Examined;
    } catch (error) {
        return {
            name,
            error: `ended with ${String((error as { signal?: string }).signal ?? (error as { code?: number }).code)}`
        };
    }
}

/** A row of the table. */
function row({ name, blocks, host, together, verified, error }: Examined): string {
    const [, architecture, kind] = /^(.*)-(dense|moe)$/.exec(name)!;
    const found = blocks === undefined ? 'no' : 'yes';
    const own = host === architecture ? 'its own' : host;
    const goes = together === undefined ? '' : together === 1 ? 'single blocks' : `${together} blocks`;
    const why = error === undefined ? '' : error.replace(/\S*\/(model|header)\.gguf/g, 'the model').replace(/\|/g, '/');
    const isVerified = verified === undefined ? 'no' : 'yes';
    const cells = [architecture, kind === 'moe' ? 'mixture of experts' : 'dense', found, goes, own, isVerified, why];
    return `| ${cells.join(' | ')} |`;
}

const update = process.env['BLOCKPRUNER_UPDATE'] === '1';
const documented = fs.existsSync(page) ? fs.readFileSync(page, 'utf8') : '';
const examined: Examined[] = [];

describe('each architecture', () => {
    test.each(names)('%s', async (name) => {
        const found = await examine(name);
        examined.push(found);
        if (found.zeroed) {
            expect(found.zeroed.worst).toBeLessThan(1e-4);
            expect(found.zeroed.effect).toBeGreaterThan(1e-5); // or the comparison would say nothing
            expect(found.prefix).toBeLessThan(1e-6);
        }
        if (found.verified !== undefined) {
            expect(found.removed).not.toBe('');
            expect(found.verified).toBeLessThan(found.tolerance!);
            expect(found.tolerance).toBeLessThanOrEqual(1e-3);
        }
        if (!update) {
            expect(documented).toContain(row(found));
        }
    });

    test('most of them are searched and written', () => {
        expect(examined.filter(({ zeroed }) => zeroed).length).toBeGreaterThanOrEqual(115);
        expect(examined.filter(({ verified }) => verified !== undefined).length).toBeGreaterThanOrEqual(100);
    });

    test.each(['llama-dense', 'qwen2-dense', 'internlm2-dense', 'baichuan-dense', 'qwen3-dense'])(
        'single blocks of %s go',
        (name) => {
            expect(examined.find((other) => other.name === name)).toMatchObject({
                together: 1,
                verified: expect.any(Number) as unknown
            });
        }
    );
});

afterAll(() => {
    if (update) {
        const found = examined.filter(({ zeroed }) => zeroed !== undefined).length;
        const written = examined.filter(({ verified }) => verified !== undefined).length;
        fs.writeFileSync(
            page,
            `# Architectures

What the tests found, of each tiny random model that llama.cpp's own test of architectures can make, made six layers
deep or more. Written by \`npm run architectures\`; \`npm test\` compares it.

- **blocks**: the blocks are found in the compute graph, and leaving out each of them equals zeroing its weights, to
  1e-4 of the perplexity.
- **goes**: what the search removes at a time, at least. How a file is written decides that:
  [how it works](how-it-works.md#the-file).
- **written as**: the architecture of the pruned file.
- **verified**: a file without about a third of the blocks, chosen at random among what can go, has in stock llama.cpp
  the perplexity that was found before it was written, to 1e-4 (1e-3 where rows of Q and K are reordered, as Qwen2's).

Of ${examined.length} models, the blocks of ${found} are found, and ${written} are written and verified.

| architecture | kind | blocks | goes | written as | verified | why not |
|---|---|---|---|---|---|---|
${examined.map(row).join('\n')}
`
        );
    }
});
