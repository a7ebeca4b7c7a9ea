// Arguments that a function can't work with are refused before a model is even looked for.
import {
    apply,
    ArgumentError,
    BlockprunerError,
    compare,
    loadCalibration,
    prune,
    readOrder,
    scoreTask,
    textPerplexity,
    type CompareOptions,
    type Model,
    type PruneOptions
} from '../../lib/index.js';

const missing = 'no-such-model.gguf';

async function refusal(work: Promise<unknown>): Promise<BlockprunerError> {
    return work.then(
        () => Promise.reject(new Error('it was not refused')),
        (error: unknown) => error as BlockprunerError
    );
}

test.each<[string, unknown, Partial<PruneOptions>]>([
    ['remove', 0, { remove: 0 }],
    ['remove', 1.5, { remove: 1.5 }],
    ['ratio', 1.5, { ratio: 1.5 }],
    ['maxIncrease', -0.1, { maxIncrease: -0.1 }],
    ['maxIncrease', NaN, { maxIncrease: NaN }],
    ['methodSeed', -1, { ratio: 0.1, methodSeed: -1 }],
    ['methodSeed', 2 ** 32, { ratio: 0.1, methodSeed: 2 ** 32 }],
    ['search', 'fast', { ratio: 0.1, search: 'fast' as 'exact' }],
    ['confidence', 1, { ratio: 0.1, confidence: 1 }],
    ['keepBytes', -1, { ratio: 0.1, keepBytes: -1 }],
    ['limit', 0, { ratio: 0.1, limit: 0 }],
    ['threads', 0, { ratio: 0.1, threads: 0 }],
    ['gpuLayers', -1, { ratio: 0.1, gpuLayers: -1 }],
    ['samples', -1, { ratio: 0.1, calibration: { samples: -1 } }],
    ['context', 0, { ratio: 0.1, calibration: { context: 0 } }],
    ['context', 1, { ratio: 0.1, calibration: { context: 1 } }],
    ['seed', 0.5, { ratio: 0.1, calibration: { seed: 0.5 } }]
])('prune: %s %s', async (argument, value, options) => {
    const error = await refusal(prune(missing, { output: 'never.gguf', ...options }));
    expect(error).toBeInstanceOf(ArgumentError);
    expect(error).toMatchObject({ code: 'ARGUMENT', argument, value });
    expect(error.message).toMatch(new RegExp(`^${argument} must be .*, not '?${String(value).replace('.', '\\.')}`));
});

test.each<[string, Partial<PruneOptions>]>([
    ['say how much to remove: `remove` N, `ratio` R or `maxIncrease` X', {}],
    ['give only one of `remove`, `ratio` and `maxIncrease`', { remove: 1, ratio: 0.1 }],
    ["there is no method 'best'", { remove: 1, method: 'best' as 'sleb' }],
    [
        "laco merges layers, which an order file can't tell: leave out `orderFile`",
        { remove: 2, method: 'laco', orderFile: 'order.json' }
    ],
    ['laco merges layers until enough are gone', { maxIncrease: 0.1, method: 'laco' }],
    ['the report and the output are both never.gguf', { remove: 1, report: 'never.gguf' }]
])('prune: %s', async (says, options) => {
    const error = await refusal(prune(missing, { output: 'never.gguf', ...options }));
    expect(error.code).toBe('ARGUMENT');
    expect(error.message).toContain(says);
});

test.each<[string, unknown, Partial<CompareOptions>]>([
    ['seeds', 0, { seeds: 0 }],
    ['limit', 1.5, { limit: 1.5 }],
    ['textSamples', 0, { textSamples: 0 }],
    ['search', 'fast', { search: 'fast' as 'exact' }],
    ['threads', 1.5, { threads: 1.5 }],
    ['samples', 0, { calibration: { samples: 0 } }]
])('compare: %s %s', async (argument, value, options) => {
    const error = await refusal(compare(missing, { output: 'never', ratios: [0.1], ...options }));
    expect(error).toMatchObject({ code: 'ARGUMENT', argument, value });
});

// None of these looks at the model before its arguments.
const model = undefined as unknown as Model;

test.each([
    ['context', () => apply(missing, { output: 'never.gguf', order: [], calibration: { context: -5 } })],
    ['samples', () => loadCalibration(model, { samples: -1 })],
    ['context', () => loadCalibration(model, { context: 0 })],
    ['context', () => textPerplexity(model, missing, { context: 0 })],
    ['samples', () => textPerplexity(model, missing, { samples: 0 })],
    ['definition', () => textPerplexity(model, missing, { definition: 'other' as 'paper' })],
    ['limit', () => scoreTask(model, { name: 'none', questions: [], normalized: true }, { limit: 0 })],
    ['remove', () => readOrder('no-such-order.json', 0)]
])('%s of a function that takes it by itself', async (argument, call) => {
    expect(await refusal(call())).toMatchObject({ code: 'ARGUMENT', argument });
});

test('what is no argument has a code too', async () => {
    expect(await refusal(prune(missing, { output: 'never.gguf', ratio: 0.1 }))).toMatchObject({ code: 'MODEL' });
    expect(await refusal(readOrder('no-such-order.json', 1))).toMatchObject({ code: 'INPUT' });
});
