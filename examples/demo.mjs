// Prunes the embedded model and shows what came of it. `npm run demo` does all set-up first.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { formatBlock, formatStep, prune, stockGenerate, stockSpeed } from 'blockpruner';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const model = path.join(root, 'models', 'blockpruner-tiny.gguf');
const output = path.join(root, 'build', 'demo', 'smaller.gguf');
fs.mkdirSync(path.dirname(output), { recursive: true });

console.log(
    `Pruning ${path.relative(root, model)}: blocks and layers go, one by one, until a fifth of the parameters is gone\n`
);
const { perplexity, parameters, bytes, removed, repair } = await prune(model, {
    output,
    force: true,
    ratio: 0.2,
    device: 'cpu',
    calibration: { samples: 8 },
    onStep(step, number, dense) {
        const removal = `${String(number).padStart(3)}. ${formatStep(step).padEnd(9)}`;
        console.log(`${removal} perplexity ${step.perplexity.toFixed(3)} (dense: ${dense.toFixed(3)})`);
    }
});

// The two files take turns, and the best round of each counts, because other work on the computer slows single rounds
// down. Rounds as short as these are steady only on one thread.
const stock = { device: 'cpu', threads: 1, flashAttention: true };
const speeds = { dense: [], pruned: [] };
for (let round = 0; round < 3; round++) {
    speeds.dense.push((await stockSpeed(model, 256, stock)).prompt);
    speeds.pruned.push((await stockSpeed(output, 256, stock)).prompt);
}

const rows = [
    ['', 'before', 'after'],
    ['perplexity', perplexity.dense.toFixed(2), perplexity.pruned.toFixed(2)],
    ['parameters', parameters.dense, parameters.pruned],
    ['bytes', bytes.dense, bytes.pruned],
    ['tokens per second', Math.max(...speeds.dense).toFixed(0), Math.max(...speeds.pruned).toFixed(0)]
];
console.log(`\nremoved: ${removed.map(formatBlock).join(' ')}`);
if (repair.kind !== 'none') {
    const count = repair.linear.length;
    console.log(`repaired by ${count} linear blocks: perplexity ${repair.unrepaired.toFixed(3)} without them`);
}
console.log();
for (const [name, before, after] of rows) {
    console.log(`${name.padEnd(18)} ${String(before).padStart(12)} ${String(after).padStart(12)}`);
}
console.log(`
Perplexity is on the calibration text; tokens per second are of a prompt, on one thread, in the stock
runtime, node-llama-cpp (generation of so small a model is mostly the overhead of single calls). It loaded
${path.relative(root, output)} and went on from "The whale":
`);
console.log(`  The whale${await stockGenerate(output, 'The whale', 30, stock)}`);
