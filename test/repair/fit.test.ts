// Fits of repairs against independent ones in PyTorch; ../reference/repair.py says how its numbers came about.
import { Model, parseBlock } from '../../lib/index.js';
import { fitRepair } from '../../lib/repair/fit.js';
import { temporaryFolder } from '../models';
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

function norm(values: readonly number[]): number {
    return Math.hypot(...values);
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
        expect(changes.map(([tensor]) => tensor)).toEqual(reference.refits.map(({ tensor }) => tensor));
        expect(linear).toHaveLength(reference.linear.length);
        const differences = [
            ...linear.map(({ weights }, i) => difference(weights, reference.linear[i]!)),
            ...changes.map(([, change], i) => difference(change, reference.refits[i]!))
        ];
        // llama.cpp rounds keys and values to 16 bits, which adds up over the blocks
        expect(Math.max(...differences)).toBeLessThan({ linear: 1e-3, adjacent: 2e-3, all: 5e-3 }[repair]);
        linear.forEach(({ weights }, i) => expect(norm([...weights]) / reference.linear[i]!.norm).toBeCloseTo(1, 3));
    }
);

test('the numbers of refitted tensors are those that the kinds say', () => {
    const counts = Object.values(references).map(({ refits }) => refits.length);
    expect(counts).toEqual([0, 2, 19]); // before two of the gaps stands a block; 24 blocks less 5 that went
});
