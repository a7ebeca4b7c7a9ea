// Every architecture that llama.cpp's own test can make a model of, against two oracles. The first, in examine.mjs:
// without a block, the model computes what the model does whose block has zero weights. The second: a written file has
// in the stock runtime the perplexity that was found before. What is found must be what docs/architectures.md says;
// `npm run architectures` writes that page anew.
import fs from 'node:fs';
import path from 'node:path';
import { meanNll } from '../../lib/index.js';
import { KeptProcess, KeptStock } from '../kept_process';
import { fixtureNames, temporaryFolder } from '../models';

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
    /** perplexity without what is removed, of these tokens */
    searched?: number;
    tokens?: Int32Array;
    length?: number;
    /** stock runtime against search, and how far they may differ */
    tolerance?: number;
    verified?: number;
    removed?: string;
    error?: string;
}

const root = path.resolve(__dirname, '../..');
const page = path.join(root, 'docs', 'architectures.md');

const names = fixtureNames();

const folder = temporaryFolder();
const examiner = new KeptProcess<{ name: string; folder: string }, Examined>(path.join(__dirname, 'examine.mjs'));
const stock = new KeptStock();

async function examine(name: string): Promise<Examined> {
    let found: Examined = { name };
    try {
        found = await examiner.ask({ name, folder });
        if (found.searched !== undefined) {
            const length = found.length!;
            const nll = await stock.nll(path.join(folder, 'pruned.gguf'), { tokens: found.tokens!, length });
            found.verified = Math.abs(Math.exp(meanNll(nll, length)) / found.searched - 1);
        }
    } catch (error) {
        found.error = (error as Error).message;
    } finally {
        fs.rmSync(folder, { recursive: true, force: true });
        fs.mkdirSync(folder);
    }
    return found;
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

- **blocks**: the blocks are found in the compute graph, and leaving out one equals zeroing its weights, to 1e-4 of the
  perplexity: tried with those of the first layer and the last, and one of each other kind.
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
