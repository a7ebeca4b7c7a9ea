// The methods that BlockPruner is compared with; ../reference/search.py says how the numbers of influence.json came
// about.
import fs from 'node:fs';
import path from 'node:path';
import {
    apply,
    chooseHost,
    formatBlock,
    formatMove,
    loadCalibration,
    meanNll,
    methods,
    Model,
    movesOf,
    perplexityOf,
    prune,
    without,
    type Block,
    type Host,
    type MethodOptions,
    type Step
} from '../../lib/index.js';
import { fitText } from '../../lib/repair/fit-text.js';
import { fixture, quantize, temporaryFolder, tiny } from '../models';
import { calibration, readReference } from '../reference/read';

type Influence = Record<'cosine' | 'change', number>;
const reference = readReference<{ blocks: Record<string, Influence>; layers: Influence[] }>('influence.json');
const folder = temporaryFolder();
let model: Model, host: Host, blocks: Block[];

beforeAll(async () => {
    // F32 throughout, as PyTorch computes
    model = await Model.load(await quantize(tiny, path.join(folder, 'f32.gguf'), 'F32'), {
        device: 'cpu',
        threads: 1,
        cacheType: 'f32'
    });
    [host, blocks] = [await chooseHost(model.gguf), await model.blocks()];
});
afterAll(() => model.dispose());

/** The order in which a method that ranks once removes everything that it can. */
async function orderOf(method: Parameters<typeof movesOf>[0], options: Partial<MethodOptions> = {}): Promise<string[]> {
    const moves = await movesOf(method, { model, host, blocks, calibration, ...options });
    const removed: Block[] = [],
        order: string[] = [];
    for (let next; (next = moves(removed)).length > 0;) {
        expect(next).toHaveLength(1);
        removed.push(...next[0]!);
        order.push(formatMove(next[0]!));
    }
    return order;
}

const layerName = (layer: number) => `attn.${layer} ffn.${layer}`;
const ascending = (values: number[]) =>
    values
        .map((value, i) => ({ value, i }))
        .sort((a, b) => a.value - b.value)
        .map(({ i }) => i);

test('what blocks and layers do to the residual stream is what PyTorch finds', async () => {
    const layers = reference.layers.map((_, layer) => blocks.filter((block) => block.layer === layer));
    const found = await model.influence(calibration, [...blocks.map((block) => [block]), ...layers]);
    [...blocks.map((block) => reference.blocks[formatBlock(block)]!), ...reference.layers].forEach((expected, i) => {
        expect(found[i]!.cosine).toBeCloseTo(expected.cosine, 4);
        expect(found[i]!.change / expected.change).toBeCloseTo(1, 3);
    });
});

// one layer, or block, always stays
test('shortgpt removes the layers with the lowest Block Influence first', async () => {
    expect(await orderOf('shortgpt')).toEqual(
        ascending(reference.layers.map(({ cosine }) => -cosine))
            .map(layerName)
            .slice(0, -1)
    );
});

test('relative-magnitude removes the layers that change the stream least first', async () => {
    expect(await orderOf('relative-magnitude')).toEqual(
        ascending(reference.layers.map(({ change }) => change))
            .map(layerName)
            .slice(0, -1)
    );
});

test('block-influence ranks single blocks, of one kind if asked', async () => {
    const ranked = (kind = '') => {
        const names = Object.keys(reference.blocks).filter((name) => name.startsWith(kind));
        return ascending(names.map((name) => -reference.blocks[name]!.cosine)).map((i) => names[i]!);
    };
    expect(await orderOf('block-influence')).toEqual(ranked().slice(0, -1));
    expect(await orderOf('block-influence', { selection: 'attn' })).toEqual(ranked('attn'));
});

test('random is another order with another seed, and the same with the same', async () => {
    const [first, again, other] = [
        await orderOf('random', { seed: 1 }),
        await orderOf('random', { seed: 1 }),
        await orderOf('random', { seed: 2 })
    ];
    expect(again).toEqual(first);
    expect(other).not.toEqual(first);
    expect([...first].sort()).not.toEqual(first);
    expect(new Set(first).size).toBe(blocks.length - 1);
});

test('sleb offers all layers that are left', async () => {
    const moves = await movesOf('sleb', { model, host, blocks, calibration });
    expect(moves([]).map(formatMove)).toEqual(reference.layers.map((_, layer) => layerName(layer)));
    expect(moves(blocks.filter(({ layer }) => layer === 3)).map(formatMove)).toEqual(
        reference.layers.map((_, layer) => layerName(layer)).filter((_name, layer) => layer !== 3)
    );
});

test('sleb removes the layer without which the perplexity is lowest', async () => {
    const options = {
        device: 'cpu',
        threads: 1,
        repair: 'none',
        calibration: { file: 'embedded', samples: 2, context: 64 }
    } as const;
    const { steps } = await prune(tiny, {
        ...options,
        output: path.join(folder, 'sleb.gguf'),
        method: 'sleb',
        remove: 4,
        search: 'exact'
    });
    expect(steps).toHaveLength(2);
    const check = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const small = await loadCalibration(check, options.calibration);
    const gone: Block[] = [];
    for (const { removed, perplexity } of steps) {
        const perplexities: number[] = [];
        for (const layer of without(blocks, gone)
            .filter(({ kind }) => kind === 'attn')
            .map((block) => block.layer)) {
            perplexities.push(
                await perplexityOf(check, small, { skip: [...gone, { kind: 'attn', layer }, { kind: 'ffn', layer }] })
            );
        }
        expect(perplexity).toBe(Math.min(...perplexities));
        expect(removed).toHaveLength(2);
        gone.push(...removed);
    }
    check.dispose();
});

test('balanced offers blocks and layers', async () => {
    const moves = (await movesOf('balanced', { model, host, blocks, calibration }))([]);
    const singles = blocks.map((block) => formatMove([block]));
    expect(moves.map(formatMove).sort()).toEqual([...singles, ...reference.layers.map((_, i) => layerName(i))].sort());
});

test.each([
    ['none', 0, false],
    ['linear', 256 ** 2, true]
] as const)(
    'balanced removes what costs least for its parameters, with the repair %s of %d parameters, in the search: %s',
    async (repair, gapParameters, repairSearch) => {
        const small = { file: 'embedded', samples: 1, context: 32 };
        const check = await Model.load(tiny, { device: 'cpu', threads: 1 });
        const [text, sized] = [await loadCalibration(check, small), await check.blocks()];
        const netOf = (gone: readonly Block[]) => {
            const names = gone.map(formatBlock);
            const isGone = sized.map((block) => names.includes(formatBlock(block)));
            const isFilled = (block: Block) =>
                gone.some((one) => formatBlock(one) === formatBlock(block) && !one.empty);
            let [gaps, filled] = [0, false];
            sized.forEach((block, i) => {
                filled = isGone[i] ? filled || isFilled(block) : false;
                gaps += filled && !isGone[i + 1] ? 1 : 0;
            });
            return sized.reduce((sum, { parameters }, i) => sum + (isGone[i] ? parameters : 0), -gaps * gapParameters);
        };
        const repairTokens = 2048;
        const linear = repairSearch ? await fitText(check, text, repairTokens) : undefined;
        const streams = await check.keepStreams(text, { keepBytes: 0, linear });
        const perplexityWithout = async (skip: readonly Block[]) =>
            Math.exp(meanNll((await streams.evaluate(skip, [0]))[0]!, text.length));
        const options = {
            repair,
            repairTokens,
            repairSearch,
            device: 'cpu',
            threads: 1,
            calibration: small,
            force: true,
            search: 'exact'
        } as const;
        const output = path.join(folder, 'balanced.gguf');
        const ratio = 0.11; // of 7.6 million: more than an FFN block, less than two
        const found = await prune(tiny, { ...options, output, method: 'balanced', ratio });
        const gone: Block[] = [];
        for (const { removed } of found.steps) {
            const before = Math.log(await perplexityWithout(gone));
            const left = ratio * check.parameters - netOf(gone);
            const rates = new Map<string, number>();
            const moves = (await movesOf('balanced', { model, host, blocks, calibration }))(gone);
            const inBoth = moves.flatMap((move) => {
                const empty = move.map((block) => ({ ...block, empty: true as const }));
                return repairSearch && netOf([...gone, ...empty]) > netOf([...gone, ...move]) ? [move, empty] : [move];
            });
            for (const move of inBoth) {
                const size = netOf([...gone, ...move]) - netOf(gone);
                const rise = Math.log(await perplexityWithout([...gone, ...move])) - before;
                rates.set(formatMove(move), rise / Math.min(size, left));
            }
            expect(rates.get(formatMove(removed))).toBeCloseTo(Math.min(...rates.values()), 12);
            gone.push(...removed);
        }
        expect(netOf(gone)).toBeGreaterThanOrEqual(ratio * check.parameters);
        check.dispose();

        if (repairSearch) {
            return; // swaps know nothing of what stands in gaps
        }
        const swapped = await prune(tiny, { ...options, output, method: 'balanced', ratio, swaps: 1 });
        expect(swapped.steps.at(-1)!.perplexity).toBeLessThanOrEqual(found.steps.at(-1)!.perplexity);
        expect(netOf(swapped.removed)).toBeGreaterThanOrEqual(ratio * swapped.parameters.dense);
    }
);

test('how candidates are compared can be said of methods that compare them', async () => {
    const options = { output: path.join(folder, 'no.gguf'), ratio: 0.1, device: 'cpu', threads: 1 } as const;
    for (const [given, message] of [
        [{ method: 'shortgpt', swaps: 1 }, 'shortgpt compares no candidates: leave out `swaps`'],
        [{ method: 'laco', per: 'bytes' }, 'laco compares no candidates: leave out `per`'],
        [{ swaps: -1 }, 'swaps must be a whole number of at least 0, not -1'],
        [{ per: 'weight' as 'bytes' }, "per must be one of removal, parameters, bytes, milliseconds, not 'weight'"]
    ] as const) {
        await expect(prune(tiny, { ...options, ...given })).rejects.toThrow(message);
    }
});

test('candidates are compared for the time that they take, which is measured once and written down', async () => {
    const output = path.join(folder, 'timed.gguf');
    const journal = `${output}.journal`;
    const options = {
        output,
        per: 'milliseconds',
        search: 'exact',
        remove: 3,
        repair: 'none',
        device: 'cpu',
        threads: 1,
        calibration: { file: 'embedded', samples: 2, context: 64 }
    } as const;
    const stop = new AbortController();
    let first: Step | undefined;
    const stopped = prune(tiny, {
        ...options,
        signal: stop.signal,
        onStep(step) {
            first = step;
            stop.abort();
        }
    });
    await expect(stopped).rejects.toThrow();
    const measured = () =>
        fs
            .readFileSync(journal, 'utf8')
            .trimEnd()
            .split('\n')
            .map((line) => JSON.parse(line) as { measured?: string; values: number[] })
            .filter((line) => line.measured === 'milliseconds');
    const [{ values: times }] = measured() as [{ values: number[] }];
    expect(times).toHaveLength(24);
    expect(new Set(times).size).toBe(2); // all attention blocks of this model are alike, and all FFN blocks
    const check = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const text = await loadCalibration(check, options.calibration);
    const dense = Math.log(await perplexityOf(check, text));
    const rates: number[] = [];
    for (const [i, block] of blocks.entries()) {
        rates.push((Math.log(await perplexityOf(check, text, { skip: [block] })) - dense) / times[i]!);
    }
    check.dispose();
    expect(formatMove(first!.removed)).toBe(formatBlock(blocks[rates.indexOf(Math.min(...rates))]!));

    // other times would be as good as certain to differ in some digit
    const again = new AbortController();
    const steps: Step[] = [];
    const resumed = prune(tiny, {
        ...options,
        resume: true,
        signal: again.signal,
        onStep: (step) => void (steps.push(step) === 2 && again.abort())
    });
    await expect(resumed).rejects.toThrow();
    expect(measured()).toEqual([{ measured: 'milliseconds', values: times }]);
    expect(steps[0]).toEqual({ ...first, seconds: expect.any(Number) as number });
});

test.each(methods.filter((method) => method !== 'sleb'))(
    '%s writes a verified file, also of a model whose blocks go in pairs',
    async (method) => {
        const options = {
            method,
            remove: 2,
            repair: 'none',
            device: 'cpu',
            threads: 1,
            calibration: { file: 'embedded', samples: 2, context: 32 },
            force: true
        } as const;
        const single = await prune(tiny, { ...options, output: path.join(folder, 'single.gguf') });
        expect(single.removed).toHaveLength(2);
        const paired = await prune(fixture('gemma3-dense', path.join(folder, 'gemma3.gguf')), {
            ...options,
            output: path.join(folder, 'paired.gguf')
        });
        expect(paired.removed.map(({ kind }) => kind).sort()).toEqual(['attn', 'ffn']);
        expect(paired.host).toBe('gemma3');
    }
);

test('what does not go from a model is refused before the work', async () => {
    const gemma = fixture('gemma3-dense', path.join(folder, 'gemma3.gguf'));
    const options = {
        output: path.join(folder, 'no.gguf'),
        device: 'cpu',
        threads: 1,
        calibration: { file: 'embedded', samples: 2, context: 32 }
    } as const;
    await expect(prune(gemma, { ...options, remove: 3 })).rejects.toThrow(
        "can't remove 3 blocks: from this model they go 2 at a time"
    );
    await expect(prune(gemma, { ...options, remove: 2, blocks: 'attn' })).rejects.toThrow(
        'no attn blocks of this model can go'
    );
    await expect(prune(gemma, { ...options, remove: 12 })).rejects.toThrow(
        "can't remove 12 blocks: at most 8 of this model's 12 blocks can go"
    );
    await expect(apply(gemma, { ...options, order: [{ kind: 'attn', layer: 1 }] })).rejects.toThrow(
        "these blocks can't go: "
    );
    expect(fs.existsSync(options.output)).toBe(false);
});

describe('of layers with one block and with two', () => {
    const options = {
        method: 'shortgpt',
        repair: 'none',
        device: 'cpu',
        threads: 1,
        calibration: { file: 'embedded', samples: 2, context: 32 },
        verify: false,
        force: true
    } as const;
    const mixed = path.join(folder, 'mixed.gguf'),
        output = path.join(folder, 'less.gguf');
    beforeAll(() => apply(tiny, { ...options, output: mixed, order: [{ kind: 'attn', layer: 5 }] }));

    test('what is left to remove decides which fit', async () => {
        expect((await prune(mixed, { ...options, output, remove: 1 })).removed).toEqual([{ kind: 'ffn', layer: 5 }]);
        expect((await prune(mixed, { ...options, output, remove: 3 })).removed).toContainEqual({
            kind: 'ffn',
            layer: 5
        });
    });

    test('no less is removed than was asked for', async () => {
        const {
            steps: [first]
        } = await prune(mixed, { ...options, output, ratio: 0.01 });
        // it matters least, so that a layer of two is too much then
        expect(first!.removed).toEqual([{ kind: 'ffn', layer: 5 }]);
        await expect(prune(mixed, { ...options, output, remove: 2 })).rejects.toThrow(
            "can't remove 2 blocks: after 1, all that can go is more than 1 at once"
        );
    });
});
