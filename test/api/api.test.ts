// The package as others use it: from an ES module, from CommonJS, and beside node-llama-cpp in one process.
import fs from 'node:fs';
import path from 'node:path';
import { readGguf, type PruneResult } from '../../lib/index.js';
import { startNode } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const root = path.resolve(__dirname, '../..');

/** Runs a script in a project that has the package installed, and reads the JSON that it prints. */
async function runScript<T>(name: string, code: string): Promise<T> {
    fs.mkdirSync(path.join(folder, 'node_modules'), { recursive: true });
    for (const [installed, at] of [
        ['blockpruner', root],
        ['node-llama-cpp', path.join(root, 'node_modules', 'node-llama-cpp')]
    ] as const) {
        if (!fs.existsSync(path.join(folder, 'node_modules', installed))) {
            fs.symlinkSync(at, path.join(folder, 'node_modules', installed), 'junction');
        }
    }
    const script = path.join(folder, name);
    fs.writeFileSync(script, code);
    const { code: exit, signal, stdout, stderr } = await startNode([script]).ended;
    expect({ exit, signal, stderr }).toEqual({ exit: 0, signal: null, stderr: '' });
    return JSON.parse(stdout) as T;
}

test.each([
    ['an ES module', 'prune.mjs', "import { prune, Model } from 'blockpruner';"],
    ['CommonJS', 'prune.cjs', "const { prune, Model } = require('blockpruner');"]
])('prunes from %s', async (_, name, load) => {
    const output = path.join(folder, `${name}.gguf`);
    const { result, layers } = await runScript<{ result: PruneResult; layers: number }>(
        name,
        `${load}
        (async () => {
            const result = await prune(${JSON.stringify(tiny)}, {
                output: ${JSON.stringify(output)}, remove: 1, blocks: 'ffn', device: 'cpu', threads: 1, calibration: { file: 'embedded', samples: 1, context: 32 }
            });
            const model = await Model.load(result.output, { device: 'cpu' });
            console.log(JSON.stringify({ result, layers: model.layers }));
            model.dispose();
        })();`
    );
    expect(result).toMatchObject({ output, host: 'deci', removed: [{ kind: 'ffn' }], steps: [{ evaluations: 12 }] });
    expect(layers).toBe(12);
    expect((await readGguf(output)).bytes).toBe(result.bytes.pruned);
    expect(fs.statSync(output).size).toBeLessThan(fs.statSync(tiny).size);
});

describe('node-llama-cpp in the same process', () => {
    const ours = `
        const { Model, loadCalibration, perplexityOf } = await import('blockpruner');
        const model = await Model.load(file, { device: 'cpu', threads: 1 });`;
    const theirs = `
        const { getLlama } = await import('node-llama-cpp');
        const llama = await getLlama({ gpu: false, build: 'never' });
        const stock = await llama.loadModel({ modelPath: file, gpuLayers: 0 });`;

    test.each([
        ['first', theirs + ours],
        ['second', ours + theirs]
    ])('loaded %s, computes the same', async (order, load) => {
        const results = await runScript<{ perplexity: number[]; likely: number[] }>(
            `both-${order}.mjs`,
            `
            const file = ${JSON.stringify(tiny)};
            ${load}
            const calibration = await loadCalibration(model, { file: 'embedded', samples: 1, context: 32 });
            const tokens = Array.from(calibration.tokens);
            const context = await stock.createContext({ contextSize: 64, batchSize: 64, threads: 1, flashAttention: true });
            const sequence = context.getSequence();
            const perplexity = [], likely = [];
            for (let round = 0; round < 2; round++) { // in turns
                perplexity.push(await perplexityOf(model, calibration));
                await perplexityOf(model, calibration, { skip: [{ kind: 'attn', layer: 3 }] });
                await sequence.clearHistory();
                const results = await sequence.controlledEvaluate(tokens.map((token, i) => (i < 31 ? [token, { generateNext: { probabilities: true, options: { temperature: 0 } } }] : token)));
                likely.push(Math.exp(tokens.slice(1).reduce((sum, token, i) => sum - Math.log(results[i].next.probabilities.get(token)), 0) / 31));
            }
            console.log(JSON.stringify({ perplexity, likely }));
            model.dispose();
            await context.dispose();
            await stock.dispose();
            await llama.dispose();`
        );
        expect(results.perplexity[1]).toBe(results.perplexity[0]);
        expect(results.likely[1]).toBe(results.likely[0]);
        expect(results.likely[0]! / results.perplexity[0]!).toBeCloseTo(1, 3);
    });
});

test('models that nobody holds any more free their memory', async () => {
    const { growth } = await runScript<{ growth: number }>(
        'collected.cjs',
        `
        const { Model } = require('blockpruner');
        require('node:v8').setFlagsFromString('--expose-gc');
        const gc = require('node:vm').runInNewContext('gc');
        async function use() { // of its own: a suspended function keeps its temporaries
            await (await Model.load(${JSON.stringify(tiny)}, { device: 'cpu', threads: 1 })).blocks();
        }
        async function useSome() {
            for (let i = 0; i < 10; i++) {
                await use();
                gc();
                await new Promise((resolve) => setTimeout(resolve, 20));
            }
            return process.memoryUsage.rss();
        }
        (async () => {
            const before = await useSome();
            console.log(JSON.stringify({ growth: await useSome() - before }));
        })();`
    );
    expect(growth).toBeLessThan(50e6); // of ten models and contexts, each more than 10 MB
});

test('works in a worker, and in the main thread after the worker has ended', async () => {
    const use = `
        const { Model, loadCalibration, perplexityOf } = require('blockpruner');
        async function use() {
            const model = await Model.load(${JSON.stringify(tiny)}, { device: 'cpu', threads: 1 });
            return perplexityOf(model, await loadCalibration(model, { file: 'embedded', samples: 1, context: 32 }));
        }`;
    const { perplexities } = await runScript<{ perplexities: number[] }>(
        'worker.cjs',
        `${use}
        const { Worker } = require('node:worker_threads');
        const run = () => new Promise((resolve, reject) => {
            const worker = new Worker(${JSON.stringify(`${use} use().then((value) => require('node:worker_threads').parentPort.postMessage(value));`)}, { eval: true });
            let value;
            worker.on('message', (message) => { value = message; });
            worker.on('error', reject);
            worker.on('exit', () => resolve(value));
        });
        (async () => {
            console.log(JSON.stringify({ perplexities: [await use(), await run(), await use()] }));
        })();`
    );
    expect(perplexities[0]).toBeGreaterThan(1);
    expect(new Set(perplexities).size).toBe(1);
});
