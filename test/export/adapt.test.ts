// What was made for a model, adapted to its pruned copy: llama.cpp's own tool must compute of both what it computes of
// the model itself with the output projections of the same blocks zeroed.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import {
    adapt,
    apply,
    chooseHost,
    Model,
    parseBlocks,
    quantizeGguf,
    readGguf,
    writeDraft,
    writeImatrix,
    type TensorImportance
} from '../../lib/index.js';
import { backendFolders, type GgufTensor } from '../../lib/runtime/addon.js';
import { run } from '../cli/run';
import {
    architectures,
    quantize,
    randomModel,
    randomNumbers,
    runTool,
    temporaryFolder,
    tiny,
    tools,
    withModel,
    withZeroed,
    writeGguf
} from '../models';

const folder = temporaryFolder();
const at = (name: string) => path.join(folder, name);
const calibration = { file: 'embedded', samples: 2, context: 64 };

/** Prunes without a repair. */
async function pruned(model: string, output: string, blocks: string): Promise<string> {
    const options = { calibration, device: 'cpu', threads: 1, repair: 'none', force: true } as const;
    await apply(model, { ...options, order: parseBlocks(blocks), output });
    return output;
}

/** Perplexity by llama.cpp's tool. */
function perplexity(model: string, ...args: string[]): number {
    const text = at('text.txt');
    fs.writeFileSync(text, fs.readFileSync('models/calibration.txt', 'utf8').slice(0, 3000));
    for (let tries = 0; tries < 20; tries++) {
        const { stdout, stderr } = spawnSync(
            path.join(tools, 'llama-perplexity'),
            ['-m', model, '-f', text, '-c', '64', '--chunks', '4', '-t', '1', '--no-warmup', '--fit', 'off', ...args],
            { cwd: backendFolders.cpu, encoding: 'utf8' }
        );
        const [, found] = /Final estimate: PPL = ([\d.]+)/.exec(stdout + stderr) ?? [];
        if (found !== undefined) {
            return Number(found);
        } // it ends without waiting for its log, whose last line may be missing
    }
    throw new Error(`llama-perplexity tells nothing of ${model}`);
}

const random = (seed: number, count: number, scale: number) => {
    const next = randomNumbers(seed);
    return Float32Array.from({ length: count }, () => scale * next());
};

/** A LoRA adapter of rank 4 for all matrices of the layers, but for some tensors of zeros. */
async function lora(model: string, architecture: string, zeroed: string[] = []): Promise<string> {
    const rank = 4;
    const { tensors } = await readGguf(model);
    const output = at(`lora${zeroed.length}.gguf`);
    await writeGguf({
        output,
        sources: [],
        set: [
            { key: 'general.type', type: 'string', value: 'adapter' },
            { key: 'general.architecture', type: 'string', value: architecture },
            { key: 'adapter.type', type: 'string', value: 'lora' },
            { key: 'adapter.lora.alpha', type: 'f32', value: 8 }
        ],
        tensors: tensors
            .filter(({ name, shape }) => name.startsWith('blk.') && shape.length === 2)
            .flatMap(({ name, shape }, i): GgufTensor[] => {
                const [columns, rows] = shape as [number, number];
                const b = random(2 * i + 1, rank * rows, 0.05);
                return [
                    {
                        name: `${name}.lora_a`,
                        type: 'f32',
                        shape: [columns, rank],
                        data: random(2 * i, columns * rank, 0.05)
                    },
                    {
                        name: `${name}.lora_b`,
                        type: 'f32',
                        shape: [rank, rows],
                        data: zeroed.includes(name) ? b.fill(0) : b
                    }
                ];
            })
    });
    return output;
}

describe.each([
    ['llama', 'attn.1,ffn.2', 'deci'],
    ['qwen2', 'attn.1,ffn.2', 'deci, rows of Q and K reordered'],
    ['gemma3', 'ffn.0,attn.1', 'its own architecture']
] as const)('a LoRA adapter of %s', (architecture, blocks, host) => {
    test(`does in the pruned model what it does in the dense one (${host})`, async () => {
        const dense = await randomModel(architecture, at(`${architecture}.gguf`));
        const gone = blocks.split(',').map((block) => block.replace('.', ' ').split(' ') as ['attn' | 'ffn', string]);
        const outputs = gone.map(
            ([kind, layer]) => `blk.${layer}.${kind === 'attn' ? 'attn_output' : 'ffn_down'}.weight`
        );
        const zeroed = await withZeroed(dense, at('zeroed.gguf'), outputs);
        const small = await pruned(dense, at('small.gguf'), blocks);
        const { kept, gone: left } = await adapt(await lora(dense, architecture), {
            ...{ to: small, output: at('adapted.gguf'), force: true }
        });
        const matrices = Object.entries(architectures[architecture].tensors).filter(([, { length }]) => length === 2);
        expect(kept + left.length).toBe(2 * 4 * matrices.length);
        expect(left).toHaveLength(2 * matrices.length); // of an attention and an FFN block: as many as a layer has
        const expected = perplexity(zeroed, '--lora', await lora(dense, architecture, outputs));
        expect(perplexity(small, '--lora', at('adapted.gguf')) / expected).toBeCloseTo(1, 4);
        expect(Math.abs(perplexity(small) / expected - 1)).toBeGreaterThan(0.01); // it does something
    });
});

test('a control vector does in the pruned model what it does in the dense one', async () => {
    const dense = await quantize(tiny, at('tiny-f32.gguf'), 'F32');
    const blocks = 'attn.2,ffn.5,attn.7,ffn.7';
    const zeroed = await withZeroed(dense, at('tiny-zeroed.gguf'), [
        'blk.2.attn_output.weight',
        'blk.5.ffn_down.weight',
        'blk.7.attn_output.weight',
        'blk.7.ffn_down.weight'
    ]);
    const small = await pruned(dense, at('tiny-small.gguf'), blocks);
    const { tensors, metadata } = await readGguf(dense);
    const embedding = tensors.find(({ name }) => name === 'token_embd.weight')!.shape[0]!;
    const layers = Number(metadata['llama.block_count']);
    const vector = async (name: string, without: number[]) => {
        await writeGguf({
            output: at(name),
            sources: [],
            set: [{ key: 'general.architecture', type: 'string', value: 'controlvector' }],
            tensors: Array.from({ length: layers - 1 }, (_, i) => i + 1)
                .filter((layer) => !without.includes(layer))
                .map((layer) => ({
                    name: `direction.${layer}`,
                    type: 'f32',
                    shape: [embedding],
                    data: random(layer, embedding, 0.5)
                }))
        });
        return at(name);
    };
    const adapted = await adapt(await vector('all.gguf', []), { to: small, output: at('vector.gguf') });
    expect(adapted).toMatchObject({ kind: 'control vector', kept: layers - 2, gone: ['direction.7'] });
    const range = ['--control-vector-layer-range', '1', String(layers + 2)];
    const expected = perplexity(zeroed, '--control-vector', await vector('some.gguf', [7]), ...range);
    expect(perplexity(small, '--control-vector', at('vector.gguf'), ...range) / expected).toBeCloseTo(1, 4);
    expect(Math.abs(perplexity(small) / expected - 1)).toBeGreaterThan(0.001);
});

test('a direction goes behind the linear block that stands for the FFN of its layer alone', async () => {
    const gguf = await readGguf(tiny);
    const embedding = gguf.tensors.find(({ name }) => name === 'token_embd.weight')!.shape[0]!;
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const blocks = await model.blocks();
    const host = await chooseHost(gguf);
    model.dispose();
    const zero = { weights: new Float32Array(embedding ** 2), type: 'f32' };
    const removed = parseBlocks('ffn.3,ffn.6,attn.7'); // the stream's layers 3 (two of the file), 4, 5, 6, 7
    const linear = ['attn.4', 'ffn.7'].map((block) => ({ before: parseBlocks(block)[0]!, ...zero }));
    const provenance = {
        calibration: { name: 'none', sequences: 1, context: 2 },
        perplexity: { dense: 1, pruned: 1 }
    };
    const draft = await writeDraft({ gguf, blocks, host }, { removed, linear }, provenance, at('behind.gguf'));
    await draft.publish();
    await writeGguf({
        output: at('three.gguf'),
        sources: [],
        set: [{ key: 'general.architecture', type: 'string', value: 'controlvector' }],
        tensors: [2, 3, 4, 6].map((layer) => ({
            name: `direction.${layer}`,
            type: 'f32',
            shape: [embedding],
            data: random(layer, embedding, 1)
        }))
    });
    await adapt(at('three.gguf'), { to: at('behind.gguf'), output: at('three-adapted.gguf') });
    const { tensors } = await readGguf(at('three-adapted.gguf'));
    expect(tensors.map(({ name }) => name)).toEqual([2, 4, 5, 7].map((layer) => `direction.${layer}`));
});

describe('an importance matrix', () => {
    const text = { name: 'text', sequences: 4, context: 64 };
    const importanceOf = (file: string) =>
        withModel(file, (model, { tokens, length }) => model.importance({ tokens, length }), { samples: 4 });

    test('serves the pruned model nearly as its own does, and is left out where blocks are gone', async () => {
        const dense = await quantize(tiny, at('dense-f32.gguf'), 'F32');
        const small = await pruned(dense, at('dense-small.gguf'), 'attn.0,ffn.4,attn.6');
        await writeImatrix(at('dense.imatrix'), await importanceOf(dense), text);
        const adapted = await adapt(at('dense.imatrix'), { to: small, output: at('adapted.imatrix') });
        const blocks = new Set(adapted.gone.map((name) => /^blk\.\d+\.[a-z]+/.exec(name)![0]));
        expect(blocks).toEqual(new Set(['blk.0.attn', 'blk.4.ffn', 'blk.6.attn']));
        // the quantizer takes it, filler included
        runTool('llama-quantize', '--imatrix', at('adapted.imatrix'), small, at('by-adapted.gguf'), 'Q3_K_M', '1');
        const importance = await importanceOf(small);
        await quantizeGguf(await readGguf(small), at('by-own.gguf'), { type: 'Q3_K_M', threads: 1, importance });
        const [byAdapted, byOwn] = [perplexity(at('by-adapted.gguf')), perplexity(at('by-own.gguf'))];
        expect(Math.abs(byAdapted / byOwn - 1)).toBeLessThan(0.01);
    });

    test('of Q, K and V is that of the joined tensor', async () => {
        const dense = await randomModel('qwen3', at('qwen3.gguf'));
        const small = await pruned(dense, at('qwen3-small.gguf'), 'attn.1');
        const importance = await importanceOf(dense);
        await writeImatrix(at('qwen3.imatrix'), importance, text);
        await adapt(at('qwen3.imatrix'), { to: small, output: at('joined.imatrix') });
        const names = (await readGguf(at('joined.imatrix'))).tensors.map(({ name }) => name);
        const expected = (await importanceOf(small)).map(({ tensor }: TensorImportance) => `${tensor}.in_sum2`);
        const filler = /^blk\.1\.attn/;
        expect(names.filter((name) => name.endsWith('in_sum2')).sort()).toEqual(
            expected.filter((name) => !filler.test(name)).sort()
        );
        await expect(adapt(await lora(dense, 'qwen3'), { to: small, output: at('no.gguf') })).rejects.toThrow(
            /attn_q\.weight can't be mapped: the pruned model has blk\.0\.attn_q.*joined$/
        );
    });
});

test('what does not fit is refused in one line', async () => {
    const small = await pruned(tiny, at('refuses.gguf'), 'attn.3');
    const other = await randomModel('llama', at('other.gguf'));
    const refused = async (file: string, to: string, says: RegExp) => {
        const { code, stderr } = await run('adapt', file, '--to', to, '-o', at('none.gguf'));
        expect(stderr).toMatch(says);
        expect([code, stderr.split('\n').length]).toEqual([1, 2]);
        expect(fs.existsSync(at('none.gguf'))).toBe(false);
    };
    await refused(
        await lora(other, 'llama'),
        small,
        /lora0\.gguf was made for another model than blockpruner-tiny\.gguf/
    );
    await refused(tiny, small, /tiny\.gguf is no importance matrix, LoRA adapter or control vector in GGUF form$/m);
    await refused(await lora(tiny, 'llama'), tiny, /tiny\.gguf doesn't tell what its tensors were made of/);
    await refused(at('missing.gguf'), small, /can't read the model \S+missing\.gguf: there is no such file/);
});
