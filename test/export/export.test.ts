// Written files in the stock runtime (node-llama-cpp) against the skip sets that they were written without.
import fs from 'node:fs';
import path from 'node:path';
import {
    chooseHost,
    formatBlock,
    inspect,
    meanNll,
    Model,
    perplexityOf,
    readGguf,
    stockGenerate,
    writeDraft,
    type WriteOptions,
    type Block,
    type BlockInfo,
    type Calibration
} from '../../lib/index.js';
import { packLayers } from '../../lib/export/host.js';
import { textsOf } from '../gguf_bytes';
import { KeptStock } from '../kept_process';
import {
    fileTypes,
    quantize,
    randomModel,
    randomNumbers,
    split,
    temporaryFolder,
    tiny,
    withModel,
    withZeroed,
    writeGguf
} from '../models';

const folder = temporaryFolder();
const stock = new KeptStock();
const file = (name: string) => path.join(folder, name);

async function write(model: Model, removed: Block[], calibration: Calibration, output: string): Promise<void> {
    const dense = { gguf: model.gguf, host: await chooseHost(model.gguf), blocks: await model.blocks() };
    const provenance = {
        calibration: { name: calibration.name, sequences: 2, context: calibration.length },
        perplexity: { dense: 2, pruned: 3 }
    };
    await (await writeDraft(dense, { removed }, provenance, output, { force: true })).publish();
}

/** So many of some blocks, chosen at random, in their order. */
function some(blocks: readonly Block[], count: number, random: () => number): Block[] {
    const drawn = blocks.map((block) => ({ block, number: random() })).sort((a, b) => a.number - b.number);
    const chosen = new Set(drawn.slice(0, count).map(({ block }) => block));
    return blocks.filter((block) => chosen.has(block));
}

/** Skip sets of every shape that a layer can take. */
function skipSets(blocks: readonly Block[], seed: number): Record<string, Block[]> {
    const random = randomNumbers(seed);
    const last = blocks.at(-1)!.layer;
    const third = Math.round(blocks.length / 3);
    return {
        nothing: [],
        'the first attention and the last FFN': [
            blocks.find(({ kind }) => kind === 'attn')!,
            blocks.findLast(({ kind }) => kind === 'ffn')!
        ],
        'whole layers': blocks.filter(({ layer }) => layer === 1 || layer === last),
        'all attention': blocks.filter(({ kind }) => kind === 'attn'),
        'all FFN': blocks.filter(({ kind }) => kind === 'ffn'),
        'a random third': some(blocks, third, random),
        'a random two thirds': some(blocks, 2 * third, random)
    };
}

async function expectSameInStockRuntime(source: string, seed: number): Promise<void> {
    await withModel(source, async (model, calibration) => {
        const { tolerance } = await chooseHost(model.gguf);
        const blocks = await model.blocks();
        const sets = Object.entries(skipSets(blocks, seed));
        expect(sets.filter(([, skip]) => skip.length >= 2)).toHaveLength(6); // all but the empty one
        // at most, in bytes: a head of 64 values in F16, in each layer an FFN of length 1, and the provenance
        const fillers = 4 * 64 * model.embedding * 2 + model.layers * 3072 + 1024;
        for (const [name, skip] of sets) {
            const output = file('pruned.gguf');
            await write(model, skip, calibration, output);
            const searched = await perplexityOf(model, calibration, { skip });
            const found = Math.exp(meanNll(await stock.nll(output, calibration), calibration.length));
            expect({
                name,
                skip: skip.map(formatBlock).join(),
                same: Math.abs(found / searched - 1) < tolerance
            }).toMatchObject({ same: true });

            const spared = skip.reduce((sum, block) => sum + sizeOf(blocks, block), 0);
            const saved = fs.statSync(source).size - fs.statSync(output).size;
            expect({ name, saved, enough: saved > spared - fillers }).toMatchObject({ enough: true });
        }
    });
}

function sizeOf(blocks: readonly BlockInfo[], { kind, layer }: Block): number {
    return blocks.find((block) => block.kind === kind && block.layer === layer)!.bytes;
}

describe('a pruned file has the perplexity of its skip set in the stock runtime', () => {
    test.each(['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_K_M', 'IQ4_NL'] as const)(
        'the embedded model as %s',
        async (type) => {
            await expectSameInStockRuntime(await quantize(tiny, file(`${type}.gguf`), type), fileTypes[type]);
        }
    );

    test.each(['F32', 'Q4_K_M'] as const)('a random Qwen2 as %s: biases and the other rope order', async (type) => {
        const f32 = await randomModel('qwen2', file('qwen2-f32.gguf'));
        await expectSameInStockRuntime(type === 'F32' ? f32 : await quantize(f32, file('qwen2.gguf'), type), 7);
    });

    test('to 1e-4, except for models whose rows are reordered', async () => {
        const toleranceOf = (source: string) =>
            withModel(source, async (model) => (await chooseHost(model.gguf)).tolerance);
        expect(await toleranceOf(tiny)).toBe(1e-4);
        const qwen = await randomModel('qwen2', file('tolerance.gguf'));
        expect(await toleranceOf(qwen)).toBe(1e-3);
        expect(await toleranceOf(await quantize(qwen, file('tolerance-q8.gguf'), 'Q8_0'))).toBe(1e-2);
    });

    test('a pruned file, pruned again', async () => {
        await withModel(tiny, async (model, calibration) => {
            await write(
                model,
                [
                    { kind: 'attn', layer: 0 },
                    { kind: 'ffn', layer: 4 },
                    { kind: 'attn', layer: 7 }
                ],
                calibration,
                file('once.gguf')
            );
        });
        await expectSameInStockRuntime(file('once.gguf'), 5);
    });

    test('a pruned file has no blocks of filler', async () => {
        await withModel(tiny, (model, calibration) =>
            write(
                model,
                [
                    { kind: 'attn', layer: 0 },
                    { kind: 'ffn', layer: 4 }
                ],
                calibration,
                file('filler.gguf')
            )
        );
        const { blocks } = await inspect(file('filler.gguf'));
        expect(blocks.length).toBe(22);
        expect(blocks.every(({ parameters }) => parameters > 1e5)).toBe(true);
    });

    test('a source with another alignment', async () => {
        const { tensors } = await readGguf(tiny);
        // what is written here is aligned to 32; all tensors' sizes are multiples of 64, and with the right padding so
        // is the header
        for (const padding of ['', 'x'.repeat(32)]) {
            await writeGguf({
                output: file('aligned.gguf'),
                sources: [tiny],
                set: [
                    { key: 'general.alignment', type: 'u32', value: 64 },
                    { key: 'test.padding', type: 'string', value: padding }
                ],
                tensors: tensors.map(({ name }) => ({ name, from: [{ file: 0, name }] }))
            });
            const complete = await readGguf(file('aligned.gguf')).then(
                () => true,
                () => false
            );
            if (complete) {
                break;
            }
        }
        expect((await readGguf(file('aligned.gguf'))).metadata['general.alignment']).toBe(64);
        await expectSameInStockRuntime(file('aligned.gguf'), 11);
    });

    test('and generates the same text as the dense model with the blocks zeroed', async () => {
        await withModel(tiny, async (model, calibration) => {
            await write(
                model,
                [
                    { kind: 'attn', layer: 3 },
                    { kind: 'ffn', layer: 8 }
                ],
                calibration,
                file('generates.gguf')
            );
        });
        const zeroed = await withZeroed(tiny, file('zeroed.gguf'), [
            'blk.3.attn_output.weight',
            'blk.8.ffn_down.weight'
        ]);
        const options = { device: 'cpu', threads: 1, flashAttention: true } as const;
        const text = await stockGenerate(file('generates.gguf'), 'The whale', 24, options);
        expect(text.length).toBeGreaterThan(20);
        expect(text).toBe(await stockGenerate(zeroed, 'The whale', 24, options));
    });
});

test('metadata is kept, renamed and added to', async () => {
    await withModel(tiny, async (model, calibration) => {
        await write(model, [{ kind: 'ffn', layer: 2 }], calibration, file('metadata.gguf'));
    });
    const [{ metadata: before }, { metadata: after }] = [await readGguf(tiny), await readGguf(file('metadata.gguf'))];
    const kept = Object.keys(before).filter(
        (key) => /^(general|tokenizer)\./.test(key) && !['general.architecture', 'general.size_label'].includes(key)
    );
    expect(kept.length).toBeGreaterThan(5);
    expect(kept.map((key) => [key, after[key]])).toEqual(kept.map((key) => [key, before[key]]));
    expect(textsOf(file('metadata.gguf'), 'tokenizer.ggml.tokens')).toEqual(textsOf(tiny, 'tokenizer.ggml.tokens'));
    expect(textsOf(file('metadata.gguf'), 'blockpruner.removed')).toEqual(['ffn.2']);
    expect(Object.keys(after).filter((key) => key.startsWith('llama.'))).toEqual([]);
    expect(after).toMatchObject({
        'general.architecture': 'deci',
        'general.size_label': '7.2M',
        'deci.block_count': 12,
        'deci.context_length': before['llama.context_length'],
        'deci.feed_forward_length': [512, 512, 1, ...Array<number>(9).fill(512)],
        'blockpruner.source.name': 'blockpruner-tiny.gguf',
        'blockpruner.source.architecture': 'llama',
        'blockpruner.calibration.name': 'calibration.txt',
        'blockpruner.calibration.sequences': 2,
        'blockpruner.calibration.context': 64,
        'blockpruner.perplexity.dense': 2,
        'blockpruner.perplexity.pruned': 3
    });
    expect(after['blockpruner.source.sha256']).toMatch(/^[0-9a-f]{64}$/);
});

test('a split model gives the same file as a whole one', async () => {
    await split(tiny, file('split'));
    const removed: Block[] = [{ kind: 'attn', layer: 5 }];
    await withModel(tiny, (model, calibration) => write(model, removed, calibration, file('from-whole.gguf')));
    await withModel(file('split-00001-of-00003.gguf'), (model, calibration) =>
        write(model, removed, calibration, file('from-split.gguf'))
    );
    const [whole, ofSplit] = [await readGguf(file('from-whole.gguf')), await readGguf(file('from-split.gguf'))];
    expect(ofSplit.tensors.map(({ name }) => name)).toEqual(whole.tensors.map(({ name }) => name));
    expect(Object.keys(ofSplit.metadata).filter((key) => key.startsWith('split.'))).toEqual([]);
    // the tensors are the end of both files; the headers differ in the source's name and hash
    const bytes = whole.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    expect(
        fs
            .readFileSync(file('from-split.gguf'))
            .subarray(-bytes)
            .equals(fs.readFileSync(file('from-whole.gguf')).subarray(-bytes))
    ).toBe(true);

    await expect(readGguf(file('split-00002-of-00003.gguf'))).rejects.toThrow('give the first');
    fs.rmSync(file('split-00003-of-00003.gguf'));
    await expect(readGguf(file('split-00001-of-00003.gguf'))).rejects.toThrow(
        'split-00003-of-00003.gguf: there is no such file'
    );
});

test('blocks are packed into as few layers as keep their order', () => {
    const pack = (text: string) =>
        packLayers(
            text
                .split(' ')
                .map((word): Block => ({ kind: word.startsWith('a') ? 'attn' : 'ffn', layer: Number(word.slice(1)) }))
        );
    expect(pack('a0 f0 a1 f1')).toEqual([
        { attn: 0, ffn: 0 },
        { attn: 1, ffn: 1 }
    ]);
    expect(pack('a0 a1 f1')).toEqual([
        { attn: 0, ffn: undefined },
        { attn: 1, ffn: 1 }
    ]);
    expect(pack('f0 f1 a2')).toEqual([
        { attn: undefined, ffn: 0 },
        { attn: undefined, ffn: 1 },
        { attn: 2, ffn: undefined }
    ]);
    expect(pack('a0 f1 f2')).toEqual([
        { attn: 0, ffn: 1 },
        { attn: undefined, ffn: 2 }
    ]);
});

test('what fails leaves nothing behind', async () => {
    await withModel(tiny, async (model, calibration) => {
        const dense = { gguf: model.gguf, host: await chooseHost(model.gguf), blocks: await model.blocks() };
        const provenance = {
            calibration: { name: calibration.name, sequences: 1, context: 64 },
            perplexity: { dense: 1, pruned: 1 }
        };
        const output = path.join(fs.mkdtempSync(file('empty-')), 'out.gguf');
        const inFolder = () => fs.readdirSync(path.dirname(output));
        const attempt = (options: WriteOptions) => writeDraft(dense, { removed: [] }, provenance, output, options);

        // A draft that isn't published, such as one that isn't verified, has another name and goes.
        const draft = await attempt({});
        expect(inFolder()).toEqual([path.basename(draft.file)]);
        expect(draft.file).not.toBe(output);
        await draft.discard();
        expect(inFolder()).toEqual([]);

        const stop = new AbortController();
        const stopped = attempt({ signal: stop.signal, onProgress: () => stop.abort(new Error('enough')) });
        await expect(stopped).rejects.toThrow('enough');
        expect(inFolder()).toEqual([]);

        const [published, late] = [await attempt({}), await attempt({})];
        await published.publish();
        await published.discard(); // does nothing to what is published
        await expect(late.publish()).rejects.toThrow('exists');
        await late.discard();
        await expect(attempt({})).rejects.toThrow('exists');
        expect(inFolder()).toEqual(['out.gguf']);
    });
});
