// Values that the addon writes in other types than F32, against what llama.cpp's own quantizer makes of them.
import fs from 'node:fs';
import path from 'node:path';
import { readGguf } from '../../lib/index.js';
import type { GgufSource } from '../../lib/runtime/addon.js';
import { readBytes } from '../gguf_bytes';
import { fileTypes, quantize, randomNumbers, temporaryFolder, tiny, withMetadata, writeGguf } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);

/** Writes a file with one tensor of given values, which is its end. */
async function writeOne(type: string, shape: number[], data: Float32Array): Promise<string> {
    const output = file('one.gguf');
    await writeGguf({ output, sources: [tiny], tensors: [{ name: 'given', type, shape, data }] });
    return output;
}

const tensor = 'blk.1.ffn_up.weight';

test.each(Object.keys(fileTypes) as (keyof typeof fileTypes)[])('%s', async (fileType) => {
    // a matrix of the embedded model with other values, more than are converted at once
    const rows = 9000,
        length = 256;
    const random = randomNumbers(3);
    const data = Float32Array.from({ length: rows * length }, () => random());
    const { tensors } = await readGguf(tiny);
    const source = file('source.gguf');
    await writeGguf({
        output: source,
        sources: [tiny],
        tensors: tensors.map(({ name }) =>
            name === tensor ? { name, type: 'f32', shape: [length, rows], data } : { name, from: [{ file: 0, name }] }
        )
    });
    const theirs = await quantize(source, file('theirs.gguf'), fileType);
    const { type, bytes } = (await readGguf(theirs)).tensors.find(({ name }) => name === tensor)!;
    const alone = file('alone.gguf');
    await writeGguf({
        output: alone,
        sources: [theirs],
        tensors: [{ name: tensor, from: [{ file: 0, name: tensor }] }]
    });
    const end = (of: string) => fs.readFileSync(of).subarray(-bytes);
    const ours = await writeOne(type, [length, rows], data);
    expect((await readGguf(ours)).tensors[0]).toMatchObject({ type, bytes });
    expect(end(ours).equals(end(alone))).toBe(true);
});

test('values that a type can’t have are refused', async () => {
    const values = (value: number) => new Float32Array(512).fill(1).fill(value, 300, 301);
    for (const value of [NaN, Infinity, -Infinity]) {
        for (const type of ['f32', 'f16', 'q8_0']) {
            await expect(writeOne(type, [256, 2], values(value))).rejects.toThrow(
                'tensor given has values that are not finite'
            );
        }
    }
    await expect(writeOne('f16', [256, 2], values(1e6))).rejects.toThrow('has values that are too large for f16');
    await expect(writeOne('q8_0', [256, 2], values(1e30))).rejects.toThrow('has values that are too large for q8_0');
    await expect(writeOne('q4_K', [128, 4], values(1))).rejects.toThrow(
        "tensor given can't be q4_K: its rows of 128 values are no multiple of 256"
    );
    for (const type of ['iq2_xxs', 'q8_K', 'i32']) {
        await expect(writeOne(type, [256, 2], values(1))).rejects.toThrow(`tensor given can't be ${type}`);
    }
    await expect(writeOne('f32', [256, 3], values(1))).rejects.toThrow('has 512 values, and its shape 768');
});

test('strings keep their NUL bytes, in metadata and in the vocabulary, or are refused by name', async () => {
    const source = file('nul.gguf');
    await withMetadata(tiny, source, [{ key: 'test.text', type: 'string', value: 'before_after' }]);
    const bytes = fs.readFileSync(source);
    bytes[bytes.indexOf('before_after') + 6] = 0;
    bytes[bytes.indexOf('\u0120the') + 3] = 0; // a token: Ġthe
    fs.writeFileSync(source, bytes);
    const tensors = (await readGguf(source)).tensors.map(({ name }) => ({ name, from: [{ file: 0, name }] }));
    const output = file('nul-copied.gguf');
    await writeGguf({ output, sources: [source], tensors });
    const [before, after] = [readBytes(source).metadata, readBytes(output).metadata];
    expect(after.get('test.text')!.includes('before\0after')).toBe(true);
    expect([...after]).toEqual([...before]);

    const renamed = writeGguf({ output, sources: [source], tensors, rename: [['test.', 'other.']] });
    await expect(renamed).rejects.toThrow('the value of the metadata key test.text has a NUL byte');
});

test('a sum is quantized by the importance of its values', async () => {
    const [rows, length] = [64, 256];
    const random = randomNumbers(5);
    const data = Float32Array.from({ length: rows * length }, () => random());
    const importance = Float32Array.from({ length }, (_, i) => (i % 8 === 0 ? 100 : 1));
    const source = file('values.gguf');
    await writeGguf({
        output: source,
        sources: [tiny],
        tensors: [{ name: 'x', type: 'f32', shape: [length, rows], data }]
    });
    const write = (output: string, from: string, row: Partial<GgufSource>) =>
        writeGguf({
            output,
            sources: [from],
            tensors: [{ name: 'x', from: [{ file: 0, name: 'x', sum: [{ file: 0, name: 'x', weight: 1 }], ...row }] }]
        });
    /** The mean square of what quantization changes, each value counted by its importance. */
    const error = async (row: Partial<GgufSource>) => {
        await write(file('quantized.gguf'), source, { sumType: 'q4_0', ...row });
        await write(file('again.gguf'), file('quantized.gguf'), { sumType: 'f32' });
        const bytes = Uint8Array.from(readBytes(file('again.gguf')).data).buffer;
        const found = new Float32Array(bytes, 0, data.length);
        return found.reduce((sum, value, i) => sum + importance[i % length]! * (value - data[i]!) ** 2, 0);
    };
    const [alike, weighted] = [await error({}), await error({ importance })];
    expect(alike).toBeGreaterThan(0);
    expect(weighted).toBeLessThan(0.8 * alike);

    for (const wrong of [new Float32Array(8).fill(1), new Float32Array(length), new Float32Array(length).fill(NaN)]) {
        await expect(error({ importance: wrong })).rejects.toThrow("the importance of tensor x's values is not");
    }
});
