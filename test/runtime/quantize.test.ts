// The copy of a model in another type: that it is libllama's, and how it fails and stops.
import fs from 'node:fs';
import path from 'node:path';
import { quantizations, quantizeGguf, readGguf } from '../../lib/index.js';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const options = { type: 'Q4_K_M', threads: 1 } as const;

test.each(quantizations)('%s: the file says what it is, and only matrices change', async (type) => {
    const dense = await readGguf(tiny);
    const told: number[] = [];
    const quantized = await quantizeGguf(dense, file(`${type}.gguf`), {
        type,
        threads: 1,
        onProgress: (done, total) => told.push(done / total)
    });
    const shapes = ({ tensors }: typeof dense) => new Map(tensors.map(({ name, shape }) => [name, shape]));
    expect(shapes(quantized)).toEqual(shapes(dense));
    const types = new Set(quantized.tensors.filter(({ shape }) => shape.length > 1).map((tensor) => tensor.type));
    expect([...types].map((name) => name.slice(0, 2))).toContain(type.toLowerCase().slice(0, 2));
    expect(quantized.tensors.filter(({ shape }) => shape.length === 1).every((tensor) => tensor.type === 'f32')).toBe(
        true
    );
    expect(told).toEqual([...told].sort((a, b) => a - b));
    // Q8_0 is what the model has
    expect(quantized.bytes / dense.bytes < 0.9).toBe(type !== 'Q8_0');
});

test('stops when it is told to', async () => {
    const stop = new AbortController();
    const work = quantizeGguf(await readGguf(tiny), file('stopped.gguf'), {
        ...options,
        onProgress: () => stop.abort(new Error('enough')),
        signal: stop.signal
    });
    // the quantizer may be through with all tensors before JavaScript hears of the first
    await work.then(
        ({ bytes }) => expect(bytes).toBe(fs.statSync(file('stopped.gguf')).size),
        (error: Error) => expect(error.message).toBe('enough')
    );
    const never = quantizeGguf(await readGguf(tiny), file('never.gguf'), { ...options, signal: AbortSignal.abort() });
    await expect(never).rejects.toThrow('aborted');
    expect(fs.existsSync(file('never.gguf'))).toBe(false);
});

test('says why it can not', async () => {
    const cut = file('cut.gguf');
    const gguf = await readGguf(tiny);
    fs.writeFileSync(cut, fs.readFileSync(tiny).subarray(0, 3_000_000));
    await expect(quantizeGguf({ ...gguf, files: [cut] }, file('q.gguf'), options)).rejects.toThrow(
        /cut\.gguf can't be quantized to Q4_K_M: .*not within the file bounds/
    );
    await expect(quantizeGguf(gguf, path.join(folder, 'missing', 'q.gguf'), options)).rejects.toThrow(
        /blockpruner-tiny\.gguf can't be quantized to Q4_K_M: /
    );
    await expect(quantizeGguf(gguf, file('q.gguf'), { ...options, type: 'Q9' as 'Q8_0' })).rejects.toThrow(
        "there is no type 'Q9' to quantize to"
    );
});
