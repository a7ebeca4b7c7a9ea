// Breaks shared searches at random moments: `npm run test:cluster -- --runs 50`. Workers are killed, stopped and let
// go on, and come late; Redis is restarted without its data; the coordinator is killed and resumed. Each search must
// find what a search without workers finds.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { randomOf } from '../fuzz/mutate.mjs';
import { startRedis } from './redis.mjs';

const root = path.resolve(import.meta.dirname, '..', '..');
const cli = path.join(root, 'dist', 'cli', 'index.js');
export const faults = ['kill', 'pause', 'late', 'redis', 'coordinator'];

/**
 * Shares a search again and again, with one fault in each.
 * @param model the model, and `args` the options of the search
 * @param runs how many times, the faults in turns
 * @returns what went wrong, and how often a fault came while a search was at work
 */
export async function breakRuns({ model, args, runs, seed = 1, which = faults, onRun = () => {} }) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-faults-'));
    const redis = await startRedis();
    const random = randomOf(seed);
    const failures = [];
    const struck = {};
    const onCpu = ['--device', 'cpu', '--threads', '1'];
    const join = () => start(['worker', model, '--redis', redis.url, ...onCpu]);
    const prune = (output, ...more) => start(['prune', model, '-o', output, ...args, ...onCpu, '--json', ...more]);
    const workers = new Set();
    try {
        const began = performance.now();
        const whole = await prune(path.join(folder, 'whole.gguf')).ended;
        const milliseconds = performance.now() - began;
        if (whole.code !== 0) {
            throw new Error(whole.stderr);
        }
        const expected = foundIn(whole.stdout);
        const bytes = fs.readFileSync(path.join(folder, 'whole.gguf'));
        for (let run = 0; run < runs; run++) {
            const fault = which[run % which.length];
            const output = path.join(folder, `${run}.gguf`);
            while (workers.size < 2) {
                workers.add(join());
            }
            const shared = ['--redis', redis.url, '--workers', '2'];
            const search = prune(output, ...shared);
            await until(() => search.stderr().includes('candidates') || search.isOver(), 120_000);
            await sleep(random(Math.ceil(0.7 * milliseconds)));
            if (!search.isOver()) {
                struck[fault] = (struck[fault] ?? 0) + 1;
            }
            const [one] = workers;
            let { code, stdout, stderr } = {};
            if (fault === 'kill') {
                one.kill('SIGKILL');
                workers.delete(one);
            } else if (fault === 'pause') {
                one.kill('SIGSTOP');
                setTimeout(() => one.kill('SIGCONT'), random(25_000));
            } else if (fault === 'late') {
                workers.add(join());
            } else if (fault === 'redis') {
                await redis.restart(random(2000));
            } else {
                search.kill('SIGKILL');
                await search.ended;
                ({ code, stdout, stderr } = await prune(output, ...shared, '--resume').ended);
            }
            if (code === undefined) {
                ({ code, stdout, stderr } = await search.ended);
            }
            if (code !== 0 && !(fault === 'coordinator' && fs.existsSync(output))) {
                failures.push(`run ${run} (${fault}): ${stderr}`);
            } else if (code === 0 && JSON.stringify(foundIn(stdout)) !== JSON.stringify(expected)) {
                failures.push(
                    `run ${run} (${fault}): ${JSON.stringify(foundIn(stdout))}, not ${JSON.stringify(expected)}`
                );
            } else if (!fs.readFileSync(output).equals(bytes)) {
                failures.push(`run ${run} (${fault}): other bytes`);
            }
            fs.rmSync(output, { force: true });
            for (const worker of workers) {
                if (worker.isOver()) {
                    failures.push(`run ${run} (${fault}) ended a worker: ${worker.stderr()}`);
                    workers.delete(worker);
                }
            }
            while (workers.size > 2) {
                const [first] = workers;
                first.kill('SIGINT');
                workers.delete(first);
            }
            onRun(run, fault, failures.length);
        }
    } finally {
        workers.forEach((worker) => worker.kill('SIGKILL'));
        await Promise.all([...workers].map(({ ended }) => ended));
        await redis.stop();
        fs.rmSync(folder, { recursive: true, force: true });
    }
    return { failures, struck };
}

/** The order and the perplexities, which nothing may change. */
function foundIn(stdout) {
    const { steps, perplexity } = JSON.parse(stdout);
    return { perplexity, steps: steps.map(({ removed, perplexity: value }) => [removed, value]) };
}

function start(args) {
    const child = spawn(process.execPath, [cli, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let [stdout, stderr, over] = ['', '', false];
    child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    const ended = new Promise((resolve) =>
        child.on('close', (code, signal) => {
            over = true;
            resolve({ code, signal, stdout, stderr });
        })
    );
    return { ended, isOver: () => over, stderr: () => stderr, kill: (signal) => child.kill(signal) };
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function until(isTrue, milliseconds) {
    for (const end = Date.now() + milliseconds; !isTrue();) {
        if (Date.now() > end) {
            throw new Error('the search did not begin');
        }
        await sleep(20);
    }
}

if (import.meta.filename === process.argv[1]) {
    const { values } = parseArgs({
        options: {
            runs: { type: 'string', default: '50' },
            seed: { type: 'string', default: '1' },
            only: { type: 'string' }
        }
    });
    const args = '--remove 4 --method blockpruner --repair none --no-verify --calibration embedded --samples 24';
    const { failures, struck } = await breakRuns({
        model: path.join(root, 'models', 'blockpruner-tiny.gguf'),
        args: [...args.split(' '), '--context', '96'],
        runs: Number(values.runs),
        seed: Number(values.seed),
        ...(values.only && { which: [values.only] }),
        onRun: (run, fault, failed) => console.log(`${run + 1} ${fault}, ${failed} failures`)
    });
    console.log({ struck, failures });
    process.exitCode = failures.length > 0 ? 1 : 0;
}
