// Fits of repairs against independent ones in PyTorch; ../reference/repair.py says how its numbers came about.
import fs from 'node:fs';
import path from 'node:path';
import cacache from 'cacache';
import { Model, parseBlock } from '../../lib/index.js';
import { fitRepair } from '../../lib/repair/fit.js';
import { keepMatrices } from '../../lib/repair/journal.js';
import { fixture, randomNumbers, temporaryFolder, writeGguf } from '../models';
import { calibration, loadReferenceModel, readReference, writeReferenceModel } from '../reference/read';

/** A matrix: its norm, and its products with some vectors. */
interface Matrix {
    norm: number;
    products: number[][];
}

const references =
    readReference<
        Record<
            'linear' | 'adjacent' | 'all',
            { skip: string[]; linear: Matrix[]; refits: (Matrix & { tensor: string })[] }
        >
    >('repair.json');
const folder = temporaryFolder();
let model: Model;

beforeAll(async () => {
    model = await loadReferenceModel(await writeReferenceModel(folder));
});
afterAll(() => model.dispose());

function norm(values: Iterable<number>): number {
    let sum = 0;
    for (const value of values) {
        sum += value ** 2;
    }
    return Math.sqrt(sum);
}

/** How far a matrix is from a reference: of their products with vectors whose values are cos((i + 1)(j + 1)). */
function difference(matrix: Float32Array, { products }: Matrix): number {
    const width = matrix.length / products.length;
    const found = products.flatMap((row, r) =>
        row.map((_, j) =>
            matrix
                .subarray(r * width, (r + 1) * width)
                .reduce((sum, value, i) => sum + value * Math.cos((i + 1) * (j + 1)), 0)
        )
    );
    const expected = products.flat();
    return norm(found.map((value, i) => value - expected[i]!)) / norm(expected);
}

test.each(['linear', 'adjacent', 'all'] as const)(
    '%s: the matrices that PyTorch finds, with gaps at both ends of the model',
    async (repair) => {
        const reference = references[repair];
        const removed = reference.skip.map(parseBlock);
        const wanted = { repair, linear: true, type: 'f32' };
        const found = await fitRepair(model, await model.blocks(), removed, calibration, wanted);
        const linear = found.linear!;
        const changes = [...found.changes!];

        expect(linear.map(({ before }) => before && `${before.kind}.${before.layer}`)).toEqual([
            'ffn.0',
            'attn.6',
            undefined
        ]);
        expect(changes.map(([tensor]) => tensor).sort()).toEqual(reference.refits.map(({ tensor }) => tensor).sort());
        expect(linear).toHaveLength(reference.linear.length);
        const differences = [
            ...linear.map(({ weights }, i) => difference(weights, reference.linear[i]!)),
            ...reference.refits.map((refit) => difference(found.changes!.get(refit.tensor)!.change, refit))
        ];
        expect(Math.max(...differences)).toBeLessThan(1e-4);
        linear.forEach(({ weights }, i) => expect(norm(weights) / reference.linear[i]!.norm).toBeCloseTo(1, 3));
    }
);

test('the numbers of refitted tensors are those that the kinds say', () => {
    const counts = Object.values(references).map(({ refits }) => refits.length);
    // before two of the gaps stands a block; of all 24 less 5 that went, 10 are attention blocks with three inputs, and
    // 9 FFN blocks with two
    expect(counts).toEqual([0, 2, 19 + 10 * 3 + 9 * 2]);
});

test('a gap may take the last attention block, which drops the token that predicts nothing', async () => {
    const fit = { linear: false, refit: 'all' } as const;
    const of = async (gap: string) => {
        const { refits } = await model.fitRepair(calibration, [gap.split(' ').map(parseBlock)], fit);
        return refits.map(({ tensor }) => tensor);
    };
    expect(await of('attn.11 ffn.11')).toEqual(['blk.10.ffn_down.weight']);
    expect(await of('attn.11')).toEqual([
        'blk.10.ffn_down.weight',
        'blk.11.ffn_gate.weight',
        'blk.11.ffn_up.weight',
        'blk.11.ffn_down.weight'
    ]);
});

test('goes on from what was kept, to the same matrices; what is damaged, or of another fit, is found anew', async () => {
    const journal = path.join(folder, 'kept');
    const gaps = [['attn.9', 'ffn.9'].map(parseBlock), [parseBlock('ffn.11')]];
    const sequences = { tokens: calibration.tokens.subarray(0, 2 * calibration.length), length: calibration.length };
    const fitOf = async (inputs: string, most = Infinity) => {
        const journaled = keepMatrices(journal, { inputs });
        const kept: number[] = [];
        const found = await model.fitRepair(
            sequences,
            gaps,
            { linear: true, refit: 'all' },
            {
                kept: {
                    find: (place) => journaled.find(place),
                    async keep(place, matrix) {
                        if (kept.length === most) {
                            throw new Error('killed');
                        }
                        kept.push(place);
                        await journaled.keep(place, matrix);
                    }
                }
            }
        );
        return { found, kept };
    };
    await expect(fitOf('these', 5)).rejects.toThrow('killed');
    const [entry] = Object.values(await cacache.ls(journal)).filter(({ key }) => key.endsWith('/3'));
    fs.truncateSync(entry!.path, 100);

    const { found, kept } = await fitOf('these');
    expect((await fitOf('these')).kept).toEqual([]);
    const other = await fitOf('others');
    expect(kept.slice(0, 2)).toEqual([3, 5]);
    expect(other.kept).toHaveLength(kept.length + 4);
    expect(found).toEqual(other.found);
});

// Gemma's blocks end in a norm, which makes the fit a step towards the best change, not the best one itself.
describe('where a norm follows the output projection', () => {
    const source = path.join(folder, 'gemma3.gguf');
    const gap = [
        { kind: 'attn', layer: 5 },
        { kind: 'ffn', layer: 5 }
    ] as const;
    const tensor = 'blk.4.ffn_down.weight';
    const random = randomNumbers(7);
    const sequences = {
        tokens: Int32Array.from({ length: 64 * 48 }, () => Math.floor(60 * (1 + random()))),
        length: 48
    };
    let dense: Model;
    beforeAll(async () => {
        dense = await Model.load(fixture('gemma3-dense', source), { device: 'cpu', threads: 1, cacheType: 'f32' });
    });
    afterAll(() => dense.dispose());

    const fitted = async (refitRidge: number) => {
        const { refits } = await dense.fitRepair(sequences, [gap], { linear: false, refit: 'adjacent', refitRidge });
        expect(refits.map((refit) => refit.tensor)).toEqual([tensor]);
        return refits[0]!.change;
    };

    /** How far the end of the stream without the gap's blocks is from the dense one's, in a model that is changed. */
    async function error(change: Float32Array, times: number): Promise<number> {
        const output = path.join(folder, 'changed.gguf');
        const scaled = change.map((value) => value * times);
        await writeGguf({
            output,
            sources: [source],
            tensors: dense.gguf.tensors.map(({ name }) => ({
                name,
                from: [
                    name === tensor
                        ? { file: 0, name, sum: [{ file: 0, name, weight: 1 }], change: scaled }
                        : { file: 0, name }
                ]
            }))
        });
        const changed = await Model.load(output, { device: 'cpu', threads: 1, cacheType: 'f32' });
        const found = await changed.hidden(sequences, { skip: gap });
        changed.dispose();
        const wanted = await dense.hidden(sequences);
        return norm(found.map((value, i) => value - wanted[i]!)) / norm(wanted);
    }

    test('the change brings the stream nearer to the dense one, and no other length of it would do so more', async () => {
        const change = await fitted(1e-4);
        const [none, half, whole, double] = [
            await error(change, 0),
            await error(change, 0.5),
            await error(change, 1),
            await error(change, 2)
        ];
        expect(whole).toBeLessThan(0.95 * none);
        expect(whole).toBeLessThan(half);
        expect(whole).toBeLessThan(double);
    });

    test('a larger ridge changes less', async () => {
        const [small, large] = [await fitted(0.3), await fitted(1e6)];
        expect(norm(large)).toBeLessThan(1e-3 * norm(small));
    });
});
