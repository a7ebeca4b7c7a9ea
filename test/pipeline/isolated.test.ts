// Work in a process of its own: it gives the same, and what ends that process is an error here.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { apply, ArgumentError, BlockprunerError, journalOf, prune, type PruneOptions } from '../../lib/index.js';
import { backendFolders } from '../../lib/runtime/addon.js';
import { fakeGpu, temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
let count = 0;
/** The options of a search of a few seconds. */
const search = (options: Partial<PruneOptions> = {}): PruneOptions => ({
    output: path.join(folder, `${count++}.gguf`),
    remove: 2,
    blocks: 'attn',
    repair: 'none',
    verify: false,
    device: 'cpu',
    threads: 1,
    calibration: { file: 'embedded', samples: 2, context: 32 },
    ...options
});
const worker = () =>
    execFileSync('pgrep', ['-P', String(process.pid), '-f', 'isolated-process'], {
        encoding: 'utf8',
        env: { ...process.env, LD_PRELOAD: '' } // with the sanitizers' libraries it doesn't end
    }).trim();
const failure = (work: Promise<unknown>) =>
    work.then(
        () => Promise.reject(new Error('it did not fail')),
        (error: unknown) => error
    );

test('gives what the work gives here, and tells its progress', async () => {
    const told: string[] = [];
    const callbacks = {
        onStart: ({ candidates }: { candidates: number }) => told.push(`start ${candidates}`),
        onStep: (step: { removed: unknown }, number: number) =>
            told.push(`step ${number} ${JSON.stringify(step.removed)}`)
    };
    const here = await prune(tiny, search(callbacks));
    const heard = told.splice(0);
    const phases = new Set<string>();
    const there = await prune(tiny, search({ ...callbacks, isolate: true, onProgress: (phase) => phases.add(phase) }));
    expect(there.removed).toEqual(here.removed);
    expect(there.perplexity).toEqual(here.perplexity);
    expect(fs.readFileSync(there.output)).toHaveLength(fs.statSync(here.output).size);
    expect(told).toEqual(heard);
    expect([...phases]).toEqual(expect.arrayContaining(['load', 'calibrate', 'search', 'write']));
});

test('throws what the work throws', async () => {
    const wrong = await failure(prune(tiny, search({ threads: 0, isolate: true })));
    expect(wrong).toBeInstanceOf(ArgumentError);
    expect(wrong).toMatchObject({ code: 'ARGUMENT', argument: 'threads', value: 0 });
    const missing = await failure(
        apply('none.gguf', { order: [], output: path.join(folder, 'x.gguf'), isolate: true })
    );
    expect(missing).toBeInstanceOf(BlockprunerError);
    expect(missing).toMatchObject({ code: 'MODEL', message: expect.stringContaining('none.gguf') as string });
});

test('is stopped by the signal, and its journal stays', async () => {
    const whole = await prune(tiny, search());
    const stop = new AbortController();
    const options = search({ isolate: true });
    const reason = new Error('enough');
    const stopped = prune(tiny, { ...options, signal: stop.signal, onStep: () => stop.abort(reason) });
    await expect(stopped).rejects.toBe(reason);
    expect(fs.existsSync(options.output)).toBe(false);
    expect((await prune(tiny, { ...options, resume: true })).removed).toEqual(whole.removed);
    expect(fs.existsSync(journalOf(options.output))).toBe(false);
});

(process.platform === 'linux' ? test : test.skip)('that is killed is an error that says so', async () => {
    const options = search({ isolate: true });
    const killed = prune(tiny, { ...options, onStep: () => process.kill(Number(worker()), 'SIGKILL') });
    await expect(killed).rejects.toMatchObject({
        code: 'RUNTIME',
        message:
            'the process that did the work was ended: it ended with SIGKILL; `resume: true` goes on with what was found'
    });
    expect(fs.existsSync(options.output)).toBe(false);
    expect((await prune(tiny, { ...options, resume: true })).removed).toHaveLength(2);
});

// A ggml that was built from source, as for the sanitizers, is a part of the addon and loads no such backend.
const loadsBackends = backendFolders.cpu !== '' && process.env.BLOCKPRUNER_BUILD_FROM_SOURCE === undefined;
(process.platform === 'linux' && loadsBackends ? test : test.skip)(
    'in which llama.cpp aborts is an error with the reason, and the host goes on',
    () => {
        const host = `
            const { prune } = require(${JSON.stringify(path.resolve(__dirname, '..', '..'))});
            prune(${JSON.stringify(tiny)}, ${JSON.stringify(search({ device: 'auto', isolate: true }))}).catch(
                ({ code, message }) => console.log(code, message)
            );`;
        const printed = execFileSync(process.execPath, ['-e', host], {
            encoding: 'utf8',
            env: { ...process.env, ...fakeGpu(), FAKE_GPU_ABORT_AFTER: '12' }
        });
        expect(printed).toMatch(
            /^RUNTIME the process that did the work was ended: llama.cpp gave up: CUDA error: .* CUDA error; `resume: true` .*\n$/
        );
    }
);
