// The process of fuzz.mjs that reads changed files: it prints each seed before it begins with it, and what came of it.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fieldsOf, mutate } from './mutate.mjs';

const require = createRequire(import.meta.url);
const { BlockprunerError, readGguf } = require('../../dist/index.js');
const { Prober } = require('../../dist/export/probe.js');

const [folder, first, last, step, ...models] = process.argv.slice(2);
const file = path.join(folder, `${first}.gguf`);
const bases = models.map((model) => {
    const bytes = fs.readFileSync(model);
    return { bytes, size: bytes.length, ...fieldsOf(bytes) };
});
const prober = new Prober(); // as every command looks at a model before it loads it
const counts = { refused: 0, read: 0 };
for (let seed = Number(first); seed < Number(last); seed += Number(step)) {
    fs.writeSync(1, `${seed}\n`);
    const base = bases[seed % bases.length];
    const bytes = mutate(base.bytes, base, seed);
    fs.writeFileSync(file, bytes);
    fs.truncateSync(file, Math.max(base.size, bytes.length)); // zeros for weights, which nothing here reads
    try {
        await readGguf(file);
        await prober.source(file);
        counts.read++;
    } catch (error) {
        if (!(error instanceof BlockprunerError) || !error.message) {
            fs.writeSync(1, `unexpected ${error.stack}\n`);
            process.exit(1);
        }
        counts.refused++;
    }
}
prober.close();
fs.rmSync(file);
fs.writeSync(1, `${JSON.stringify(counts)}\n`);
