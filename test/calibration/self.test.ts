// Text that a model writes itself. The oracle is the model: what it wrote must be what it expects.
import path from 'node:path';
import { loadCalibration, Model, perplexityOf, prune } from '../../lib/index.js';
import { writtenByItself } from '../../lib/calibration/self.js';
import { fixture, quantize, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const [samples, context] = [12, 64];
let model: Model;
beforeAll(async () => (model = await Model.load(tiny, { device: 'cpu', threads: 1 })));
afterAll(() => model.dispose());

test('is what the model expects: by the distribution from which each token is drawn', async () => {
    const calibration = await loadCalibration(model, { file: 'self', samples, context });
    const { tokens } = calibration;
    expect(calibration).toMatchObject({ name: 'self', length: context });
    expect(tokens).toHaveLength(samples * context);
    const written = await perplexityOf(model, calibration);
    const shuffled = Int32Array.from(tokens).sort((a, b) => ((a * 7919) % 1013) - ((b * 7919) % 1013));
    expect(await perplexityOf(model, { tokens: shuffled, length: context })).toBeGreaterThan(20 * written);
    // The mean NLL of drawn tokens is near the entropy, less what is cut off: below that of any other text.
    const embedded = await loadCalibration(model, { file: 'embedded', samples, context });
    const other = await perplexityOf(model, embedded);
    expect(written).toBeLessThan(other);
    expect(written).toBeGreaterThan(other / 4); // greedily written text repeats itself, and has a perplexity near 1
    expect(new Set(tokens).size).toBeGreaterThan(samples * context * 0.3);
});

test('begins with different words, and is the same for the same seed only', async () => {
    const texts = model.tokenTexts();
    const of = async (seed?: number) => (await loadCalibration(model, { file: 'self', samples, context, seed })).tokens;
    const [first, again, other] = [await of(), await of(0), await of(1)];
    expect(again).toEqual(first);
    expect(other).not.toEqual(first);
    const words = Array.from({ length: samples }, (_, i) => texts[first[i * context + (model.bos === null ? 0 : 1)]!]);
    expect(words.every((word) => /^[Ġ▁]?[A-Z][a-z]+$/.test(word!))).toBe(true);
    expect(new Set(words).size).toBeGreaterThan(samples / 2);
});

test('of a sequence is the same whichever others are written, and goes on where the search has stopped', async () => {
    const options = { length: context, seed: 3 };
    const [all, some] = [
        await writtenByItself(model, { ...options, first: 0, count: 4 }),
        await writtenByItself(model, { ...options, first: 2, count: 2 })
    ];
    expect(some).toEqual(all.slice(2 * context));
    const calibration = await loadCalibration(model, { file: 'self', samples: 2, context, seed: 3 });
    expect(calibration.tokens).toEqual(all.slice(0, 2 * context));
    expect(await calibration.more!(2, {})).toEqual(some);
});

test('begins every second time as a conversation does, where the model has a template', async () => {
    const chat = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}";
    Object.assign(chat.gguf.metadata, { 'tokenizer.chat_template': template });
    const tokens = await writtenByItself(chat, { first: 0, count: 4, length: context, seed: 0 });
    const opening = await chat.tokenizePieces([{ text: 'user: ', addBos: true, parseControl: true }]);
    const starts = Array.from({ length: 4 }, (_, i) => tokens.slice(i * context, i * context + opening.length));
    expect([starts[1], starts[3]]).toEqual([opening, opening]);
    expect(starts[0]).not.toEqual(opening);
    expect(tokens.slice(context, 2 * context)).not.toEqual(tokens.slice(3 * context));
    chat.dispose();
});

test('tells its progress and stops', async () => {
    const told: [number, number][] = [];
    await model.generate([Int32Array.of(5), Int32Array.of(6, 7)], {
        length: 64,
        seed: 0,
        onProgress: (done, total) => told.push([done, total])
    });
    // Of 2 × 64 tokens, one or two of a sequence were there; each step writes one. What the promise overtakes isn't
    // told.
    expect(told.length).toBeGreaterThan(0);
    const done = told.map(([tokens]) => tokens);
    expect(done).toEqual([...new Set(done)].sort((a, b) => a - b));
    expect(done.every((tokens) => tokens >= 2 && tokens <= 128)).toBe(true);
    expect(told.every(([, all]) => all === 128)).toBe(true);
    const stop = new AbortController();
    const work = model.generate([Int32Array.of(5)], {
        length: 4096,
        seed: 0,
        onProgress: () => stop.abort(new Error('enough')),
        signal: stop.signal
    });
    await expect(work).rejects.toThrow('enough');
});

test('of prompts that can not be is refused', async () => {
    const options = { length: 8, seed: 0 };
    await expect(model.generate([], options)).rejects.toThrow('prompts must be lists of 1 to 8 tokens');
    await expect(model.generate([new Int32Array(0)], options)).rejects.toThrow('prompts must be');
    await expect(model.generate([new Int32Array(9)], options)).rejects.toThrow('prompts must be');
    await expect(model.generate([Int32Array.of(model.vocabulary)], options)).rejects.toThrow('prompts must be');
    await expect(loadCalibration(model, { file: 'self', field: 'text' })).rejects.toThrow('field must be left out');
});

test.each(['mamba-dense', 'gemma3-dense', 'jamba-dense'])('is written by %s too', async (name) => {
    const other = await Model.load(fixture(name, path.join(folder, `${name}.gguf`)), { device: 'cpu', threads: 1 });
    const prompts = [Int32Array.of(5, 6), Int32Array.of(7)];
    const tokens = await other.generate(prompts, { length: 16, seed: 1 });
    const alone = await other.generate([prompts[0]!], { length: 16, seed: 1 });
    expect(alone).toEqual(tokens.slice(0, 16));
    expect([...tokens.slice(0, 2), tokens[16]]).toEqual([5, 6, 7]);
    other.dispose();
});

test('is written by a quantized model with a state too', async () => {
    const source = fixture('mamba-dense', path.join(folder, 'state.gguf'));
    const file = await quantize(source, path.join(folder, 'state-q8.gguf'), 'Q8_0');
    const other = await Model.load(file, { device: 'cpu', threads: 1 });
    const prompts = Array.from({ length: 3 }, (_, i) => Int32Array.of(5 + i, 9, 7));
    const tokens = await other.generate(prompts, { length: 12, seed: 1 });
    expect(tokens.slice(0, 12)).toEqual(await other.generate(prompts.slice(0, 1), { length: 12, seed: 1 }));
    other.dispose();
});

test('is what a pruning is decided by and fitted to by default', async () => {
    const result = await prune(tiny, {
        output: path.join(folder, 'smaller.gguf'),
        remove: 2,
        device: 'cpu',
        threads: 1,
        calibration: { samples: 2, context: 64 },
        repairTokens: 2048
    });
    expect(result).toMatchObject({ method: 'balanced', calibration: { name: 'self', sequences: 2, context: 64 } });
    expect(result.repair).toMatchObject({ kind: 'linear', tokens: 2048 });
});
