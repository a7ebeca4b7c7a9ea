// What enters the runtime is checked: a wrong argument is named, with the value that it had.
import os from 'node:os';
import { ArgumentError } from '../../lib/errors.js';
import { Model, type LoadOptions, type Sequences } from '../../lib/index.js';
import { tiny, withModel } from '../models';

const none = Int32Array.from([]);
const some = Int32Array.from([1, 2, 3, 4, 5, 6]);

/** What a call was rejected with. */
async function rejection(
    call: Promise<unknown>
): Promise<{ isArgumentError: boolean; code: unknown; message: string }> {
    const error = await call.then(
        () => new Error('it was accepted'),
        (reason: unknown) => reason as Error
    );
    return {
        isArgumentError: error instanceof ArgumentError,
        code: (error as { code?: unknown }).code,
        message: error.message
    };
}

test('more threads than cores are not taken', async () => {
    const notices: string[] = [];
    const model = await Model.load(tiny, { device: 'cpu', threads: 1000, onNotice: (text) => notices.push(text) });
    const cores = os.availableParallelism();
    expect(model.threads).toBe(cores);
    expect(notices).toEqual([`1000 threads are more than this computer runs at once: taking ${cores}`]);
    model.dispose();
});

const refused = (message: string) => ({ isArgumentError: true, code: 'ARGUMENT', message });

test.each<[LoadOptions, string]>([
    [{ threads: 0 }, 'threads must be a whole number of at least 1, not 0'],
    [{ threads: 1.5 }, 'threads must be a whole number of at least 1, not 1.5'],
    [{ tokensAtOnce: 0 }, 'tokensAtOnce must be a whole number of at least 1, not 0'],
    [{ threads: NaN }, 'threads must be a whole number of at least 1, not NaN'],
    [{ gpuLayers: -1 }, 'gpuLayers must be a whole number of at least 0, not -1'],
    [{ gpuLayers: 0.5 }, 'gpuLayers must be a whole number of at least 0, not 0.5'],
    [{ device: 'x' as 'cpu' }, "device must be one of auto, cpu, cuda, metal, vulkan, not 'x'"],
    [{ cacheType: 'q8' as 'f16' }, "cacheType must be one of f16, f32, not 'q8'"]
])('Model.load and Model.loadOnEach refuse %j', async (options, message) => {
    expect(await rejection(Model.load(tiny, { device: 'cpu', ...options }))).toEqual(refused(message));
    expect(await rejection(Model.loadOnEach(tiny, { device: 'cpu', ...options }))).toEqual(refused(message));
});

test.each<[string, unknown, string]>([
    ['length 0', { tokens: some, length: 0 }, 'length must be a whole number of at least 2, not 0'],
    ['length 1', { tokens: some, length: 1 }, 'length must be a whole number of at least 2, not 1'],
    ['length 2.5', { tokens: some, length: 2.5 }, 'length must be a whole number of at least 2, not 2.5'],
    ['no length', { tokens: some }, 'length must be a whole number of at least 2, not NaN'],
    ['half a sequence', { tokens: some, length: 4 }, 'tokens must be whole sequences of 4 tokens, not 6'],
    ['no tokens', { tokens: none, length: 4 }, 'tokens must be whole sequences of 4 tokens, not 0'],
    ['an array of numbers', { tokens: [1, 2], length: 2 }, 'tokens must be an Int32Array, not 1,2']
])('evaluations refuse sequences with %s', async (_, wrong, message) => {
    await withModel(tiny, async (model) => {
        const sequences = wrong as Sequences;
        const run = [{ kind: 'attn', layer: 0 }] as const;
        expect(await rejection(model.evaluate(sequences))).toEqual(refused(message));
        expect(await rejection(model.hidden(sequences))).toEqual(refused(message));
        expect(await rejection(model.influence(sequences, [run]))).toEqual(refused(message));
        expect(await rejection(model.diverge(sequences, model))).toEqual(refused(message));
        expect(await rejection(model.keepStreams(sequences))).toEqual(refused(message));
    });
});

test('what else is wrong is named too', async () => {
    await withModel(tiny, async (model, calibration) => {
        expect(await rejection(model.tokenize(7 as unknown as string))).toEqual(
            refused('text must be a string, not 7')
        );
        expect(await rejection(model.keepStreams(calibration, { keepBytes: NaN }))).toEqual(
            refused('keepBytes must be a number of at least 0, not NaN')
        );
        expect(await rejection(model.influence(calibration, [[]]))).toEqual(
            refused("runs must be of at least one block each, not '[]'")
        );
        expect(await rejection(model.score([{ context: none, ending: some }]))).toEqual(
            refused("choices must be of at least one token in each context and ending, not '[]'")
        );
        // of the blocks and tokens that there are, the addon knows
        expect(await rejection(model.evaluate({ tokens: Int32Array.from([1, 2048]), length: 2 }))).toMatchObject({
            code: 'ARGUMENT',
            message: 'token 2048 is not in the vocabulary of 2048'
        });
        expect(await rejection(model.evaluate(calibration, { skip: [{ kind: 'ffn', layer: 99 }] }))).toMatchObject({
            code: 'ARGUMENT',
            message: 'the model has no block ffn.99: its layers are 0 to 11'
        });
    });
});

test('a loaded model has the options that it was given', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1, gpuLayers: 0, cacheType: 'f32' });
    expect(model).toMatchObject({ device: 'cpu', threads: 1, gpuLayers: 0, flashAttention: true });
    model.dispose();
});
