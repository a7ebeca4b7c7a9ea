// The stock runtime in contexts of all lengths: below, at and above the one that a model was trained for.
import path from 'node:path';
import { apply, Model, parseBlocks, stockDraft, stockNll, stockSpeed } from '../../lib/index.js';
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

test('a pruned copy is a draft of its model, and guesses less than the model itself', async () => {
    const pruned = path.join(folder, 'pruned.gguf');
    const calibration = { file: 'embedded', samples: 2, context: 64 };
    const order = parseBlocks('attn.3,ffn.5,attn.7');
    await apply(tiny, { output: pruned, order, repair: 'none', calibration, device: 'cpu', threads: 1 });
    const model = await Model.load(tiny, { device: 'cpu', headerOnly: true });
    const texts = ['The whale was', 'My friends, we are'];
    const prompts = await Promise.all(texts.map((text) => model.tokenize(text)));
    model.dispose();
    const request = { prompts, tokens: 48, ahead: 4 };
    const [itself, copy] = [
        await stockDraft(tiny, tiny, request, options),
        await stockDraft(tiny, pruned, request, options)
    ];
    expect(itself.acceptance).toBeGreaterThan(0.95); // rounding may decide a token
    expect(copy.acceptance).toBeGreaterThan(0.1);
    expect(copy.acceptance).toBeLessThan(itself.acceptance);
    expect(Math.min(copy.target, copy.draft, copy.together)).toBeGreaterThan(0);
    const unlike = fixture('llama-dense', path.join(folder, 'unlike.gguf'));
    await expect(stockDraft(tiny, unlike, request, options)).rejects.toThrow(
        'the stock runtime (node-llama-cpp) failed'
    );
});

function short(): Promise<string> {
    const file = path.join(folder, 'short.gguf');
    return withMetadata(tiny, file, [{ key: 'llama.context_length', type: 'u32', value: 64 }]);
}
