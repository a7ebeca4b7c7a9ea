// The patched graph against files in which a block's output projection is zero: leaving a block out must be the same.
import path from 'node:path';
import { formatBlock, Model, perplexityOf, type Block } from '../../lib/index.js';
import { loadAddon, type NativeEvaluator } from '../../lib/runtime/addon.js';
import { architectures, fixture, randomModel, temporaryFolder, tiny, withModel, withZeroed } from '../models';

const folder = temporaryFolder();

/** The tensors whose zeros make a block add nothing. */
const projections = ({ kind, layer }: Block) => [`blk.${layer}.${kind === 'attn' ? 'attn_output' : 'ffn_down'}.weight`];

async function expectSkipEqualsZeroed(file: string): Promise<void> {
    await withModel(file, async (model, calibration) => {
        const blocks = await model.blocks();
        const dense = await perplexityOf(model, calibration);
        for (const block of blocks) {
            const skipped = await perplexityOf(model, calibration, { skip: [block] });
            const copy = await withZeroed(file, path.join(folder, 'zeroed.gguf'), projections(block));
            const zeroed = await withModel(copy, (other) => perplexityOf(other, calibration));
            expect([formatBlock(block), Math.abs(skipped / zeroed - 1) < 1e-5]).toEqual([formatBlock(block), true]);
            expect(Math.abs(skipped / dense - 1)).toBeGreaterThan(1e-5); // the block does something
        }
    });
}

/** An evaluator as the addon has it, and one sequence of 200 tokens. */
async function withEvaluator<T>(
    file: string,
    options: { logitsBytes?: number; context?: number; sequences?: number; keepMasks?: boolean },
    use: (evaluator: NativeEvaluator, tokens: Int32Array) => Promise<T>
): Promise<T> {
    const addon = await loadAddon();
    const model = await addon.Model.load(file, { gpus: [] });
    const evaluator = await addon.Evaluator.create(model, {
        context: 200,
        threads: 2,
        flashAttention: true,
        cacheType: 'f16',
        ...options
    });
    try {
        return await use(
            evaluator,
            Int32Array.from({ length: 200 }, (_, i) => (i * 37) % 2048)
        );
    } finally {
        evaluator.dispose();
        model.dispose();
    }
}

describe('leaving out a block equals zeroing its output projection', () => {
    test.each(Object.keys(architectures) as (keyof typeof architectures)[])(
        'in every block of a random %s',
        async (name) => {
            await expectSkipEqualsZeroed(await randomModel(name, path.join(folder, `${name}.gguf`)));
        }
    );

    test('in every block of the embedded model (Q8_0)', () => expectSkipEqualsZeroed(tiny));

    test('of several blocks at once: all attention, all FFN, whole layers', async () => {
        await withModel(tiny, async (model, calibration) => {
            const blocks = await model.blocks();
            for (const skip of [
                blocks.filter(({ kind }) => kind === 'attn'),
                blocks.filter(({ kind }) => kind === 'ffn'),
                blocks.filter(({ layer }) => layer < 3 || layer === 11)
            ]) {
                const copy = await withZeroed(tiny, path.join(folder, 'several.gguf'), skip.flatMap(projections));
                const zeroed = await withModel(copy, (other) => perplexityOf(other, calibration));
                expect((await perplexityOf(model, calibration, { skip })) / zeroed).toBeCloseTo(1, 5);
            }
        });
    });
});

test('blocks are found in the order of the residual stream, with their weights', async () => {
    await withModel(tiny, async (model) => {
        const blocks = await model.blocks();
        expect(blocks.map(formatBlock)).toEqual(
            Array.from({ length: 12 }).flatMap((_, layer) => [`attn.${layer}`, `ffn.${layer}`])
        );
        // norm, Q, K, V, output; norm, gate, up, down
        expect(blocks[0]!.parameters).toBe(256 + 2 * 256 * 256 + 2 * 256 * 128);
        expect(blocks[1]!.parameters).toBe(256 + 3 * 256 * 512);
    });
});

test('leaving out a block leaves out its operations and its KV cache writes', async () => {
    await withEvaluator(tiny, {}, async (evaluator, tokens) => {
        const graph = async (skip: number[]) => {
            await evaluator.evaluate(tokens, tokens.length, skip, {});
            return evaluator.graph();
        };
        const [dense, noAttn, noFfn, none] = [
            await graph([]),
            await graph([6]),
            await graph([7]),
            await graph(Array.from({ length: 24 }, (_, i) => i))
        ];
        // K and V of a layer
        expect([dense, noAttn, noFfn, none].map(({ cacheWrites }) => cacheWrites)).toEqual([24, 22, 24, 0]);
        expect(noFfn.nodes).toBeLessThan(dense.nodes);
        // what is left of no blocks is the embedding, the final norm, the logits and their NLL
        expect(none.nodes).toBeLessThan(30);
        // and the last layer's second selection of output rows
        expect(dense.nodes - none.nodes).toBe(12 * (dense.nodes - noAttn.nodes + dense.nodes - noFfn.nodes) + 1);
    });
});

// gemma3 has two masks, one for sliding windows
test.each(['embedded', 'gemma3-dense'])(
    'sequences computed at once, with masks that are kept, have the values of each alone: %s',
    async (name) => {
        const file = name === 'embedded' ? tiny : fixture(name, path.join(folder, `${name}.gguf`));
        const tokens = Int32Array.from({ length: 5 * 48 }, (_, i) => (i * 7919) % 110);
        const skips = [[], [1], [], [0, 2], Array.from({ length: 12 }, (_, i) => i)];
        const values = (options: { context: number; sequences?: number; keepMasks?: boolean }) =>
            withEvaluator(file, options, async (evaluator) => {
                const nll: Float32Array[] = [];
                for (const skip of skips) {
                    nll.push(await evaluator.evaluate(tokens, 48, skip, {}));
                }
                nll.push(await evaluator.evaluate(tokens.subarray(0, 4 * 30), 30, [3], {}));
                return nll;
            });
        const alone = await values({ context: 48 });
        // two batches of two and one of one: the second is computed like the first, with other tokens
        expect(await values({ context: 48, sequences: 2, keepMasks: true })).toEqual(alone);
        expect(await values({ context: 48, keepMasks: true })).toEqual(alone);
    }
);

describe('starting from a kept residual stream', () => {
    /** Memory for some boundaries of both sequences, of 64 tokens. */
    const bytesFor = (boundaries: number) => boundaries * 2 * 64 * 256 * 4;

    test.each([
        ['every boundary', 1000],
        ['a few boundaries', 3],
        ['none', 0]
    ])('gives the same values with %s kept', async (_, boundaries) => {
        await withModel(tiny, async (model, calibration) => {
            await withModel(tiny, async (fresh) => {
                const blocks = await model.blocks();
                const base = [blocks[4]!, blocks[9]!];
                const streams = await model.keepStreams(calibration, { keepBytes: bytesFor(boundaries) });
                const sequence = (nll: Float32Array, i: number) => nll.slice(i * 63, (i + 1) * 63);
                const expectSame = async (skip: Block[], mayWin = false) => {
                    const expected = await fresh.evaluate(calibration, { skip });
                    expect(await streams.evaluate(skip, [0, 1], mayWin)).toEqual([
                        sequence(expected, 0),
                        sequence(expected, 1)
                    ]);
                };
                // the first run of a context, and a graph like the one before it, must be planned anew
                for (const current of [[], base]) {
                    await expectSame(current);
                    for (const block of blocks.filter((candidate, i) => i % 3 !== 1 && !current.includes(candidate))) {
                        await expectSame([...current, block], block === blocks[12]);
                    }
                    // single sequences find what was kept of several
                    const skip = [...current, blocks[12]!];
                    expect(await streams.evaluate(skip, [1])).toEqual([
                        sequence(await fresh.evaluate(calibration, { skip }), 1)
                    ]);
                    streams.remove(base);
                }
                // other tokens and a skip set that differs from the first block on must not be mixed up with what is
                // kept
                const { tokens } = calibration;
                for (const other of [
                    { tokens: tokens.slice().reverse(), length: 64 },
                    { tokens, length: 32 }
                ]) {
                    const expected = await fresh.evaluate(other, { skip: base });
                    expect(await model.evaluate(other, { skip: base })).toEqual(expected);
                    const others = await model.keepStreams(other, { keepBytes: bytesFor(boundaries) });
                    const all = Array.from({ length: tokens.length / other.length }, (_, i) => i);
                    expect((await others.evaluate(base, all)).flatMap((nll) => [...nll])).toEqual([...expected]);
                    others.dispose();
                }
                streams.dispose();
                expect(await model.evaluate(calibration)).toEqual(await fresh.evaluate(calibration));
            });
        });
    });

    test('computes only what comes after it, and keeps what there is room for until it is of no use', async () => {
        await withModel(tiny, async (model, calibration) => {
            const blocks = await model.blocks();
            const token = 4 * model.embedding * 2; // bytes, of both sequences
            // the last FFN's has no last token: it predicts nothing
            const kept = (boundaries: number) => (boundaries * 64 - 1) * token;
            const streams = await model.keepStreams(calibration, { keepBytes: bytesFor(34) });
            expect(streams.room).toBe(34); // two thirds of them are for the current model: 23, all that it has
            const computed = async (skip: Block[], mayWin = false) => {
                const before = streams.work.blocks;
                await streams.evaluate(skip, [0, 1], mayWin);
                return (streams.work.blocks - before) / 2;
            };
            expect(await computed([])).toBe(24);
            expect(streams.work.keptBytes).toBe(kept(23));
            expect(await computed([blocks[10]!])).toBe(13);
            expect(await computed([blocks[23]!])).toBe(0);
            expect(await computed([blocks[10]!], true)).toBe(13); // 11 more boundaries, behind block 10
            expect(streams.work.keptBytes).toBe(kept(34) - token); // two of them are the last FFN's
            streams.remove([blocks[10]!]);
            expect(streams.work.keptBytes).toBe(kept(10 + 11));
            expect(await computed([blocks[10]!, blocks[23]!])).toBeLessThan(4);
            streams.remove([blocks[0]!]);
            expect(streams.work.keptBytes).toBe(0);
        });
    });

    test('ends when the streams are disposed, and with the model', async () => {
        await withModel(tiny, async (model, calibration) => {
            const streams = await model.keepStreams(calibration);
            const running = streams.evaluate([], [0, 1]);
            streams.dispose();
            streams.dispose();
            expect(await running).toHaveLength(2); // what is running ends first
            await expect(streams.evaluate([], [0])).rejects.toThrow('the kept streams are disposed');
            const others = await model.keepStreams(calibration);
            model.dispose();
            await expect(others.evaluate([], [0])).rejects.toThrow('the kept streams are disposed');
        });
    });
});

test.each(['llama', 'gemma2'] as const)(
    'logits of long sequences are computed in parts, to the same values (%s)',
    async (name) => {
        const file = await randomModel(name, path.join(folder, 'parts.gguf'));
        const nll = (logitsBytes: number) =>
            withEvaluator(file, { logitsBytes }, (evaluator, tokens) =>
                evaluator.evaluate(tokens, tokens.length, [2], {})
            );
        const [whole, parts] = [await nll(2 ** 28), await nll(64 * 2048 * 4)]; // 64 positions at a time, of 199
        parts.forEach((value, i) => expect(value).toBeCloseTo(whole[i]!, 4));
    }
);

test('logits in many parts fit into the graph', async () => {
    const context = 32 * 70; // 70 parts, of 32 positions at least
    await withEvaluator(tiny, { logitsBytes: 1, context }, async (evaluator) => {
        const tokens = Int32Array.from({ length: context }, (_, i) => (i * 37) % 2048);
        expect((await evaluator.evaluate(tokens, context, [], {})).every((value) => value > 0)).toBe(true);
    });
});

test('progress never comes after the end', async () => {
    await withModel(
        tiny,
        async (model, calibration) => {
            let ended = false,
                late = 0;
            for (let i = 0; i < 30; i++) {
                ended = false;
                await model.evaluate(calibration, {
                    onProgress: () => {
                        late += Number(ended);
                    }
                });
                ended = true;
                await new Promise((resolve) => setTimeout(resolve, 1));
            }
            expect(late).toBe(0);
        },
        { samples: 1, context: 32 }
    );
});

test('evaluations that do not fit are refused', async () => {
    await withModel(tiny, async (model, { tokens }) => {
        await expect(model.evaluate({ tokens, length: 64 }, { skip: [{ kind: 'attn', layer: 12 }] })).rejects.toThrow(
            'the model has no block attn.12: its layers are 0 to 11'
        );
        await expect(model.evaluate({ tokens: tokens.slice(1), length: 64 })).rejects.toThrow('whole sequences');
        await expect(model.evaluate({ tokens: Int32Array.from([1, 2048]), length: 2 })).rejects.toThrow(
            'token 2048 is not in the vocabulary of 2048'
        );
        await expect(
            Promise.all([model.evaluate({ tokens, length: 64 }), model.evaluate({ tokens, length: 64 })])
        ).rejects.toThrow('one evaluation at a time');
    });
});

test('an AbortSignal stops an evaluation within a second', async () => {
    await withModel(
        tiny,
        async (model, calibration) => {
            const stop = new AbortController();
            let aborted = 0;
            const work = model.evaluate(calibration, {
                signal: stop.signal,
                onProgress: () => {
                    aborted ||= performance.now();
                    stop.abort(new Error('enough'));
                }
            });
            await expect(work).rejects.toThrow('enough');
            expect(performance.now() - aborted).toBeLessThan(1500);
            expect(await perplexityOf(model, { tokens: calibration.tokens.slice(0, 128), length: 64 })).toBeGreaterThan(
                1
            ); // still usable
        },
        { context: 512, samples: 60 }
    );
});

test('a disposed model says so', async () => {
    const model = await Model.load(tiny, { device: 'cpu' });
    model.dispose();
    await expect(model.tokenize('text')).rejects.toThrow('disposed');
});
