// Products with repacked weights against ggml's own: they multiply the same integers, so that they differ by the
// rounding of sums alone.
import path from 'node:path';
import { Model, readGguf } from '../../lib/index.js';
import { loadAddon, type NativeEvaluator } from '../../lib/runtime/addon.js';
import { canRepack } from '../../lib/runtime/model.js';
import { fixture, quantize, randomNumbers, supportsRepacking, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const testWhereSupported = supportsRepacking ? test : test.skip;
const random = randomNumbers(7);
const tokens = Int32Array.from({ length: 400 }, () => Math.floor(1000 * (random() + 1)));

/** What some work on an evaluator gives, with repacked weights or ggml's products. */
async function withEvaluator<T>(
    repack: boolean,
    work: (evaluator: NativeEvaluator) => Promise<T>,
    { file = tiny, threads = 2, sequences = 1 } = {}
): Promise<T> {
    const addon = await loadAddon();
    const model = await addon.Model.load(file, { gpus: [], repack });
    const options = { context: 400, threads, sequences, flashAttention: true, cacheType: 'f16' } as const;
    const evaluator = await addon.Evaluator.create(model, options);
    try {
        return await work(evaluator);
    } finally {
        evaluator.dispose();
        model.dispose();
    }
}

/** All blocks but some. */
function allBut(evaluator: NativeEvaluator, ...kept: number[]): number[] {
    return [...evaluator.blocks().keys()].filter((index) => !kept.includes(index));
}

/** The mean difference of values, in shares of their own mean size. */
function difference(values: Float32Array, others: Float32Array): number {
    expect(others.length).toBe(values.length);
    const size = values.reduce((sum, value) => sum + Math.abs(value), 0);
    return values.reduce((sum, value, i) => sum + Math.abs(value - others[i]!), 0) / size;
}

testWhereSupported.each([2, 3, 4, 5, 6, 7, 8, 97, 98, 200, 400])(
    'the head of %i tokens has the NLL that it has with ggml',
    async (length) => {
        const head = (evaluator: NativeEvaluator) =>
            evaluator.evaluate(tokens.slice(0, length), length, allBut(evaluator), {});
        const found = await withEvaluator(true, head);
        const expected = await withEvaluator(false, head);
        expect(difference(expected, found)).toBeLessThan(1e-6);
        // sums in another order, or it was ggml that multiplied
        expect(length < 97 || difference(expected, found) > 0).toBe(true);
    }
);

testWhereSupported.each(['attn.0', 'ffn.0', 'attn.11', 'ffn.11'])(
    'one block, %s, does to the stream what it does with ggml',
    async (name) => {
        const [kind, layer] = name.split('.');
        const hidden = (evaluator: NativeEvaluator) =>
            evaluator.hidden(tokens, 200, allBut(evaluator, 2 * Number(layer) + Number(kind === 'ffn')), {});
        const expected = await withEvaluator(false, hidden);
        expect(difference(expected, await withEvaluator(true, hidden))).toBeLessThan(1e-4);
    }
);

// rows that are no multiple of 32, parallel blocks, a merged QKV, several masks
testWhereSupported.each(['llama-dense', 'falcon-dense', 'gemma3-dense', 'deepseek2-moe', 'phi3-dense'])(
    'a random model in Q8_0 has its perplexity: %s',
    async (name) => {
        const made = fixture(name, path.join(folder, `${name}.gguf`));
        const file = await quantize(made, path.join(folder, `${name}-q8.gguf`), 'Q8_0');
        const some = Int32Array.from({ length: 4 * 48 }, (_, i) => (i * 7919) % 110);
        const all = (evaluator: NativeEvaluator) => evaluator.evaluate(some, 48, [], {});
        const expected = await withEvaluator(false, all, { file });
        const found = await withEvaluator(true, all, { file });
        expect(difference(expected, found)).toBeLessThan(0.01);
        expect(difference(expected, found)).toBeGreaterThan(0);
    }
);

testWhereSupported('values depend neither on the number of threads nor on what is computed beside them', async () => {
    const all = (evaluator: NativeEvaluator) => evaluator.evaluate(tokens, 50, [3], {});
    const alone = await withEvaluator(true, all);
    for (const options of [{ threads: 1 }, { sequences: 3 }, { threads: 1, sequences: 8 }]) {
        expect(await withEvaluator(true, all, options)).toEqual(alone);
    }
});

const testOnLinux = process.platform === 'linux' ? test : test.skip;
testOnLinux('a model is repacked where it can be, and there is room', async () => {
    expect((await loadAddon()).canRepack()).toBe(supportsRepacking);
    const isRepacked = async (file: string, options: { repack?: boolean; headerOnly?: boolean }) => {
        const model = await Model.load(file, { device: 'cpu', ...options });
        const { repacked } = model;
        model.dispose();
        return repacked;
    };
    expect(await isRepacked(tiny, {})).toBe(false);
    expect(await isRepacked(tiny, { repack: true })).toBe(supportsRepacking);
    expect(await isRepacked(tiny, { repack: true, headerOnly: true })).toBe(false);
    expect(await isRepacked(await quantize(tiny, path.join(folder, 'f16.gguf'), 'F16'), { repack: true })).toBe(false);

    // experts aren't repacked, nor are embeddings that are only looked up
    const gguf = await readGguf(tiny);
    const q8 = { type: 'q8_0', bytes: 100 };
    const experts = { ...gguf.tensors[0]!, ...q8, name: 'blk.0.ffn_up_exps.weight', shape: [32, 32, 2] };
    const embeddings = { ...gguf.tensors[0]!, ...q8, name: 'token_embd.weight', shape: [32, 32] };
    const head = { ...gguf.tensors[0]!, name: 'output.weight', type: 'f16', shape: [32, 32] };
    expect(await canRepack({ ...gguf, tensors: [experts, embeddings, head] })).toBe(false);
    expect(await canRepack({ ...gguf, tensors: [experts, embeddings] })).toBe(supportsRepacking);

    const large = { ...gguf, tensors: [{ ...embeddings, bytes: 2 ** 50 }] };
    const notices: string[] = [];
    expect(await canRepack(large, (notice) => notices.push(notice))).toBe(false);
    expect(notices).toEqual(
        supportsRepacking
            ? [expect.stringMatching(/^the weights aren't repacked for this CPU: they would take 1048576/)]
            : []
    );
});
