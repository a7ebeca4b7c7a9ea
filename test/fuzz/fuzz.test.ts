// Damaged files of many architectures: each is read, or refused with an error that says why; none ends this process or
// keeps it busy. `npm run fuzz` tries more of them.
import path from 'node:path';
import { fixture, split, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);

test('10,000 of them are read or refused', async () => {
    const names = [
        'llama-moe',
        'gemma3-dense',
        'mamba2-dense',
        'olmo2-dense',
        'plamo2-dense',
        'deepseek2-moe',
        'jamba-dense'
    ];
    const parts = await split(tiny, file('split'));
    const models = [tiny, parts, ...names.map((name) => fixture(name, file(`${name}.gguf`)))];
    const { fuzz } = await import('./fuzz.mjs');
    const { refused, read, failures } = await fuzz({ models, seed: 1, count: 10_000, workers: 2, folder });
    expect(failures).toEqual([]);
    expect(refused + read).toBe(10_000);
    expect(read).toBeGreaterThan(500); // some damage does none
}, 600_000);
