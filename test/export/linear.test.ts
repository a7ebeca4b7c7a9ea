// Linear blocks: put into files of the host deci, found in them, and pruned again.
import fs from 'node:fs';
import path from 'node:path';
import {
    chooseHost,
    formatBlock,
    formatOrder,
    inspect,
    meanNll,
    Model,
    parseBlock,
    parseBlocks,
    perplexityOf,
    prune,
    readGguf,
    writeDraft,
    type Block,
    type LinearBlock,
    type Removal
} from '../../lib/index.js';
import { packLayers } from '../../lib/export/host.js';
import { planFile } from '../../lib/export/write.js';
import { readBytes, textsOf } from '../gguf_bytes';
import { KeptStock } from '../kept_process';
import { randomModel, randomNumbers, temporaryFolder, tiny, withModel, withZeroed, writeGguf } from '../models';

const folder = temporaryFolder();
const stock = new KeptStock();
const file = (name: string) => path.join(folder, name);
const embedding = 256; // of the embedded model
const removed = parseBlocks('attn.3,ffn.5');

const names = (blocks: readonly Block[]) => blocks.map(formatBlock).join(' ');

/** Weights of a linear block, so small that the model still works, or zero. */
function weights(seed: number, scale = 0.1): Float32Array {
    const random = randomNumbers(seed);
    return Float32Array.from({ length: embedding ** 2 }, () => scale * random());
}

/** A linear block right before another block, or at the end of the stream. */
function linearBlock(before: string | undefined, values = weights(1), type = 'f32'): LinearBlock {
    return { before: before === undefined ? undefined : parseBlock(before), weights: values, type };
}

async function write(source: string, removal: Removal, output: string): Promise<string> {
    await withModel(source, async (model) => {
        const dense = { gguf: model.gguf, host: await chooseHost(model.gguf), blocks: await model.blocks() };
        const provenance = {
            calibration: { name: 'text', sequences: 2, context: 64 },
            perplexity: { dense: 1, pruned: 1 }
        };
        await (await writeDraft(dense, removal, provenance, output, { force: true })).publish();
    });
    return output;
}

const perplexity = (source: string, skip: readonly Block[] = []) =>
    withModel(source, (model, calibration) => perplexityOf(model, calibration, { skip }));

const stockPerplexity = (source: string) =>
    withModel(tiny, async (_, calibration) =>
        Math.exp(meanNll(await stock.nll(source, calibration), calibration.length))
    );

let twice: string; // the embedded model with a linear block before an FFN block and another one at the end
beforeAll(async () => {
    twice = await write(
        tiny,
        { removed, linear: [linearBlock('ffn.3'), linearBlock(undefined, weights(2))] },
        file('twice.gguf')
    );
});

test('a written file shows its linear blocks, in layers with the FFN blocks behind them', async () => {
    const { blocks, layers, host } = await inspect(twice);
    expect(names(blocks)).toBe(
        'attn.0 ffn.0 attn.1 ffn.1 attn.2 ffn.2 linear.3 ffn.3 attn.4 ffn.4 attn.5 attn.6 ffn.6 ' +
            'attn.7 ffn.7 attn.8 ffn.8 attn.9 ffn.9 attn.10 ffn.10 attn.11 ffn.11 linear.12'
    );
    expect({ layers, host }).toEqual({ layers: 13, host: 'deci' });
    expect(blocks.find(({ kind }) => kind === 'linear')).toMatchObject({
        parameters: embedding ** 2 + embedding,
        bytes: 4 * (embedding ** 2 + embedding)
    });
    const { metadata } = await readGguf(twice);
    const counts = (key: string) => (metadata[`deci.attention.${key}`] as number[]).map((count) => count > 0);
    expect(counts('head_count')).toEqual(Array<boolean>(13).fill(true));
    expect(counts('head_count_kv').flatMap((has, layer) => (has ? [] : [layer]))).toEqual([3, 12]);
    expect(metadata['blockpruner.filler']).toBe('ffn.5,ffn.12');
    expect(textsOf(twice, 'blockpruner.linear')).toEqual(['before ffn.3', 'at the end']);
});

describe('a written file has the same perplexity in the addon and in the stock runtime', () => {
    test.each([
        ['before an FFN block and at the end', removed, ['ffn.3', undefined]],
        ['two before one block, in the place of layer 0', parseBlocks('attn.0'), ['ffn.0', 'ffn.0']],
        ['before an attention block', parseBlocks('ffn.4'), ['attn.5']],
        [
            'first, where no attention is left',
            parseBlocks(Array.from({ length: 12 }, (_, layer) => `attn.${layer}`).join()),
            ['ffn.0']
        ]
    ])('%s', async (_, gone, places) => {
        const linear = places.map((before, i) => linearBlock(before, weights(i + 3)));
        const output = await write(tiny, { removed: gone, linear }, file('placed.gguf'));
        const found = await perplexity(output);
        expect((await stockPerplexity(output)) / found).toBeCloseTo(1, 5);
        expect((await inspect(output)).host).toBe('deci'); // so it can be pruned again
        // and they do something
        expect(Math.abs(found / (await perplexity(tiny, gone)) - 1)).toBeGreaterThan(1e-3);
    });

    test.each(['f16', 'q8_0'])('with weights in %s', async (type) => {
        const output = await write(
            tiny,
            { removed, linear: [linearBlock('ffn.3', weights(1), type), linearBlock(undefined, weights(2), type)] },
            file('typed.gguf')
        );
        const written = (await readGguf(output)).tensors.find(({ name }) => name === 'blk.3.attn_output.weight');
        expect(written!.type).toBe(type);
        const found = await perplexity(output);
        expect((await stockPerplexity(output)) / found).toBeCloseTo(1, 4);
        expect(found / (await perplexity(twice))).toBeCloseTo(1, type === 'q4_K' ? 1 : 2);
    });
});

describe('a linear block computes x + W·RMSNorm(x)', () => {
    const withLast = (name: string, values: Float32Array) =>
        write(tiny, { removed, linear: [linearBlock(undefined, values)] }, file(name));

    test('which is x where W is zero', async () => {
        const zero = new Float32Array(embedding ** 2);
        const output = await write(
            tiny,
            { removed, linear: [linearBlock('ffn.3', zero), linearBlock(undefined, zero)] },
            file('zero.gguf')
        );
        const plain = await perplexity(await write(tiny, { removed }, file('plain.gguf')));
        expect((await perplexity(output)) / plain).toBeCloseTo(1, 6);
        expect((await perplexity(tiny, removed)) / plain).toBeCloseTo(1, 6);
    });

    test('of which the final norm takes back a multiple of x', async () => {
        const identity = Float32Array.from({ length: embedding ** 2 }, (_, i) => Number(i % (embedding + 1) === 0));
        const plain = await perplexity(tiny, removed);
        expect((await perplexity(await withLast('scaled.gguf', identity))) / plain).toBeCloseTo(1, 5);
    });

    test('where a row of W gives one value', async () => {
        // so large that nothing else of the stream counts: value i becomes the norm's value i + 1
        const shift = new Float32Array(embedding ** 2);
        for (let i = 0; i < embedding; i++) {
            shift[i * embedding + ((i + 1) % embedding)] = 1e6;
        }
        const hidden = (source: string, skip: Block[]) =>
            withModel(source, (model, calibration) => model.hidden(calibration, { skip }));
        const before = await hidden(tiny, removed);
        const after = await hidden(await withLast('shifted.gguf', shift), []);
        const scale = await outputNorm();
        const wrong = Array.from(after).filter((value, at) => {
            const from = (at % embedding) + 1 === embedding ? at + 1 - embedding : at + 1;
            const expected = (before[from]! / scale[from % embedding]!) * scale[at % embedding]!;
            return !(Math.abs(value - expected) < 1e-3 * (1 + Math.abs(expected)));
        });
        expect(wrong).toEqual([]);
    });

    /** The weights of the embedded model's last norm. */
    async function outputNorm(): Promise<Float32Array> {
        const { tensors } = await readGguf(tiny);
        const index = tensors.findIndex(({ name }) => name === 'output_norm.weight');
        expect(tensors[index]).toMatchObject({ type: 'f32', shape: [embedding] });
        // a file that has this tensor alone ends with it
        const alone = file('norm.gguf');
        await writeGguf({
            output: alone,
            sources: [tiny],
            tensors: [{ name: 'output_norm.weight', from: [{ file: 0, name: 'output_norm.weight' }] }]
        });
        return new Float32Array(new Uint8Array(fs.readFileSync(alone).subarray(-4 * embedding)).buffer);
    }
});

describe('a file with linear blocks, pruned again', () => {
    test('leaving out a linear block equals zeroing its projection', async () => {
        for (const layer of [3, 12]) {
            const zeroed = await withZeroed(twice, file('zeroed.gguf'), [`blk.${layer}.attn_output.weight`]);
            const skipped = await perplexity(twice, [{ kind: 'linear', layer }]);
            expect(skipped / (await perplexity(zeroed))).toBeCloseTo(1, 6);
            expect(Math.abs(skipped / (await perplexity(twice)) - 1)).toBeGreaterThan(1e-3);
        }
    });

    test.each(['linear.12', 'linear.3,ffn.7', 'attn.0,ffn.0,attn.1,ffn.1,attn.2,ffn.2', 'ffn.3'])(
        'without %s, the file computes what the search did, with the other linear blocks copied',
        async (skip) => {
            const gone = parseBlocks(skip);
            const output = await write(twice, { removed: gone }, file('again.gguf'));
            const searched = await perplexity(twice, gone);
            expect((await perplexity(output)) / searched).toBeCloseTo(1, 6);
            expect((await stockPerplexity(output)) / searched).toBeCloseTo(1, 5);
            const kinds = (blocks: readonly Block[]) => blocks.map(({ kind }) => kind);
            const { blocks } = await inspect(twice);
            const staying = blocks.filter((block) => !skip.split(',').includes(formatBlock(block)));
            expect(kinds((await inspect(output)).blocks)).toEqual(kinds(staying));
            // what was told of the source's own linear blocks is not told of the new file
            expect(readBytes(output).metadata.has('blockpruner.linear')).toBe(false);
        }
    );

    test('and more linear blocks put in beside the first, in the types that they have', async () => {
        const source = await write(
            tiny,
            { removed, linear: [linearBlock('ffn.3', weights(1), 'q8_0')] },
            file('typed-source.gguf')
        );
        const linear = [linearBlock('linear.3', weights(7), 'f16'), linearBlock('attn.4', weights(8))];
        const output = await write(source, { removed: parseBlocks('attn.8'), linear }, file('more.gguf'));
        const { tensors } = await readGguf(output);
        const types = Object.fromEntries(tensors.map(({ name, type }) => [name, type]));
        expect(names((await inspect(output)).blocks)).toContain('linear.3 linear.4 ffn.4 linear.5 attn.6 ffn.6');
        expect([3, 4, 5].map((layer) => types[`blk.${layer}.attn_output.weight`])).toEqual(['f16', 'q8_0', 'f32']);
        expect((await stockPerplexity(output)) / (await perplexity(output))).toBeCloseTo(1, 5);
    });

    test('a linear block is a candidate of a search over all blocks, and of none over one kind', async () => {
        const harmful = weights(9, 1);
        const source = await write(
            tiny,
            { removed: [], linear: [linearBlock('attn.6', harmful)] },
            file('candidate.gguf')
        );
        const output = file('searched.gguf');
        const options = {
            output,
            force: true,
            remove: 1,
            device: 'cpu',
            threads: 1,
            repair: 'none',
            calibration: { file: 'embedded', samples: 2, context: 64 }
        } as const;
        const result = await prune(source, options);
        expect(names(result.removed)).toBe('linear.6');
        expect(names((await prune(source, { ...options, blocks: 'attn' })).removed)).toMatch(/^attn\./);
    });

    test('the paper’s order files can’t tell of linear blocks, which is said before the search', async () => {
        expect(() => formatOrder(parseBlocks('attn.1,linear.3'))).toThrow("can't tell of linear.3");
        const options = {
            output: file('ordered.gguf'),
            remove: 1,
            device: 'cpu',
            threads: 1,
            orderFile: file('order.json'),
            calibration: { file: 'embedded', samples: 2, context: 64 }
        } as const;
        let steps = 0;
        await expect(prune(twice, { ...options, onStart: () => steps++ })).rejects.toThrow("can't tell of linear.3");
        expect(steps).toBe(0);
    });
});

test('blocks with linear ones are packed into as few layers as keep their order', () => {
    const put = linearBlock(undefined);
    expect(packLayers([...parseBlocks('linear.0,ffn.0,linear.1,attn.2,ffn.2'), put])).toEqual([
        { linear: 0, ffn: 0 },
        { linear: 1 },
        { attn: 2, ffn: 2 },
        { linear: put }
    ]);
});

test('linear blocks that can’t be written are refused', async () => {
    await withModel(tiny, async (model) => {
        const { gguf } = model;
        const dense = { gguf, host: await chooseHost(gguf), blocks: await model.blocks() };
        expect(() => planFile(dense, { removed, linear: [linearBlock('attn.3')] })).toThrow(
            "a linear block can't stand before attn.3, which is not among the blocks that stay"
        );
        expect(() => planFile(dense, { removed, linear: [linearBlock('ffn.3', new Float32Array(3))] })).toThrow(
            'needs 256 × 256 weights, not 3'
        );
    });
    for (const [values, type, message] of [
        [weights(1).fill(NaN, 77, 78), 'f32', 'blk.3.attn_output.weight has values that are not finite'],
        [weights(1), 'iq2_xxs', "blk.3.attn_output.weight can't be iq2_xxs"],
        [weights(1), 'q9_9', "unknown tensor type 'q9_9'"]
    ] as const) {
        const attempt = write(tiny, { removed, linear: [linearBlock('ffn.3', values, type)] }, file('refused.gguf'));
        await expect(attempt).rejects.toThrow(message);
        expect(fs.existsSync(file('refused.gguf'))).toBe(false);
    }
    const gemma = await randomModel('gemma2', file('gemma2.gguf'));
    const model = await Model.load(gemma, { device: 'cpu', headerOnly: true });
    try {
        const { gguf } = model;
        const dense = { gguf, host: await chooseHost(gguf), blocks: await model.blocks() };
        expect(() => planFile(dense, { removed: [], linear: [linearBlock(undefined)] })).toThrow(
            "linear blocks can't be written as gemma2, only as deci"
        );
    } finally {
        model.dispose();
    }
});
