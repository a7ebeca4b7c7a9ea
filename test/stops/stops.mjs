// Stops whole runs at random moments: `npm run test:stops -- --kill 100 --interrupt 100`. A run that is killed and
// goes on must write the same bytes, and one that is interrupted must end soon; neither leaves a process or a file
// behind, but for those that the next run takes away.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { randomOf } from '../fuzz/mutate.mjs';

const root = path.resolve(import.meta.dirname, '..', '..');

/**
 * Prunes a model once in full, and then again and again with a signal in between.
 * @param model the model, and `args` what follows the output's name in the command
 * @param kill how many runs are killed and go on until they are complete, `interrupt` how many get Ctrl-C
 * @returns what went wrong, how long the whole run took and how long runs took to end at Ctrl-C, in ms, and at which
 * moments they were stopped
 */
export async function stopRuns({ model, args, kill = 0, interrupt = 0, seed = 1, onRun = () => {} }) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-stops-'));
    const temporary = path.join(folder, 'tmp');
    fs.mkdirSync(temporary);
    const at = (name) => path.join(folder, name);
    const random = randomOf(seed);
    const prune = (output, ...more) => start(temporary, ['prune', model, '-o', output, ...args, ...more]);
    const failures = [];
    const moments = {};
    const endings = [];
    try {
        const began = performance.now();
        const whole = await prune(at('whole.gguf')).ended;
        const milliseconds = performance.now() - began;
        if (whole.code !== 0) {
            throw new Error(whole.stderr);
        }
        const bytes = fs.readFileSync(at('whole.gguf'));
        const always = fs.readdirSync(folder);

        const stopOnce = async (output, stop, resume) => {
            const run = prune(output, ...(resume ? ['--resume'] : []));
            await sleep(random(Math.floor(milliseconds)));
            const over = run.isOver();
            const moment = momentOf(folder, output);
            const stopped = performance.now();
            stop(run);
            const { code, signal, stderr } = await run.ended;
            if (!over) {
                moments[moment] = (moments[moment] ?? 0) + 1;
            }
            return { over, code, signal, stderr, took: performance.now() - stopped };
        };
        const resumed = async (name, output) => {
            const { code, stderr } = await prune(output, '--resume').ended;
            if (code !== 0 || !fs.readFileSync(output).equals(bytes)) {
                failures.push(`${name}: ${code === 0 ? 'other bytes' : stderr}`);
            }
        };
        const nothingIsLeft = async (name, allowed) => {
            const orphans = await living(folder);
            const files = [...fs.readdirSync(folder), ...fs.readdirSync(temporary)];
            const left = files.filter((file) => !always.includes(file) && !allowed.test(file));
            if (orphans.length > 0 || left.length > 0) {
                failures.push(`${name} left ${[...orphans, ...left].join(', ')}`);
            }
        };

        for (let i = 0; i < kill; i++) {
            const [name, output] = [`kill ${i}`, at(`${i}.gguf`)];
            const lives = 1 + (i % 2);
            for (let life = 0; life < lives; life++) {
                const { over, code, signal, stderr } = await stopOnce(output, (run) => run.kill(), life > 0);
                if (!over && signal !== 'SIGKILL' && code !== 0) {
                    failures.push(`${name}: ${code} ${stderr}`);
                }
                if (fs.existsSync(output)) {
                    if (!fs.readFileSync(output).equals(bytes)) {
                        failures.push(`${name}: an output that is not complete`);
                    }
                    fs.rmSync(output); // it had been given its name already
                }
                await nothingIsLeft(name, /^\d+\.gguf\.(journal|lock|repair)$|partial|temporary/);
            }
            await resumed(name, output);
            fs.rmSync(output, { force: true });
            await nothingIsLeft(name, /^$/);
            onRun();
        }
        for (let i = 0; i < interrupt; i++) {
            const [name, output] = [`interrupt ${i}`, at(`${i}.gguf`)];
            const stop = (run) => run.signal(i % 2 === 0 ? 'SIGINT' : 'SIGTERM');
            const { over, code, signal, stderr, took } = await stopOnce(output, stop, false);
            if (!over) {
                endings.push(Math.round(took));
            }
            const isSaid = /^blockpruner: stopped: no model was written/m.test(stderr);
            const hadNotBegun = signal !== null && stderr === ''; // Node.js was still reading the program
            if (!over && code !== 0 && !(code === 130 && isSaid) && !hadNotBegun) {
                failures.push(`${name}: code ${code}, ${stderr.slice(-300)}`);
            }
            await nothingIsLeft(name, /^\d+\.gguf(\.(journal|repair))?$/);
            fs.rmSync(output, { force: true });
            await resumed(name, output);
            fs.rmSync(output, { force: true });
            onRun();
        }
        return { failures, milliseconds: Math.round(milliseconds), endings: endings.sort((a, b) => a - b), moments };
    } finally {
        fs.rmSync(folder, { recursive: true, force: true });
    }
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function start(temporary, args) {
    const child = spawn(process.execPath, [path.join(root, 'dist', 'cli', 'index.js'), ...args], {
        env: { ...process.env, TMPDIR: temporary },
        stdio: ['ignore', 'ignore', 'pipe'],
        detached: true
    });
    let stderr = '',
        over = false;
    child.stderr.on('data', (data) => (stderr += data));
    return {
        ended: new Promise((resolve) =>
            child.on('close', (code, signal) => {
                over = true;
                resolve({ code, signal, stderr });
            })
        ),
        isOver: () => over,
        kill: () => child.kill('SIGKILL'),
        /** as a terminal sends it: to all processes of the command */
        signal: (name) => {
            try {
                process.kill(-child.pid, name);
            } catch {
                // it has ended
            }
        }
    };
}

/** How far a run is, as its files show it. */
function momentOf(folder, output) {
    const names = fs.readdirSync(folder);
    if (names.some((name) => name.includes('partial') && name.endsWith('.gguf'))) {
        return 'writing and checking';
    }
    return names.includes(`${path.basename(output)}.journal`) ? 'search and repair' : 'before the search';
}

/** The processes that were started with our folder for temporary files; they get two seconds to end. */
async function living(folder) {
    for (let waited = 0; ; waited += 50) {
        const found = fs.readdirSync('/proc').filter((pid) => {
            try {
                return (
                    /^\d+$/.test(pid) && fs.readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`TMPDIR=${folder}/`)
                );
            } catch {
                return false; // another user's, or it has ended
            }
        });
        if (found.length === 0 || waited >= 2000) {
            return found.map((pid) => `process ${pid}`);
        }
        await sleep(50);
    }
}

if (process.argv[1] === import.meta.filename) {
    const { values } = parseArgs({
        options: {
            kill: { type: 'string', default: '100' },
            interrupt: { type: 'string', default: '100' },
            seed: { type: 'string', default: '1' },
            model: { type: 'string', default: path.join(root, 'models', 'blockpruner-tiny.gguf') },
            args: {
                type: 'string',
                default: '--remove 2 --samples 2 --context 64 --repair-tokens 1024 --device cpu --threads 1'
            }
        }
    });
    const { model, args, ...counts } = values;
    const numbers = Object.fromEntries(Object.entries(counts).map(([name, value]) => [name, Number(value)]));
    const onRun = () => process.stderr.write('.');
    const result = await stopRuns({ model, args: args.split(' '), ...numbers, onRun });
    console.log(JSON.stringify(result));
    process.exitCode = result.failures.length > 0 ? 1 : 0;
}
