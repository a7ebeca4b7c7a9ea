// Both definitions of perplexity, worked out by hand from the values of single tokens.
import fs from 'node:fs';
import path from 'node:path';
import { apply, meanNll, Model, parseBlocks, perplexityOf, textPerplexity } from '../../lib/index.js';
import { run } from '../cli/run';
import { fixture, quantize, temporaryFolder, tiny, withMetadata } from '../models';

const folder = temporaryFolder();
const file = path.join(folder, 'text.txt');
fs.writeFileSync(
    file,
    'The ship sailed on through the night. '.repeat(9) + 'Congress must act now, for the people. '.repeat(9)
);
let model: Model;
beforeAll(async () => {
    model = await Model.load(tiny, { device: 'cpu', threads: 1 });
});
afterAll(() => model.dispose());

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;
const context = 33;

/** The tokens of the text cut into chunks of 33, with another first token each where one is given. */
async function chunks(from: Model, first?: number): Promise<number[][]> {
    const all = Array.from(await from.tokenize(fs.readFileSync(file, 'utf8')));
    expect(all.length % context).not.toBe(0); // there is a remainder to drop
    return Array.from({ length: Math.floor(all.length / context) }, (_, i) => {
        const chunk = all.slice(i * context, (i + 1) * context);
        return first === undefined ? chunk : [first, ...chunk.slice(1)];
    });
}

/** NLL of tokens 1 … 32 of a chunk evaluated on its own. */
const nllOf = (from: Model, chunk: number[], skip = '') =>
    from.evaluate({ tokens: Int32Array.from(chunk), length: chunk.length }, { skip: parseBlocks(skip) });

test('meanNll is the mean over sequences of their means', () => {
    const nll = Float32Array.from([1, 2, 3, 5, 7, 9]);
    expect(meanNll(nll, 4)).toBe((2 + 7) / 2);
    expect(meanNll(nll, 4, 1)).toBe((2.5 + 8) / 2);
    expect(meanNll(nll, 7)).toBe(4.5);
});

test.each(['', 'attn.2,ffn.5'])(
    "the paper's: all tokens but the first of each sequence (without '%s')",
    async (skip) => {
        const sequences = await chunks(model);
        const means: number[] = [];
        for (const chunk of sequences) {
            means.push(mean(await nllOf(model, chunk, skip)));
        }
        const result = await textPerplexity(model, file, { context, skip: parseBlocks(skip) });
        expect(result).toEqual({
            perplexity: Math.exp(result.nll),
            nll: result.nll,
            tokens: 32 * sequences.length,
            sequences: sequences.length
        });
        expect(result.nll).toBeCloseTo(mean(means), 6);
        expect(
            await perplexityOf(
                model,
                { tokens: Int32Array.from(sequences.flat()), length: context },
                { skip: parseBlocks(skip) }
            )
        ).toBe(result.perplexity);
    }
);

describe("llama.cpp's: the second half of each chunk", () => {
    async function expectSecondHalf(from: Model, first?: number) {
        const all = await chunks(from, first);
        const values: number[] = [];
        for (const chunk of all) {
            values.push(...(await nllOf(from, chunk)).slice(16)); // tokens 17 … 32 of 0 … 32, as its tool counts them
        }
        const result = await textPerplexity(from, file, { context, definition: 'llama.cpp' });
        expect([result.tokens, result.sequences]).toEqual([16 * all.length, all.length]);
        expect(values).toHaveLength(result.tokens);
        expect(result.nll).toBeCloseTo(mean(values), 6);
        expect(result.perplexity).toBe(Math.exp(result.nll));
    }

    test('as it is where the model wants no BOS', () => expectSecondHalf(model));

    test('with BOS as its first token where the model wants one', async () => {
        const file = await withMetadata(tiny, path.join(folder, 'bos.gguf'), [
            { key: 'tokenizer.ggml.add_bos_token', type: 'bool', value: true }
        ]);
        const withBos = await Model.load(file, { device: 'cpu', threads: 1 });
        expect(withBos.bos).toBe(0);
        await expectSecondHalf(withBos, 0);
        withBos.dispose();
    });
});

test('texts that are too short are refused', async () => {
    const { length } = await model.tokenize(fs.readFileSync(file, 'utf8'));
    await expect(textPerplexity(model, file, { context: length + 1 })).rejects.toThrow(
        `text.txt is too short: it has ${length} tokens, and ${length + 1} are needed`
    );
    await expect(textPerplexity(model, file, { context: length, definition: 'llama.cpp' })).rejects.toThrow(
        `${2 * length} are needed`
    );
    await expect(textPerplexity(model, path.join(folder, 'missing.txt'))).rejects.toThrow('there is no such file');
});

describe('against the dense model', () => {
    const skip = parseBlocks('attn.2,ffn.5');
    const options = { context, samples: 2 };

    test('divergence and top tokens are those of the whole distributions', async () => {
        const exact = await Model.load(await quantize(tiny, path.join(folder, 'f32.gguf'), 'F32'), {
            device: 'cpu',
            threads: 1,
            cacheType: 'f32'
        }); // endings are computed in other batches
        const tokens = Int32Array.from((await chunks(exact))[0]!);
        const { denseNll, nll, divergence, sameTop } = await exact.diverge({ tokens, length: context }, exact, {
            skip
        });
        expect(denseNll).toEqual(await nllOf(exact, [...tokens]));
        expect(nll).toEqual(await nllOf(exact, [...tokens], 'attn.2,ffn.5'));
        for (const position of [1, 32]) {
            // the distribution of the token there, from each token's NLL as an ending
            const choices = Array.from({ length: exact.vocabulary }, (_, token) => ({
                context: tokens.slice(0, position),
                ending: Int32Array.of(token)
            }));
            const [dense, pruned] = [await exact.score(choices), await exact.score(choices, { skip })];
            expect(dense.reduce((sum, value) => sum + Math.exp(-value), 0)).toBeCloseTo(1, 3);
            const expected = dense.reduce((sum, value, token) => sum + Math.exp(-value) * (pruned[token]! - value), 0);
            expect(expected).toBeGreaterThan(0.001);
            expect(divergence[position - 1]! / expected).toBeCloseTo(1, 3);
            const top = (values: Float64Array) => values.indexOf(Math.min(...values));
            expect(sameTop[position - 1]).toBe(Number(top(dense) === top(pruned)));
        }
        exact.dispose();
    });

    test('nothing diverges from itself; a written file diverges as its skip set does', async () => {
        expect((await textPerplexity(model, file, { ...options, dense: model })).dense).toEqual({
            perplexity: (await textPerplexity(model, file, options)).perplexity,
            divergence: 0,
            sameTop: 1
        });
        const ofSkip = await textPerplexity(model, file, { ...options, skip, dense: model });
        expect(ofSkip.perplexity).toBe((await textPerplexity(model, file, { ...options, skip })).perplexity);

        const pruned = path.join(folder, 'pruned.gguf');
        await apply(tiny, {
            order: skip,
            output: pruned,
            repair: 'none',
            verify: false,
            calibration: { samples: 1, context: 32 },
            device: 'cpu',
            threads: 1
        });
        const written = await Model.load(pruned, { device: 'cpu', threads: 1 });
        const ofFile = await textPerplexity(written, file, { ...options, dense: model });
        expect(ofFile.dense!.divergence / ofSkip.dense!.divergence).toBeCloseTo(1, 4);
        expect({ ...ofFile, dense: { ...ofFile.dense, divergence: 0 }, nll: 0, perplexity: 0 }).toEqual({
            ...ofSkip,
            dense: { ...ofSkip.dense, divergence: 0 },
            nll: 0,
            perplexity: 0
        });
        written.dispose();
        const { stdout } = await run(
            'perplexity',
            pruned,
            '--text',
            file,
            '--context',
            String(context),
            '--samples',
            '2',
            '--dense',
            tiny,
            '--device',
            'cpu',
            '--threads',
            '1'
        );
        expect(stdout).toContain(
            `mean KL divergence from it ${ofFile.dense!.divergence.toFixed(5)} nats, ${(100 * ofFile.dense!.sameTop).toFixed(2)} % equal top-1 tokens`
        );
        const { stdout: json } = await run(
            'perplexity',
            tiny,
            '--text',
            file,
            '--context',
            String(context),
            '--samples',
            '2',
            '--skip',
            'attn.2,ffn.5',
            '--json',
            '--device',
            'cpu',
            '--threads',
            '1'
        );
        expect(JSON.parse(json)).toEqual(ofSkip);
    });

    test('models with other vocabularies are refused', async () => {
        const other = await Model.load(fixture('llama-dense', path.join(folder, 'other.gguf')), {
            device: 'cpu',
            threads: 1
        });
        expect(other.vocabulary).not.toBe(model.vocabulary);
        await expect(model.diverge({ tokens: Int32Array.of(1, 2, 3), length: 3 }, other)).rejects.toThrow(
            /different vocabularies, of \d+ and \d+ tokens/
        );
        other.dispose();
    });
});
