// The fit of linear blocks against an independent one in PyTorch; ../reference/linear.py says how its numbers came about.
import path from 'node:path';
import { Model, parseBlock, type Block } from '../../lib/index.js';
import { fitLinearBlocks, gapsOf } from '../../lib/repair/linear.js';
import { quantize, temporaryFolder, tiny } from '../models';
import { calibration, readReference } from '../reference/read';

const reference = readReference<{
    skip: string[];
    ridge: number;
    dense: number;
    unrepaired: number;
    repaired: number;
    gaps: { norm: number; products: number[][] }[];
}>('linear.json');
const removed = reference.skip.map(parseBlock);
const folder = temporaryFolder();
let model: Model;

beforeAll(async () => {
    // F32 throughout, as PyTorch computes: quantized weights make llama.cpp round activations too
    const file = await quantize(tiny, path.join(folder, 'f32.gguf'), 'F32');
    model = await Model.load(file, { device: 'cpu', threads: 1, cacheType: 'f32' });
});
afterAll(() => model.dispose());

/** W·R: the rows of W, times vectors whose values are cos((i + 1)(j + 1)). */
function products(weights: Float32Array, size: number, count: number): number[][] {
    return Array.from({ length: size }, (_, row) =>
        Array.from({ length: count }, (_, j) =>
            weights
                .subarray(row * size, (row + 1) * size)
                .reduce((sum, value, i) => sum + value * Math.cos((i + 1) * (j + 1)), 0)
        )
    );
}

function norm(values: readonly number[]): number {
    return Math.hypot(...values);
}

test('in each gap, the first and the last block of the model among them: the matrix that PyTorch finds', async () => {
    const linear = await fitLinearBlocks(model, await model.blocks(), removed, calibration, 'f32');

    expect(linear.map(({ before }) => before)).toMatchObject([
        { kind: 'ffn', layer: 0 },
        { kind: 'attn', layer: 6 },
        {}
    ]);
    expect(linear).toHaveLength(reference.gaps.length);
    const differences = linear.map(({ weights }, i) => {
        const expected = reference.gaps[i]!.products.flat();
        const found = products(weights, model.embedding, 4).flat();
        return norm(found.map((value, j) => value - expected[j]!)) / norm(expected);
    });
    expect(Math.max(...differences)).toBeLessThan(1e-3);
    linear.forEach(({ weights }, i) => expect(norm([...weights]) / reference.gaps[i]!.norm).toBeCloseTo(1, 3));
});
