// Copies in other types. Those that a search is made on give what a search of such a file gives. A pruned model is
// quantized by its own importance matrix: both are what llama.cpp's own tools make of the same file.
import fs from 'node:fs';
import path from 'node:path';
import {
    apply,
    Model,
    parseBlocks,
    perplexityOf,
    prune,
    readGguf,
    scoreTask,
    type Block,
    type PruneResult,
    type Task,
    type TensorImportance
} from '../../lib/index.js';
import { readBytes } from '../gguf_bytes';
import {
    fixture,
    quantize,
    runTool,
    supportsRepacking,
    temporaryFolder,
    tiny,
    withMetadata,
    withModel
} from '../models';

const folder = temporaryFolder();
const at = (name: string) => path.join(folder, name);
const calibration = { file: 'embedded', samples: 2, context: 64 };
const onCpu = { device: 'cpu', threads: 1, calibration } as const;
let f32: string;
beforeAll(async () => {
    f32 = await quantize(tiny, at('f32.gguf'), 'F32');
});

const floats = (bytes: Buffer) => new Float32Array(Uint8Array.from(bytes).buffer);

/** The mean squares of an importance matrix, by tensor. */
function meanSquares(file: string): Map<string, number[]> {
    const { valuesOf } = readBytes(file);
    const sums = Object.entries(valuesOf).filter(([name]) => name.endsWith('.in_sum2'));
    return new Map(
        sums.map(([name, bytes]) => {
            const tensor = name.replace('.in_sum2', '');
            const count = floats(valuesOf[`${tensor}.counts`]!)[0]!;
            return [tensor, [...floats(bytes)].map((sum) => sum / count)];
        })
    );
}

describe('a search on a copy in another type', () => {
    const options = { ...onCpu, remove: 3, method: 'blockpruner', search: 'exact', repair: 'none' } as const;
    let found: Block[];

    test('finds what a search of such a file finds, and all else is of the model', async () => {
        const q8 = await quantize(f32, at('q8.gguf'), 'Q8_0');
        const own = await prune(q8, { ...options, output: at('of-q8.gguf') });
        // copies in Q8_0 are repacked for CPUs that can use that, and so may such a file be
        const same = supportsRepacking
            ? await prune(q8, { ...options, output: at('of-q8-repacked.gguf'), searchType: 'Q8_0' })
            : own;
        const output = at('by-q8.gguf');
        const result = await prune(f32, { ...options, output, searchType: 'Q8_0' });
        found = result.removed;
        expect(own.searched).toBeNull();
        expect(same.removed).toEqual(own.removed);
        expect(same.perplexity).toEqual(own.perplexity);
        expect(readBytes(at('of-q8.gguf')).data.equals(readBytes(same.output).data)).toBe(true);
        expect(result.removed).toEqual(same.removed);
        const perplexities = ({ steps }: PruneResult) => steps.map(({ perplexity }) => perplexity);
        expect(perplexities(result)).toEqual(perplexities(same));
        expect(result.searched).toEqual({ type: 'Q8_0', perplexity: (same.searched ?? same).perplexity });
        for (const [step, perplexity] of perplexities(result).entries()) {
            expect(perplexity / perplexities(own)[step]!).toBeCloseTo(1, 2); // of 126 tokens
        }

        const dense = await withModel(f32, perplexityOf);
        expect(result.perplexity.dense).toBeCloseTo(dense, 5);
        expect(Math.abs(result.perplexity.dense / own.perplexity.dense - 1)).toBeGreaterThan(1e-6);
        expect(result.perplexity.pruned).toBeCloseTo(await withModel(output, perplexityOf), 3);
        const order = at('same.gguf');
        await apply(f32, { ...onCpu, order: result.removed, output: order, repair: 'none' });
        expect(readBytes(output).data.equals(readBytes(order).data)).toBe(true);
        expect(fs.readdirSync(folder).filter((name) => name.includes('partial'))).toEqual([]);
    });

    test('goes on with a journal of the same type alone, and leaves no copy when it is stopped', async () => {
        const output = at('goes-on.gguf');
        const stop = new AbortController();
        const stopped = prune(f32, {
            ...options,
            ...{ output, searchType: 'Q8_0', signal: stop.signal },
            onStep: () => stop.abort(new Error('enough'))
        });
        await expect(stopped).rejects.toThrow('enough');
        expect(fs.readdirSync(folder).filter((name) => name.includes('partial'))).toEqual([]);
        for (const searchType of [undefined, 'F16'] as const) {
            await expect(prune(f32, { ...options, output, searchType, resume: true })).rejects.toThrow('search type');
        }
        let resumed = 0;
        const { removed } = await prune(f32, {
            ...options,
            ...{ output, searchType: 'Q8_0', resume: true },
            onStart: (start) => (resumed = start.resumed)
        });
        expect(resumed).toBeGreaterThan(0);
        expect(removed).toEqual(found);
    });

    test('is refused where there is none, or it would change nothing', async () => {
        const output = at('never.gguf');
        const q8 = at('q8.gguf');
        const filled = at('filled-q8.gguf');
        // filler stays in F16
        await apply(q8, { ...onCpu, order: parseBlocks('ffn.2'), output: filled, repair: 'none' });
        expect((await readGguf(filled)).tensors.filter(({ type }) => type === 'f16')).not.toEqual([]);
        for (const [model, given, message] of [
            [f32, { searchType: 'Q4_0' as 'F16' }, "searchType must be one of Q8_0, F16, BF16, F32, not 'Q4_0'"],
            [f32, { searchType: 'F16', method: 'shortgpt' }, 'shortgpt compares no candidates: leave out `searchType`'],
            [
                f32,
                { searchType: 'F16', cluster: { redis: 'redis://none' } },
                'workers search in the model that they have'
            ],
            [
                f32,
                { searchType: 'F32' },
                'the model is in F32 already, and a copy is no faster here: leave out `searchType`'
            ],
            ...(supportsRepacking ? [] : [q8, filled]).map(
                (model) => [model, { searchType: 'Q8_0' }, 'the model is in Q8_0 already'] as const
            )
        ] as const) {
            await expect(prune(model, { ...options, output, ...given })).rejects.toThrow(message);
        }
        expect(fs.readdirSync(folder).filter((name) => /never|partial/.test(name))).toEqual([]);
        const again = prune(filled, { ...options, remove: 1, output: at('again.gguf'), searchType: 'Q8_0' });
        if (supportsRepacking) {
            expect((await again).searched?.type).toBe('Q8_0');
        } else {
            await expect(again).rejects.toThrow('the model is in Q8_0 already');
        }
    });
});

test('where a file does not reach the disk, none that belongs to it appears', async () => {
    const [output, imatrixOut] = [at('full.gguf'), at('full.imatrix.gguf')];
    const { open } = fs.promises;
    const sync = jest.fn(() => Promise.reject(new Error('ENOSPC: no space left on device')));
    // the last one that is flushed is the model in its type
    const opened: string[] = [];
    const mocked = jest.spyOn(fs.promises, 'open').mockImplementation(async (...args) => {
        const handle = await open(...args);
        if (args[1] === 'r+' && opened.push(String(args[0])) === 3) {
            handle.sync = sync;
        }
        return handle;
    });
    const options = { order: parseBlocks('attn.3'), repair: 'none', type: 'Q4_0' } as const;
    const run = apply(f32, { ...onCpu, ...options, output, imatrixOut });
    await expect(run).rejects.toThrow(`can't write the output ${output}: ENOSPC`);
    mocked.mockRestore();
    expect(sync).toHaveBeenCalledTimes(1);
    expect(fs.readdirSync(folder).filter((name) => /full|partial/.test(name))).toEqual([]);
});

test('a run that is stopped while its file is flushed writes none', async () => {
    const stop = new AbortController();
    const output = at('flushing.gguf');
    const { open } = fs.promises;
    const mocked = jest.spyOn(fs.promises, 'open').mockImplementation(async (...args) => {
        const handle = await open(...args);
        if (args[1] === 'r+') {
            handle.sync = () => Promise.resolve(stop.abort(new Error('enough')));
        }
        return handle;
    });
    const options = { order: parseBlocks('attn.3'), repair: 'none', verify: false, signal: stop.signal } as const;
    await expect(apply(f32, { ...onCpu, ...options, output })).rejects.toThrow('enough');
    mocked.mockRestore();
    expect(fs.readdirSync(folder).filter((name) => /flushing|partial/.test(name))).toEqual([]);
});

test('the importance matrix is that of llama-imatrix', async () => {
    const text = at('text.txt');
    fs.writeFileSync(text, fs.readFileSync('models/calibration.txt', 'utf8').slice(0, 4000));
    const pruned = at('imatrix-of.gguf');
    await apply(f32, { ...onCpu, order: parseBlocks('attn.3,ffn.5'), output: pruned, repair: 'none' });
    runTool('llama-imatrix', '-m', pruned, '-f', text, '-o', at('tool.gguf'), '-c', '128', '--chunks', '4', '-t', '1');

    const model = await Model.load(pruned, { device: 'cpu', threads: 1 });
    const tokens = await model.tokenize(fs.readFileSync(text, 'utf8'));
    const found = await model.importance({ tokens: tokens.slice(0, 4 * 128), length: 128 });
    model.dispose();

    const expected = meanSquares(at('tool.gguf'));
    expect(found.map(({ tensor }) => tensor).sort()).toEqual([...expected.keys()].sort());
    for (const { tensor, sums, counts } of found) {
        const theirs = expected.get(tensor)!.slice(0, sums.length);
        const total = theirs.reduce((sum, value) => sum + value, 0);
        if (total === 0) {
            expect(tensor).toMatch(/^blk\.\d+\.ffn_/); // filler: it is told that there is nothing to tell
            expect(counts[0]).toBe(0);
            continue;
        }
        const difference = theirs.reduce((sum, value, i) => sum + Math.abs(value - sums[i]! / counts[0]!), 0);
        // they count the last token of a sequence in the last block too, where it predicts nothing that is known
        expect(difference / total).toBeLessThan(0.03);
    }
});

test('what is written is what llama-quantize makes of the pruned file and its importance matrix', async () => {
    const order = parseBlocks('attn.3,ffn.5');
    const plain = at('plain.gguf');
    const [output, imatrixOut] = [at('quantized.gguf'), at('own.imatrix.gguf')];
    await apply(f32, { ...onCpu, order, output: plain, repair: 'none' });
    const { quantized, bytes } = await apply(f32, {
        ...onCpu,
        ...{ order, output, repair: 'none', type: 'Q3_K_M', tensorTypes: ['Attn_V=Q6_K'], imatrixOut }
    });
    const rule = ['--tensor-type', 'Attn_V=Q6_K'];
    runTool('llama-quantize', '--imatrix', imatrixOut, ...rule, plain, at('theirs.gguf'), 'Q3_K_M', '1');
    runTool('llama-quantize', ...rule, plain, at('without.gguf'), 'Q3_K_M', '1');

    const [ours, theirs, without] = [output, at('theirs.gguf'), at('without.gguf')].map((file) => readBytes(file));
    expect(ours!.tensors.equals(theirs!.tensors)).toBe(true);
    expect(ours!.data.equals(theirs!.data)).toBe(true);
    expect(ours!.data.equals(without!.data)).toBe(false);
    const values = (await readGguf(output)).tensors.filter(({ name }) => name.includes('attn_v'));
    expect(new Set(values.map(({ type }) => type))).toEqual(new Set(['q6_K']));

    expect(bytes.pruned).toBe(fs.statSync(output).size);
    expect(quantized).toMatchObject({ type: 'Q3_K_M', tokens: 128 });
    const perplexity = await withModel(output, perplexityOf);
    expect(quantized!.perplexity).toBeCloseTo(perplexity, 4);
});

test('a run that ends before its model is there leaves no importance matrix', async () => {
    const stop = new AbortController();
    const [output, imatrixOut] = [at('stopped.gguf'), at('stopped.imatrix.gguf')];
    let shares = 0;
    const run = apply(f32, {
        ...onCpu,
        ...{ order: parseBlocks('attn.3'), output, repair: 'none', type: 'Q4_0', imatrixOut, signal: stop.signal },
        onProgress: (phase, share) => {
            if (phase === 'quantize' && share > 0.5) {
                shares++;
                stop.abort(new Error('enough'));
            }
        }
    });
    await expect(run).rejects.toThrow('enough');
    expect(shares).toBeGreaterThan(0);
    expect(fs.readdirSync(folder).filter((name) => /stopped|partial/.test(name))).toEqual([]);
});

test('what is scored is the model in the type that it is written in', async () => {
    const output = at('scored.gguf');
    const questions = Array.from({ length: 12 }, (_, i) => ({
        choices: [' a cat', ' the law of nations', ' and', ' seven'].map((ending) => ({
            context: `It was number ${i}, and nobody had seen`,
            ending
        })),
        answer: i % 4
    }));
    const task: Task = { name: 'made up', normalized: false, questions };
    const { tasks } = await prune(f32, {
        ...onCpu,
        ...{ output, remove: 1, method: 'random', repair: 'none', type: 'Q2_K', tasks: [task] }
    });
    const scores = await withModel(output, (model) => scoreTask(model, task));
    expect(tasks.pruned).toEqual([scores]);
});

test('a type below three bits is refused before the work where a layer predicts tokens further ahead', async () => {
    const key = 'glm4moe.nextn_predict_layers';
    const ahead = await withMetadata(fixture('glm4moe-moe', at('glm.gguf')), at('ahead.gguf'), [
        { key, type: 'u32', value: 1 }
    ]);
    const order = parseBlocks('attn.1');
    const run = apply(ahead, { ...onCpu, order, output: at('low.gguf'), repair: 'none', type: 'IQ2_XXS' });
    await expect(run).rejects.toThrow(/can't be quantized to IQ2_XXS, .*: blk\.5\.\S+ predicts tokens further ahead/);
});

test.each(['Q4_K_M', 'Q2_K_S'] as const)('filler stays as it is in %s, of both quantizers', async (type) => {
    const order = parseBlocks('attn.0,ffn.2,attn.3'); // layer 0 gets a head of zeros, layer 2 an FFN of zeros
    const [plain, output, imatrixOut] = ['filled.gguf', `filled-${type}.gguf`, `filled-${type}.imatrix.gguf`].map(at);
    await apply(f32, { ...onCpu, order, output: plain!, repair: 'none', force: true });
    const { quantized } = await apply(f32, {
        ...onCpu,
        ...{ order, output: output!, repair: 'none', type, imatrixOut: imatrixOut! }
    });
    const { tensors } = await readGguf(output!);
    const filler = tensors.filter(({ name }) => name.startsWith('blk.0.attn') && !name.includes('norm'));
    expect(filler.map((tensor) => tensor.type)).toEqual(['f16', 'f16', 'f16', 'f16']);
    expect(quantized!.perplexity).toBeGreaterThan(1);
    runTool('llama-quantize', '--imatrix', imatrixOut!, plain!, at('tool.gguf'), type, '1');
    const theirs = await withModel(at('tool.gguf'), perplexityOf);
    // not the same: what the tool does with filler changes which layers it gives more bits
    expect(Math.abs(theirs / quantized!.perplexity - 1)).toBeLessThan(0.02);
});

test('experts count what is given to them', async () => {
    const file = fixture('llama-moe', at('moe.gguf'));
    const model = await Model.load(file, { device: 'cpu', threads: 1 });
    const tokens = Int32Array.from({ length: 64 }, (_, i) => (i * 7) % model.vocabulary);
    const found = await model.importance({ tokens, length: 32 });
    const { tensors, metadata } = model.gguf;
    model.dispose();
    const of = (part: string): TensorImportance[] => found.filter(({ tensor }) => tensor.includes(part));
    const used = Number(metadata['llama.expert_used_count']);
    for (const { tensor, sums, counts } of of('_exps')) {
        const [columns, , experts] = tensors.find(({ name }) => name === tensor)!.shape as [number, number, number];
        expect([sums.length, counts.length]).toEqual([columns * experts, experts]);
        const isLast = tensor.startsWith('blk.5.'); // of the last block, no more is computed than predicts something
        expect(counts.reduce((sum, value) => sum + value, 0)).toBe(used * (isLast ? 62 : 64));
    }
    // what goes into the experts of a layer is what its router sees, each row as often as there are experts for it
    const rows = (one: TensorImportance) => one.sums.reduce((sum, value) => sum + value, 0);
    const [router] = of('blk.1.ffn_gate_inp');
    const [experts] = of('blk.1.ffn_up_exps');
    expect(rows(experts!) / rows(router!)).toBeCloseTo(used, 4);
});
