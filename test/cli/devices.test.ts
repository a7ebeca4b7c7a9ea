// GPUs that work, and others that don't, by a backend that is none: native/fake_gpu.cpp computes on the CPU, and aborts
// or computes wrongly where it is told to.
import fs from 'node:fs';
import path from 'node:path';
import type { FoundDevice, PruneResult } from '../../lib/index.js';
import { backendFolders } from '../../lib/runtime/addon.js';
import { fakeGpu, quantize, temporaryFolder, tiny } from '../models';
import { run, runJson, startNode } from './run';

const folder = temporaryFolder();
const abortReason =
    /^llama.cpp gave up: CUDA error: the provided PTX was compiled with an unsupported toolchain.; \S+ CUDA error$/;
// The arguments of a search of a second.
const search = (name: string, ...args: string[]) => {
    const text = ['--calibration', 'embedded', '--samples', '2', '--context', '32', '--blocks', 'attn'];
    const output = path.join(folder, name);
    return [
        'prune',
        tiny,
        '--remove',
        '1',
        '-o',
        output,
        '--threads',
        '1',
        '--repair',
        'none',
        '--no-verify',
        ...text,
        ...args
    ];
};

(process.platform === 'linux' && backendFolders.cpu !== '' ? describe : describe.skip)('a GPU', () => {
    const before = { ...process.env };
    beforeEach(() => {
        Object.assign(process.env, fakeGpu());
    });
    afterEach(() => {
        process.env = { ...before };
    });

    const found = async () => (await runJson<FoundDevice[]>('devices')).find(({ device }) => device === 'cuda')!;

    test('that works is listed with its memory, and searches as the CPU does', async () => {
        const gpu = { name: 'CUDA0', description: 'a GPU that is none', memoryFree: 2 ** 30, memoryTotal: 2 ** 31 };
        const description = gpu.description;
        expect(await found()).toEqual({
            device: 'cuda',
            present: true,
            works: true,
            description,
            library: fakeGpu().BLOCKPRUNER_CUDA_BACKEND,
            gpus: [gpu]
        });
        const { stdout } = await run('devices');
        expect(stdout).toMatch(/^cpu +works {2}\S.*\ncuda +works {2}a GPU that is none; 1.00 GiB of 2.00 GiB free\n/);

        // this backend is none that the stock runtime has, so that the file is verified on the CPU
        const verified = search('gpu.gguf').filter((arg) => arg !== '--no-verify');
        const onGpu = await runJson<{ removed: unknown; perplexity: { dense: number } }>(...verified);
        const onCpu = await runJson<typeof onGpu>(...search('cpu.gguf', '--device', 'cpu'));
        expect(onGpu.removed).toEqual(onCpu.removed);
        expect(onGpu.perplexity.dense / onCpu.perplexity.dense).toBeCloseTo(1, 2); // other kernels round otherwise
    });

    test('whose backend has no code for it is not used, and that is said in one line', async () => {
        process.env.FAKE_GPU_ABORT_AFTER = '0';
        const { works, present, description, gpus } = await found();
        expect({ works, present }).toEqual({ works: false, present: true });
        expect(gpus.map(({ name, failure }) => `${name}: ${failure}`)).toEqual([
            expect.stringMatching(
                /^CUDA0: llama.cpp gave up: CUDA error: .*; 'blockpruner devices --build cuda' builds a backend/
            )
        ]);
        expect(description).toBe(`a GPU that is none: ${gpus[0]!.failure}`);

        const refused = await run('perplexity', tiny, '--text', tiny, '--device', 'cuda');
        expect(refused.code).toBe(1);
        expect(refused.stderr).toMatch(
            /^blockpruner: CUDA can't be used: a GPU that is none: llama.cpp gave up: .*\n$/
        );

        const { code, stderr } = await run(...search('fallback.gguf'));
        expect(code).toBe(0);
        expect(stderr.split('\n').filter((line) => /CUDA/.test(line))).toEqual([
            expect.stringMatching(
                /^CUDA can't be used: a GPU that is none: llama.cpp gave up: .*: computing on (CPU|Vulkan) instead$/
            )
        ]);
    });

    test.each([
        ['computes wrongly', { FAKE_GPU_WRONG: '1' }, 'a GPU that is none: it computes something else than the CPU'],
        [
            'has no library',
            { BLOCKPRUNER_CUDA_BACKEND: '/none.so' },
            'load_backend: failed to load /none.so: /none.so: cannot open shared object file: No such file or directory'
        ]
    ])('that %s is not used', async (_, env, description) => {
        Object.assign(process.env, env);
        expect(await found()).toMatchObject({ works: false, description });
    });

    test('that aborts in a search ends the program with the reason, and --resume goes on from there', async () => {
        const whole = await runJson<{ removed: unknown }>(...search('whole.gguf'));
        process.env.FAKE_GPU_ABORT_AFTER = '12';
        const { code, stderr } = await run(...search('aborted.gguf'));
        expect(code).not.toBe(0);
        expect(stderr.trimEnd().split('\n').at(-1)).toMatch(abortReason);
        delete process.env.FAKE_GPU_ABORT_AFTER;
        const resumed = await runJson<{ removed: unknown }>(...search('aborted.gguf', '--resume'));
        expect(resumed.removed).toEqual(whole.removed);
    });

    test('without memory for all that is wanted computes less at once, keeps less, or takes fewer layers, and says so', async () => {
        const output = path.join(folder, 'small.gguf');
        const args = [
            ...search(
                'small.gguf',
                '--search',
                'exact',
                '--memory',
                '24',
                '--remove',
                '2',
                '--samples',
                '8',
                '--context',
                '128'
            ),
            '--json',
            '--force'
        ];
        const of = async (memory: number) => {
            process.env.FAKE_GPU_MEMORY = String(memory);
            fs.rmSync(output, { force: true });
            const { code, stdout, stderr } = await run(...args);
            const { removed, steps } = JSON.parse(stdout || '{}') as Pick<PruneResult, 'removed' | 'steps'>;
            const perplexities = steps?.map(({ perplexity }) => perplexity);
            return {
                code,
                removed,
                perplexities,
                notices: stderr.split('\n').filter((line) => /memory|layers/.test(line))
            };
        };
        const ample = await of(2 ** 30);
        expect(ample).toMatchObject({ code: 0, notices: [] });
        const { notices: first, ...found } = ample;
        expect(first).toEqual([]);

        const lacks = 'the device (cuda) has no memory';
        const { notices: batches, ...inBatches } = await of(20e6);
        expect(inBatches).toEqual(found);
        const [, inSearch, ...more] = batches; // the first is of the context, before the search
        expect(inSearch).toBe(`${lacks} for 2 sequences at once: computing 1`);
        expect(more[0]).toBe(`${lacks} to keep 24 boundaries of a sequence: keeping 12`);
        // here memory runs out in a run that starts at a kept boundary
        expect(await of(26e6)).toMatchObject(found);

        const large = await quantize(tiny, path.join(folder, 'large.gguf'), 'F32');
        args[args.indexOf(tiny)] = large;
        const { notices: layers, code } = await of(30e6);
        expect(code).toBe(0);
        expect(layers[0]).toBe(
            `${large} has 29.1 MiB, and 21.5 MiB of the 28.6 MiB that are free on the GPU can hold weights: ` +
                'computing 8 of 12 layers there'
        );
    });

    test('has its memory back once a model is disposed, also after a repair', async () => {
        const large = await quantize(tiny, path.join(folder, 'large.gguf'), 'F32'); // there is room for one of it
        const program = `
            const { loadCalibration, Model } = require(${JSON.stringify(path.resolve(__dirname, '../../dist/index.js'))});
            (async () => {
                for (const _ of [1, 2]) {
                    const model = await Model.load(${JSON.stringify(large)}, { device: 'cuda', gpuLayers: 99, threads: 1, tokensAtOnce: 1 });
                    const text = await loadCalibration(model, { file: 'embedded', samples: 2, context: 64 });
                    await model.fitRepair(text, [[{ kind: 'ffn', layer: 9 }]], { linear: true, refit: 'none' });
                    model.dispose();
                }
            })();`;
        process.env.FAKE_GPU_MEMORY = String(50e6);
        const { code, stderr } = await startNode(['-e', program]).ended;
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    });

    test('a backend can be built only where there are nvcc and a GPU', async () => {
        const fake = (name: string, prints: string) =>
            fs.writeFileSync(path.join(folder, name), `#!/bin/sh\necho "${prints}"\n`, { mode: 0o755 });
        process.env.PATH = `${folder}${path.delimiter}${path.dirname(process.execPath)}`;
        const refused = () => run('devices', '--build', 'cuda');
        expect((await refused()).stderr).toMatch(/^blockpruner: nvcc was not found: install the CUDA toolkit, .*\n$/);
        fake('nvcc', 'release 13.0');
        fake('nvidia-smi', 'No devices were found');
        const { code, stderr } = await refused();
        expect(code).toBe(1);
        expect(stderr).toMatch(
            /^blockpruner: nvidia-smi shows no GPU to build for; BLOCKPRUNER_CUDA_ARCHITECTURES=90 .*\n$/
        );
    });
});
