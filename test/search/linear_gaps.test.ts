// Searches that count on a repair: evaluations with a linear block in each gap, against files that have these blocks.
import path from 'node:path';
import {
    chooseHost,
    formatBlock,
    meanNll,
    Model,
    parseBlocks,
    PrefixEvaluator,
    type Block,
    type Sequences
} from '../../lib/index.js';
import { MergedFiles } from '../../lib/export/merged.js';
import { gapsOf } from '../../lib/runtime/blocks.js';
import { fixture, quantize, temporaryFolder, tiny, withModel } from '../models';

const folder = temporaryFolder();
const all = [0, 1];
const inF32 = quantize(tiny, path.join(folder, 'f32.gguf'), 'F32'); // products with quantized weights would round

/** Sequences that the calibration doesn't have. */
function fitText({ rest, length }: { rest: Int32Array; length: number }): Sequences {
    return { tokens: rest.slice(0, 40 * length), length };
}

test.each(['attn.0', 'ffn.10,attn.11,ffn.11', 'attn.3,ffn.3,attn.4', 'ffn.2,attn.4,ffn.7,attn.8,attn.10,ffn.11'])(
    'without %s, the NLL of a file whose linear blocks were fitted gap by gap',
    async (skip) => {
        await withModel(
            await inF32,
            async (model, calibration) => {
                const removed = parseBlocks(skip);
                const blocks = await model.blocks();
                const gaps = gapsOf(blocks, removed);
                const text = fitText(calibration);
                const linear = [];
                for (const { removed: gap, before } of gaps) {
                    const fitted = await model.fitRepair(text, [gap], { linear: true, refit: 'none' });
                    linear.push({ before, weights: fitted.linear[0]!, type: 'f32' });
                }
                const dense = { gguf: model.gguf, host: await chooseHost(model.gguf), blocks };
                const nll = await new MergedFiles(dense, model, folder).use({ removed, linear }, (written) =>
                    written.evaluate(calibration)
                );

                const evaluator = await PrefixEvaluator.create([model], calibration, { linear: text });
                const found = (await evaluator.evaluate(removed, all)).flatMap((values) => [...values]);
                const empty = await PrefixEvaluator.create([model], calibration);
                const without = (await empty.evaluate(removed, all)).flatMap((values) => [...values]);
                const mean = (values: ArrayLike<number>) => meanNll(Float32Array.from(values), calibration.length);
                // the search keeps the dense model's stream in 16 bits
                const difference = Math.abs(mean(found) / mean(nll) - 1);
                expect(difference).toBeLessThan(1e-5);
                expect(Math.abs(mean(without) / mean(nll) - 1)).toBeGreaterThan(20 * difference);
                [evaluator, empty].forEach((one) => one.dispose());
            },
            { samples: 2 }
        );
    }
);

test('a gap of empty blocks alone stays empty, as in a file without its linear block', async () => {
    await withModel(
        await inF32,
        async (model, calibration) => {
            const empty = (text: string) => parseBlocks(text).map((block) => ({ ...block, empty: true as const }));
            const blocks = await model.blocks();
            const text = fitText(calibration);
            const removed = [
                ...empty('ffn.2,attn.3'),
                ...parseBlocks('attn.6'),
                ...empty('ffn.8'),
                ...parseBlocks('attn.9')
            ];
            const gaps = gapsOf(blocks, removed);
            expect(gaps.map(({ linear }) => linear)).toEqual([false, true, true]);
            const linear = [];
            for (const gap of gaps.filter((one) => one.linear)) {
                const fitted = await model.fitRepair(text, [gap.removed], { linear: true, refit: 'none' });
                linear.push({ before: gap.before, weights: fitted.linear[0]!, type: 'f32' });
            }
            const dense = { gguf: model.gguf, host: await chooseHost(model.gguf), blocks };
            const nll = await new MergedFiles(dense, model, folder).use({ removed, linear }, (written) =>
                written.evaluate(calibration)
            );
            const evaluator = await PrefixEvaluator.create([model], calibration, { linear: text });
            const found = (await evaluator.evaluate(removed, all)).flatMap((values) => [...values]);
            const mean = (values: ArrayLike<number>) => meanNll(Float32Array.from(values), calibration.length);
            expect(Math.abs(mean(found) / mean(nll) - 1)).toBeLessThan(1e-5);
            evaluator.dispose();

            // a repair puts linear blocks into the same gaps, and goes on with the stream that the others leave
            const repaired = await model.fitRepair(
                text,
                gaps.map((gap) => gap.removed),
                { linear: gaps.map((gap) => gap.linear), correction: 0, refit: 'none' }
            );
            expect(repaired.linear).toHaveLength(2);
            const first = await model.fitRepair(text, [gaps[0]!.removed, gaps[1]!.removed], {
                ...{ linear: [false, true], correction: 0, refit: 'none' }
            });
            expect(repaired.linear[0]).toEqual(first.linear[0]);
        },
        { samples: 2 }
    );
});

test('every candidate has the same NLL whether streams are kept or not, also where gaps grow and join', async () => {
    await withModel(tiny, async (model, calibration) => {
        const linear = fitText(calibration);
        const kept = await PrefixEvaluator.create([model], calibration, { linear });
        const none = await PrefixEvaluator.create([model], calibration, { linear, keepBytes: 0 });
        const blocks = (await model.blocks()).filter(({ layer }) => [0, 4, 5, 6, 11].includes(layer));
        const removed: Block[] = [];
        for (const next of ['attn.5', 'attn.6', 'ffn.5', 'ffn.11']) {
            for (const block of blocks.filter(
                (one) => !removed.some((other) => formatBlock(other) === formatBlock(one))
            )) {
                const skip = [...removed, block];
                const emptied = [...removed, { ...block, empty: true as const }];
                const mayWin = formatBlock(block) === next;
                for (const gone of [emptied, skip]) {
                    const [a, b] = [await kept.evaluate(gone, all, mayWin), await none.evaluate(gone, all)];
                    const means = [a, b].map((nll) => nll.map((values) => meanNll(values, calibration.length)));
                    expect(Math.max(...all.map((i) => Math.abs(means[0]![i]! / means[1]![i]! - 1)))).toBeLessThan(1e-6);
                }
            }
            // the third gap is begun as an empty one
            removed.push(
                ...parseBlocks(next).map((one) => (next === 'ffn.5' ? { ...one, empty: true as const } : one))
            );
            [kept, none].forEach((one) => one.remove([...removed]));
        }
        expect(kept.work[0]!.blocks).toBeLessThan(0.85 * none.work[0]!.blocks);
        [kept, none].forEach((one) => one.dispose());
    });
});

test('progress tells of the dense model’s stream, and a signal stops it', async () => {
    await withModel(tiny, async (model, calibration) => {
        const linear = fitText(calibration);
        const shares: number[] = [];
        const onProgress = (done: number, total: number) => shares.push(done / total);
        (await PrefixEvaluator.create([model], calibration, { linear, onProgress })).dispose();
        expect(shares.at(-1)).toBe(1);
        expect(shares).toEqual([...shares].sort((a, b) => a - b));

        const stop = new AbortController();
        const wait = PrefixEvaluator.create([model], calibration, {
            linear,
            signal: stop.signal,
            onProgress: () => stop.abort(new Error('enough'))
        });
        await expect(wait).rejects.toThrow('enough');
    });
});

test('a model of parallel blocks is refused', async () => {
    const file = fixture('falcon-dense', path.join(folder, 'parallel.gguf'));
    const model = await Model.load(file, { device: 'cpu', threads: 1 });
    const sequences = { tokens: Int32Array.from({ length: 64 }, (_, i) => i + 3), length: 32 };
    await expect(model.keepStreams(sequences, { linear: sequences })).rejects.toThrow(
        "linear blocks can't stand in for parallel blocks"
    );
    model.dispose();
});
