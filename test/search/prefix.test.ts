// Evaluations that start where the current model's residual stream was kept, against evaluations from the start.
import { Model, PrefixEvaluator, type Block, type Calibration } from '../../lib/index.js';
import { tiny, withModel } from '../models';

/**
 * Compares with full passes, over all candidates of three removals: the largest relative difference of mean NLLs, and
 * the blocks that the full passes computed.
 */
async function compareWithFullPasses(
    evaluator: PrefixEvaluator,
    reference: Model,
    calibration: Calibration
): Promise<{ largest: number; computed: number }> {
    const blocks = await reference.blocks();
    const all = Array.from({ length: evaluator.sequences }, (_, sequence) => sequence);
    const mean = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
    let largest = 0;
    let computed = 0;
    const removed: Block[] = [];
    for (const next of [5, 2, 16]) {
        for (const block of blocks.filter((candidate) => !removed.includes(candidate))) {
            const skip = [...removed, block];
            const found = await evaluator.evaluate(skip, all, block === blocks[next]);
            const full = await reference.evaluate(calibration, { skip });
            computed += (blocks.length - skip.length) * evaluator.sequences;
            expect(found.map(({ length }) => length)).toEqual(all.map(() => calibration.length - 1));
            found.forEach((nll, i) => {
                const expected = mean(full.subarray(i * (calibration.length - 1), (i + 1) * (calibration.length - 1)));
                largest = Math.max(largest, Math.abs(mean(nll) / expected - 1));
            });
        }
        removed.push(blocks[next]!);
        evaluator.remove([...removed]);
    }
    return { largest, computed };
}

const boundary = 4 * 64 * 256 * 3; // bytes

// Two sequences that are computed at once give more than one run may give: it is computed in stretches.
test.each([
    ['all boundaries', Infinity, 23, 1],
    ['five boundaries', 5 * boundary, 5, 1],
    ['one boundary', boundary, 1, 1],
    ['none', 0, 0, 1],
    ['five boundaries, two sequences at once', 5 * boundary, 5, 2],
    ['one boundary, three sequences at once', boundary, 1, 3]
])('with memory for %s, every candidate has the NLL of a full pass', async (_, keepBytes, room, atOnce) => {
    await withModel(
        tiny,
        async (model, calibration) => {
            await withModel(tiny, async (reference) => {
                const evaluator = await PrefixEvaluator.create([model], calibration, { keepBytes });
                expect(Math.min(evaluator.kept.boundaries, 23)).toBe(room);
                const { largest, computed } = await compareWithFullPasses(evaluator, reference, calibration);
                expect(largest).toBeLessThan(1e-6);
                const [work] = evaluator.work;
                expect(work!.keptBytes).toBeLessThanOrEqual(keepBytes);
                expect(work!.blocks < computed * (room > 1 ? 0.85 : 1)).toBe(room > 0);
                evaluator.dispose();
            });
        },
        { samples: 3, tokensAtOnce: atOnce * 64 }
    );
});

test('two copies of a model share the sequences, and give the values of one', async () => {
    await withModel(
        tiny,
        async (first, calibration) => {
            await withModel(tiny, async (second) => {
                await withModel(tiny, async (reference) => {
                    const evaluator = await PrefixEvaluator.create([first, second], calibration);
                    expect(evaluator.devices).toBe(2);
                    const { largest } = await compareWithFullPasses(evaluator, reference, calibration);
                    expect(largest).toBeLessThan(1e-6);
                    expect(evaluator.work.map(({ blocks }) => blocks > 0)).toEqual([true, true]);
                    const [a, b] = await Promise.all([
                        evaluator.evaluate([], [2, 0]),
                        evaluator.evaluate([], [0, 1, 2])
                    ]); // calls may overlap
                    expect(a).toEqual([b[2], b[0]]);
                });
            });
        },
        { samples: 3 }
    );
});

test('a failed evaluation fails those that wait for it, and an aborted one gives the reason', async () => {
    await withModel(tiny, async (model, calibration) => {
        const stop = new AbortController();
        const evaluator = await PrefixEvaluator.create([model], calibration, { signal: stop.signal });
        stop.abort(new Error('enough'));
        const results = await Promise.allSettled([evaluator.evaluate([], [0]), evaluator.evaluate([], [1])]);
        expect(results.map((result) => result.status === 'rejected' && String(result.reason))).toEqual([
            'Error: enough',
            'Error: enough'
        ]);
    });
});

test('a wrong budget, wrong sequences and wrong tokens are refused', async () => {
    await withModel(tiny, async (model, calibration) => {
        await expect(PrefixEvaluator.create([model], calibration, { keepBytes: -1 })).rejects.toThrow(
            'keepBytes must be a number of at least 0, not -1'
        );
        await expect(PrefixEvaluator.create([model], { ...calibration, length: 0 })).rejects.toThrow(
            'length must be a whole number of at least 2, not 0'
        );
        const evaluator = await PrefixEvaluator.create([model], calibration);
        await expect(evaluator.evaluate([], [2])).rejects.toThrow(
            'sequences must be a whole number from 0 to 1, not 2'
        );
    });
});
