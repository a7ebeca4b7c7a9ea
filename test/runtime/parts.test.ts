// Work on the CPU is done in two parts, each on half of the threads: it gives what one thread gives.
import os from 'node:os';
import path from 'node:path';
import { Model, parseBlock, PrefixEvaluator, stockNll, loadCalibration, type Calibration } from '../../lib/index.js';
import { fixture, randomModel, randomNumbers, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const threadsToTry = [1, 2, 3].filter((threads) => threads <= Math.max(2, os.availableParallelism()));

/** What some work gives on one thread, on two, and, where there are so many, on three, which can't be halved. */
async function onThreads<T>(
    work: (model: Model, calibration: Calibration) => Promise<T>,
    { file = tiny, samples = 5 } = {}
): Promise<T[]> {
    const results: T[] = [];
    for (const threads of threadsToTry) {
        const model = await Model.load(file, { device: 'cpu', threads });
        results.push(await work(model, await loadCalibration(model, { file: 'embedded', samples, context: 64 })));
        model.dispose();
    }
    return results;
}

function expectEqual<T>([one, ...others]: T[]): void {
    expect(others.length).toBeGreaterThan(0);
    for (const other of others) {
        expect(other).toEqual(one);
    }
}

test('a search shares its sequences among two halves of the threads', async () => {
    const candidates = ['attn.3', 'ffn.3', 'attn.11'].map(parseBlock);
    const search = async (model: Model, calibration: Calibration) => {
        const evaluator = await PrefixEvaluator.create([model], calibration, { keepBytes: 2 ** 26 });
        const halves = model.threads % 2 === 0;
        expect([model.parts, evaluator.devices]).toEqual(halves ? [2, 2] : [1, 1]);
        const nll = [];
        const all = [0, 1, 2, 3, 4];
        nll.push(await evaluator.evaluate([], all));
        for (const candidate of candidates) {
            nll.push(await evaluator.evaluate([candidate], candidate.layer === 3 ? all : [4, 1], true));
        }
        evaluator.remove([candidates[0]!]);
        nll.push(await evaluator.evaluate([candidates[0]!, candidates[2]!], all));
        expect(evaluator.work.every(({ blocks, keptBytes }) => blocks > 0 && keptBytes > 0)).toBe(true);
        const kept = evaluator.work.reduce((sum, { keptBytes }) => sum + keptBytes, 0);
        expect(kept).toBeLessThanOrEqual(2 ** 26);
        evaluator.dispose();
        // the model's own context is there again
        nll.push(await model.evaluate(calibration));
        return nll;
    };
    expectEqual(await onThreads(search));
});

test('a single sequence is not shared, nor are linear blocks fitted twice', async () => {
    const devices = async (model: Model, calibration: Calibration) => {
        const one = { ...calibration, tokens: calibration.tokens.slice(0, calibration.length) };
        const alone = await PrefixEvaluator.create([model], one);
        const linear = await PrefixEvaluator.create([model], calibration, { linear: calibration });
        return [alone.devices, linear.devices, ...(await linear.evaluate([parseBlock('attn.2')], [0, 3]))];
    };
    const found = await onThreads(devices);
    expect(found[1]!.slice(0, 2)).toEqual([1, 1]);
    expectEqual(found);
});

test.each(['embedded', 'llama', 'mamba-dense'])('%s writes the same text', async (name) => {
    const at = path.join(folder, `${name}.gguf`);
    const file = name === 'embedded' ? tiny : name === 'llama' ? await randomModel('llama', at) : fixture(name, at);
    const prompts = Array.from({ length: 5 }, (_, i) => Int32Array.of(5 + i, 9));
    const progress: number[] = [];
    const write = (model: Model) =>
        model.generate(prompts, { length: 20, seed: 3, onProgress: (done, total) => progress.push(done / total) });
    const found = await onThreads(write, { file });
    expect(found[0]!).toHaveLength(5 * 20);
    expectEqual(found);
    expect(Math.max(...progress)).toBeLessThanOrEqual(1);
});

test.each(['adjacent', 'all'] as const)('a repair finds the same matrices (%s)', async (refit) => {
    const random = randomNumbers(3);
    const tokens = Int32Array.from({ length: 8 * 64 }, () => Math.floor(1000 * (random() + 1)));
    const fit = (model: Model) =>
        model.fitRepair({ tokens, length: 64 }, [[parseBlock('attn.8')], [parseBlock('ffn.9')]], {
            linear: true,
            refit
        });
    const found = await onThreads(fit);
    expect(found[0]!.linear).toHaveLength(2);
    expectEqual(found);
});

test('the stock runtime finds the same', async () => {
    const tokens = Int32Array.from({ length: 5 * 64 }, (_, i) => 10 + ((7 * i) % 100));
    const found = [];
    for (const threads of threadsToTry) {
        const progress: number[] = [];
        const onProgress = (done: number) => progress.push(done);
        const options = { device: 'cpu', threads, flashAttention: true, onProgress } as const;
        found.push(await stockNll(tiny, { tokens, length: 64 }, options));
        expect(progress).toEqual([1, 2, 3, 4, 5]);
    }
    expectEqual(found);
});

test('no part is at work behind an error', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 2 });
    const stop = new AbortController();
    const prompts = Array.from({ length: 64 }, () => Int32Array.of(5));
    const onProgress = () => stop.abort(new Error('enough'));
    await expect(model.generate(prompts, { length: 400, onProgress, signal: stop.signal })).rejects.toThrow('enough');
    const two = { tokens: Int32Array.of(5, 6), length: 2 };
    await expect(model.keepStreams(two, { threads: 3 })).rejects.toThrow('threads must be a whole number from 1 to 2');
    model.dispose();
});
