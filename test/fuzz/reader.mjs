// The process of fuzz.mjs that reads changed files: it prints each seed before it begins with it, and what came of it.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fieldsOf, mutate } from './mutate.mjs';

const require = createRequire(import.meta.url);
const { BlockprunerError, readGguf } = require('../../dist/index.js');
const { Prober } = require('../../dist/export/probe.js');

const [folder, first, last, step, ...models] = process.argv.slice(2);
const reader = Number(first) % Number(step); // one that goes on after another takes its files
// a model's files: of a split one all, of which one is changed
const bases = models.map((model, i) => {
    const [, count] = /-00001-of-(\d{5})\.gguf$/.exec(model) ?? [];
    const part = (n) => `-${String(n).padStart(5, '0')}-of-${count}.gguf`;
    const endings = count ? Array.from({ length: Number(count) }, (_, n) => part(n + 1)) : ['.gguf'];
    return endings.map((ending) => {
        const bytes = fs.readFileSync(model.replace(endings[0], ending));
        const file = path.join(folder, `${reader}-${i}${ending}`);
        fs.writeFileSync(file, bytes);
        return { file, bytes, size: bytes.length, ...fieldsOf(bytes) };
    });
});
const prober = new Prober(); // as every command looks at a model before it loads it
const counts = { refused: 0, read: 0 };
for (let seed = Number(first); seed < Number(last); seed += Number(step)) {
    fs.writeSync(1, `${seed}\n`);
    const files = bases[seed % bases.length];
    const base = files[Math.floor(seed / bases.length) % files.length];
    const bytes = mutate(base.bytes, base, seed);
    fs.writeFileSync(base.file, bytes);
    fs.truncateSync(base.file, Math.max(base.size, bytes.length)); // zeros for weights, which nothing here reads
    try {
        await readGguf(files[0].file);
        await prober.source(files[0].file);
        counts.read++;
    } catch (error) {
        if (!(error instanceof BlockprunerError) || !error.message) {
            fs.writeSync(1, `unexpected ${error.stack}\n`);
            process.exit(1);
        }
        counts.refused++;
    }
    if (files.length > 1) {
        fs.writeFileSync(base.file, base.bytes); // for the next one, which changes another
    }
}
prober.close();
bases.flat().forEach(({ file }) => fs.rmSync(file));
fs.writeSync(1, `${JSON.stringify(counts)}\n`);
