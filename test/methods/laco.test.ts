// LaCo against an independent one in PyTorch; ../reference/search.py says how laco.json came about.
import fs from 'node:fs';
import path from 'node:path';
import { MergedFiles } from '../../lib/export/merged.js';
import { chooseHost, Model, parseBlocks, perplexityOf, prune, readGguf, without, type Block } from '../../lib/index.js';
import { collapse, collapseLayers, type LacoForm, type MergedLayer } from '../../lib/methods/laco.js';
import { run } from '../cli/run';
import { textsOf } from '../gguf_bytes';
import { quantize, randomModel, temporaryFolder, tiny } from '../models';
import { calibration, loadReferenceModel, readReference, writeReferenceModel } from '../reference/read';

interface Collapse {
    kept: number[];
    threshold: number;
    similarity: number;
    perplexity: number;
}
const reference = readReference<Record<LacoForm, Record<string, Collapse>>>('laco.json');
const folder = temporaryFolder();
let f32: string;

beforeAll(async () => {
    f32 = await writeReferenceModel(folder);
});

/** LaCo on a model, until so many layers are gone. */
async function laco(file: string, layers: number, form: LacoForm = 'laco') {
    const model = await loadReferenceModel(file);
    try {
        const [host, blocks] = [await chooseHost(model.gguf), await model.blocks()];
        const merged = new MergedFiles({ gguf: model.gguf, host, blocks }, model, folder);
        const isEnough = (removed: readonly Block[]) => removed.length >= 2 * layers;
        const found = await collapse(form, { model, blocks, calibration, merged, isEnough });
        const kept = [...new Set(without(blocks, found.removed).map(({ layer }) => layer))];
        return {
            ...found,
            kept,
            perplexity: await merged.use(found, (collapsed) => perplexityOf(collapsed, calibration))
        };
    } finally {
        model.dispose();
    }
}

test.each(
    (['laco', 'laco-code'] as const).flatMap((method) =>
        Object.keys(reference[method]).map((layers) => [method, layers] as const)
    )
)('%s makes what PyTorch makes, %s layers less', async (method, layers) => {
    const expected = reference[method][layers]!;
    const found = await laco(f32, Number(layers), method);
    expect([found.kept, found.threshold]).toEqual([expected.kept, expected.threshold]);
    expect(found.similarity).toBeCloseTo(expected.similarity, 3);
    expect(found.perplexity / expected.perplexity).toBeCloseTo(1, 3);
    expect(fs.readdirSync(folder)).toEqual(['f32.gguf']); // no candidate stays
});

test.each(['Q8_0', 'Q4_K_M'] as const)('merges layers quantized as %s by dequantizing them', async (type) => {
    const quantized = await quantize(tiny, path.join(folder, `${type}.gguf`), type);
    const [found, ofDequantized] = [
        await laco(quantized, 2),
        await laco(await quantize(quantized, path.join(folder, `${type}-f32.gguf`), 'F32'), 2)
    ];
    expect([found.kept, found.merges]).toEqual([ofDequantized.kept, ofDequantized.merges]);
    expect(found.perplexity / ofDequantized.perplexity).toBeGreaterThan(0.9);
    expect(found.perplexity / ofDequantized.perplexity).toBeLessThan(type === 'Q8_0' ? 1.01 : 1.3);
});

test('of what is merged, the weights are the sums that the paper says', async () => {
    const calls: string[] = [];
    const name = (layers: readonly MergedLayer[]) =>
        layers
            .map(({ layer, weights }) =>
                weights.get(layer) === 1
                    ? `${layer}`
                    : `${layer}=${[...weights].map(([from, weight]) => `${weight}·${from}`).join('+')}`
            )
            .join(' ');
    const options = {
        form: 'laco' as const,
        layers: [0, 1, 2, 3, 4, 5, 6, 7, 8],
        isEnough: (layers: readonly MergedLayer[]) => layers.length <= 4
    };
    const found = await collapseLayers({
        ...options,
        similarity: (layers) => {
            calls.push(name(layers));
            return Promise.resolve(layers.length >= 6 ? 0.62 : 0.31);
        }
    });
    expect([found!.threshold, found!.similarity]).toEqual([0.3, 0.31]);
    // Four layers become one at 5. The next merge is two layers lower, but no nearer to the end than three layers: two
    // more are enough there, of which one was merged before.
    expect(name(found!.layers)).toBe('0 1 2=-1·2+1·3+1·4 5=-2·5+1·6+1·7+1·8');
    expect(calls).toHaveLength(new Set(calls).size); // nothing is evaluated twice
    expect(calls[0]).toBe('0 1 2 3 4 5=-2·5+1·6+1·7+1·8');

    // merged layers are merged again
    const again = await collapseLayers({
        ...options,
        isEnough: (layers) => layers.length <= 3,
        similarity: () => Promise.resolve(0.99)
    });
    expect(name(again!.layers)).toBe('0 1 2=-2·2+1·3+1·4+-2·5+1·6+1·7+1·8');
    const last = await collapseLayers({ ...options, form: 'laco-code', similarity: () => Promise.resolve(0.01) });
    expect([last!.threshold, name(last!.layers)]).toEqual([-1, '0 1 2=1·4 5=1·8']);
    expect(
        await collapseLayers({ ...options, isEnough: () => false, similarity: () => Promise.resolve(0.99) })
    ).toBeUndefined();
});

test('the command writes a verified file that says what was merged', async () => {
    const output = path.join(folder, 'laco.gguf');
    const args = [
        'prune',
        tiny,
        '--method',
        'laco',
        '--calibration',
        'embedded',
        '--samples',
        '4',
        '--context',
        '128',
        '--device',
        'cpu',
        '--threads',
        '1'
    ];
    const { code, stdout } = await run(...args, '--remove', '4', '-o', output, '--json');
    expect(code).toBe(0);
    const result = JSON.parse(stdout) as { removed: Block[]; merged: string[]; perplexity: { pruned: number } };
    expect([result.removed, result.merged]).toEqual([
        parseBlocks('attn.4,ffn.4,attn.5,ffn.5'),
        ['blk.3 = -1 blk.3 + 1 blk.4 + 1 blk.5']
    ]);
    expect(result.perplexity.pruned / reference.laco[2]!.perplexity).toBeCloseTo(1, 1); // the embedded model is Q8_0
    const { metadata } = await readGguf(output);
    expect(metadata['deci.block_count']).toBe(10);
    expect(textsOf(output, 'blockpruner.merged')).toEqual(result.merged);

    for (const [options, says] of [
        [['--remove', '3'], 'laco removes whole layers, 2 at a time'],
        [['--max-increase', '0.1'], 'say how much to remove by --remove or --ratio'],
        [['--remove', '4', '--order', path.join(folder, 'order.json')], "an order file can't tell"],
        [['--remove', '4', '--blocks', 'ffn'], 'removes whole layers'],
        [['--remove', '22'], "LaCo can't remove so much"]
    ] as const) {
        const refused = await run(...args, ...options, '-o', path.join(folder, 'refused.gguf'));
        expect([refused.code, refused.stderr.trimEnd().split('\n').length]).toEqual([1, 1]);
        expect(refused.stderr).toContain(says);
    }
    expect(fs.readdirSync(folder).filter((name) => name.includes('refused') || name.startsWith('.'))).toEqual([]);
});

test('laco does not touch the journal of another search', async () => {
    const output = path.join(folder, 'other.gguf'),
        journal = `${output}.journal`;
    fs.writeFileSync(journal, 'of hours');
    const options = {
        output,
        method: 'laco',
        remove: 2,
        calibration: { file: 'embedded', samples: 1, context: 32 },
        device: 'cpu',
        threads: 1
    } as const;
    await expect(prune(tiny, options)).rejects.toThrow(
        'go on with it by `resume: true`, or begin anew with `resume: false`'
    );
    await expect(prune(tiny, { ...options, resume: true })).rejects.toThrow(
        'other.gguf.journal is the journal of a search by another method: laco has none'
    );
    expect([fs.readFileSync(journal, 'utf8'), fs.existsSync(output)]).toEqual(['of hours', false]);
});

test('layers that differ are not merged', async () => {
    const file = await randomModel('llama', path.join(folder, 'random.gguf'));
    const model = await Model.load(file, { device: 'cpu', threads: 1 });
    const [host, blocks] = [await chooseHost(model.gguf), await model.blocks()];
    const gguf = {
        ...model.gguf,
        tensors: model.gguf.tensors.map((tensor) =>
            tensor.name === 'blk.3.ffn_up.weight' ? { ...tensor, shape: [256, 128] } : tensor
        )
    };
    const { planFile } = await import('../../lib/export/write.js');
    const removal = { removed: parseBlocks('attn.3,ffn.3'), merges: new Map([[2, new Map([[3, 1]])]]) };
    expect(() => planFile({ gguf, host, blocks }, removal)).toThrow(
        "layer 3 can't be merged into layer 2: it has no ffn_up.weight of the same shape"
    );
    await expect(
        prune(file, {
            output: path.join(folder, 'none.gguf'),
            method: 'laco',
            remove: 6,
            calibration: { file: 'embedded', samples: 1, context: 64 },
            device: 'cpu',
            threads: 1
        })
    ).rejects.toThrow("LaCo can't remove so much");
    model.dispose();
});
