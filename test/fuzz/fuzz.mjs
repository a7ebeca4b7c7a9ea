// Reads many damaged GGUF files: `npm run fuzz -- --count 1000000 --seed 1`. None may end the process or keep it busy.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import build from '../../install/build.js';

const SILENT = 20_000; // ms with one file
const MOST_FAILURES = 100; // then something else is wrong

/**
 * Reads files that are made of others by seeds.
 * @returns how many were refused and read, and the seeds that ended a process or took too long, with what it said
 */
export async function fuzz({ models, seed, count, workers = 2, folder }) {
    const result = { refused: 0, read: 0, failures: [] };
    const work = async (start) => {
        for (let at = start; at < seed + count && result.failures.length < MOST_FAILURES;) {
            const { last, lines, why } = await readSome(folder, at, seed + count, workers, models);
            const counts = lines.findLast((line) => line.startsWith('{'));
            if (counts) {
                const { refused, read } = JSON.parse(counts);
                result.refused += refused;
                result.read += read;
                return;
            }
            result.failures.push({ seed: last, why });
            at = last + workers;
        }
    };
    await Promise.all(Array.from({ length: workers }, (_, i) => work(seed + i)));
    return result;
}

function readSome(folder, first, end, step, models) {
    const reader = path.join(import.meta.dirname, 'reader.mjs');
    const child = spawn(process.execPath, [reader, folder, first, end, step, ...models].map(String));
    let output = '',
        errors = '',
        last = first,
        timer;
    const wait = () => {
        clearTimeout(timer);
        timer = setTimeout(() => child.kill('SIGKILL'), SILENT);
    };
    wait();
    child.stdout.on('data', (data) => {
        wait();
        output = (output + data).slice(-4000);
        const seeds = output
            .split('\n')
            .slice(0, -1)
            .filter((line) => /^\d+$/.test(line));
        last = Number(seeds.at(-1) ?? last);
    });
    child.stderr.on('data', (data) => (errors = (errors + data).slice(-2000)));
    return new Promise((resolve) =>
        child.on('close', (code, signal) => {
            clearTimeout(timer);
            const said = `${output.split('\n').slice(-12).join('\n')}${errors}`.replace(/^\d+$/gm, '').trim();
            resolve({ last, lines: output.split('\n'), why: `${signal ?? `code ${code}`} ${said.slice(-600)}` });
        })
    );
}

if (process.argv[1] === import.meta.filename) {
    const { values, positionals } = parseArgs({
        options: { count: { type: 'string', default: '1000000' }, seed: { type: 'string', default: '1' } },
        allowPositionals: true
    });
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-fuzz-'));
    const models = positionals.length > 0 ? positionals : [path.resolve('models', 'blockpruner-tiny.gguf')];
    await build.ensureBuilt({ log: console.error }); // not within the time that a file has
    const started = performance.now();
    const result = await fuzz({ models, seed: Number(values.seed), count: Number(values.count), folder });
    fs.rmSync(folder, { recursive: true, force: true });
    console.log(JSON.stringify({ ...result, seconds: (performance.now() - started) / 1000 }, null, 1));
    process.exitCode = result.failures.length > 0 ? 1 : 0;
}
