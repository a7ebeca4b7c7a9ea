// The stock runtime in contexts of all lengths: below, at and above the one that a model was trained for.
import path from 'node:path';
import { Model, stockNll, stockSpeed } from '../../lib/index.js';
import { fixture, temporaryFolder, tiny, withMetadata } from '../models';

const folder = temporaryFolder();
const options = { device: 'cpu', threads: 1, flashAttention: true } as const;

test.each([
    ['the embedded model, if it was trained for 64 tokens', () => short()],
    ['a gemma3 with a sliding window', () => Promise.resolve(fixture('gemma3-dense', path.join(folder, 'gemma3.gguf')))]
])('%s: sequences of any length have the NLL that they have here', async (_, make) => {
    const file = await make();
    const model = await Model.load(file, { device: 'cpu', threads: 1 });
    for (const length of [63, 64, 65, 256]) {
        const tokens = Int32Array.from({ length: 2 * length }, (_, i) => 10 + ((7 * i) % 100));
        const here = await model.evaluate({ tokens, length });
        const there = await stockNll(file, { tokens, length }, options);
        expect(there).toHaveLength(here.length);
        there.forEach((value, i) => expect(Math.abs(value / here[i]! - 1)).toBeLessThan(1e-5));
    }
    model.dispose();
});

test('the speed is measured to the last token of what a model was trained for', async () => {
    const { prompt, generation } = await stockSpeed(await short(), 32, options);
    expect(Math.min(prompt, generation)).toBeGreaterThan(0);
});

function short(): Promise<string> {
    const file = path.join(folder, 'short.gguf');
    return withMetadata(tiny, file, [{ key: 'llama.context_length', type: 'u32', value: 64 }]);
}
