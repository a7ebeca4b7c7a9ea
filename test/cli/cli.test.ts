import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { readGguf, type Inspection, type Perplexity, type PruneResult } from '../../lib/index.js';
import { temporaryFolder, tiny } from '../models';
import { expectRefused, hasDraft, onCpu, run, runJson, shortPrune, shortSearch, start } from './run';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
const text = file('text.txt');
fs.writeFileSync(text, 'The whale rose from the sea, and the ship turned to meet it. '.repeat(40));

describe('--help', () => {
    test.each([
        [
            'prune',
            [
                '--output',
                '--force',
                '--verify',
                '--remove',
                '--ratio',
                '--max-increase',
                '--blocks',
                '--search',
                '--confidence',
                '--memory',
                '--repair',
                '--repair-tokens',
                '--repair-type',
                '--type',
                '--tensor-type',
                '--imatrix-out',
                '--per',
                '--search-type',
                '--swaps',
                '--resume',
                '--order',
                '--report',
                '--task',
                '--limit',
                '--calibration',
                '--field',
                '--samples',
                '--context',
                '--seed',
                '--device',
                '--gpu-layers',
                '--threads',
                '--json'
            ]
        ],
        [
            'apply',
            [
                '--blocks',
                '--order',
                '--remove',
                '--output',
                '--force',
                '--verify',
                '--repair',
                '--calibration',
                '--samples',
                '--context',
                '--device',
                '--json'
            ]
        ],
        [
            'perplexity',
            [
                '--text',
                '--field',
                '--context',
                '--skip',
                '--definition',
                '--device',
                '--gpu-layers',
                '--threads',
                '--json'
            ]
        ],
        ['inspect', ['--json']]
    ])('of %s lists its options and has examples', async (command, options) => {
        const { code, stdout, stderr } = await run(command, '--help');
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
        expect(options.filter((option) => !new RegExp(`${option}\\b`).test(stdout))).toEqual([]);
        expect(stdout).toMatch(new RegExp(`Examples:\\n  blockpruner ${command} `));
    });

    test('lists the commands', async () => {
        const { code, stdout } = await run('--help');
        expect(code).toBe(0);
        expect([...stdout.matchAll(/blockpruner (\w+) <model>/g)].map(([, name]) => name)).toEqual([
            'prune',
            'apply',
            'perplexity',
            'eval',
            'compare',
            'inspect',
            'worker'
        ]);
    });
});

test('--version is that of the package', async () => {
    const { version } = JSON.parse(fs.readFileSync(path.resolve(__dirname, '../../package.json'), 'utf8')) as {
        version: string;
    };
    expect(await run('--version')).toEqual({ code: 0, signal: null, stdout: `${version}\n`, stderr: '' });
});

describe('prune and apply', () => {
    const output = file('pruned.gguf');
    const order = file('order.json');
    let result: PruneResult;
    beforeAll(async () => {
        result = await runJson<PruneResult>(
            'prune',
            tiny,
            '-o',
            output,
            '--order',
            order,
            '--remove',
            '2',
            '--blocks',
            'attn',
            ...shortPrune
        );
    });

    test('print one JSON object', () => {
        const block = { kind: 'attn', layer: expect.any(Number) as number };
        const candidate = { move: [block], perplexity: expect.any(Number) as number, sequences: 1 };
        const step = (candidates: number) => ({
            removed: [block],
            perplexity: expect.any(Number) as number,
            candidates: Array<typeof candidate>(candidates).fill(candidate),
            evaluations: expect.any(Number) as number,
            seconds: expect.any(Number) as number
        });
        const numbers = { dense: expect.any(Number) as number, pruned: expect.any(Number) as number };
        expect(result).toEqual({
            model: tiny,
            output,
            architecture: 'llama',
            host: 'deci',
            method: 'balanced',
            repair: { kind: 'none', reason: 'it was turned off' },
            removed: [block, block],
            steps: [step(12), step(11)],
            linearGaps: false,
            searched: null,
            quantized: null,
            blocks: expect.arrayContaining([{ kind: 'ffn', layer: 11, parameters: 393472, bytes: 418816 }]) as unknown,
            calibration: { name: 'calibration.txt', sequences: 1, context: 32 },
            perplexity: numbers,
            parameters: numbers,
            bytes: numbers,
            tasks: { dense: [], pruned: [] },
            speed: null,
            seconds: expect.any(Number) as number
        });
        expect(result.steps.map(({ removed, evaluations }) => [removed, evaluations])).toEqual([
            [[result.removed[0]], 12],
            [[result.removed[1]], 11]
        ]);
        expect(result.perplexity.pruned).toBeCloseTo(result.steps[1]!.perplexity, 10);
    });

    test('write a file that is smaller, by the weights of the blocks', async () => {
        const [dense, pruned] = [await readGguf(tiny), await readGguf(output)];
        expect(fs.statSync(output).size).toBe(result.bytes.pruned);
        expect(result.bytes.dense - result.bytes.pruned).toBeGreaterThan(dense.bytes / 50);
        expect(result.parameters.dense - result.parameters.pruned).toBeGreaterThan(result.parameters.dense / 50);
        expect(pruned.metadata['general.architecture']).toBe('deci');
        expect(fs.readdirSync(folder).filter((name) => /partial|^\./.test(name))).toEqual([]);
    });

    test("write the order in the paper's schema", () => {
        const [first, second] = result.removed.map(({ layer }) => ['mha', layer]);
        expect(JSON.parse(fs.readFileSync(order, 'utf8'))).toEqual({ 1: [first], 2: [first, second] });
    });

    test.each(['order', 'names'])('write the same file, by a search and by its %s', async (by) => {
        const again = file(`applied-by-${by}.gguf`);
        const blocks = result.removed.map(({ layer }) => `attn.${layer}`).join();
        const which = by === 'names' ? ['--blocks', blocks] : ['--order', order, '--remove', '2'];
        const applied = await runJson<PruneResult>('apply', tiny, '-o', again, ...which, ...shortPrune);
        expect(applied).toEqual({
            ...result,
            output: again,
            method: null,
            steps: [],
            linearGaps: false,
            searched: null,
            quantized: null,
            seconds: expect.any(Number) as number
        });
        expect(fs.readFileSync(again).equals(fs.readFileSync(output))).toBe(true);
    });

    test('tell a person what was removed, and at what cost', async () => {
        const { code, stdout, stderr } = await run('prune', tiny, '-o', file('told.gguf'), ...shortSearch);
        expect(code).toBe(0);
        expect(stdout).toMatch(
            /^removed +attn\.\d+\nrepair +none: it was turned off\nperplexity +\d+\.\d+ → \d+\.\d+ \(\+?.+ %.*\)\nparameters .* M \(−.*\)\nsize .* MiB \(−.*\)\n.*verified in the stock runtime.*\n$/
        );
        expect(stderr).toMatch(
            /^dense perplexity \d+\.\d+, 12 candidates; the residual stream is kept at up to \d+ boundaries a sequence \(.* MiB now\)\n +1\. attn\.\d+ +perplexity \d+\.\d+ .*, 12 sequences, .* s\n$/
        );
    });

    test('stop by a share of the parameters and by the rise of the perplexity', async () => {
        const search = [...shortPrune, '--no-verify'];
        const byRatio = await runJson<PruneResult>(
            'prune',
            tiny,
            '-o',
            file('ratio.gguf'),
            '--ratio',
            '0.1',
            '--blocks',
            'ffn',
            ...search
        );
        expect(byRatio.removed).toHaveLength(2); // an FFN block is 5.2 % of the parameters
        const byIncrease = await runJson<PruneResult>(
            'prune',
            tiny,
            '-o',
            file('increase.gguf'),
            '--max-increase',
            '0.05',
            '--blocks',
            'attn',
            ...search
        );
        expect(byIncrease.removed.length).toBeGreaterThan(0);
        expect(byIncrease.perplexity.pruned).toBeLessThanOrEqual(1.05 * byIncrease.perplexity.dense);
    });

    describe('files that exist', () => {
        const taken = file('taken');
        beforeEach(() => {
            fs.writeFileSync(taken, 'mine');
            ['model.gguf', 'link.gguf', 'new.gguf', 'one.gguf'].forEach((name) =>
                fs.rmSync(file(name), { force: true })
            );
        });

        test('are kept, as output and as order', async () => {
            await expectRefused(
                folder,
                ['prune', tiny, '-o', taken, ...shortSearch],
                `${taken} exists: choose another name or give --force`
            );
            await expectRefused(
                folder,
                ['prune', tiny, '-o', file('new.gguf'), '--order', taken, ...shortSearch],
                `${taken} exists: choose another name or give --force`
            );
            await expectRefused(
                folder,
                ['apply', tiny, '-o', taken, '--order', order, '--remove', '1'],
                `${taken} exists: choose another name or give --force`
            );
            expect(fs.readFileSync(taken, 'utf8')).toBe('mine');
        });

        test('are replaced with --force', async () => {
            const taken2 = file('taken2');
            fs.writeFileSync(taken2, 'mine');
            await runJson('prune', tiny, '-o', taken, '--order', taken2, '--force', '--no-verify', ...shortSearch);
            expect((await readGguf(taken)).metadata['general.architecture']).toBe('deci');
            expect(JSON.parse(fs.readFileSync(taken2, 'utf8'))).toHaveProperty('1');
        });

        test.each(['output', 'order'])(
            'are kept even with --force where the %s is the model itself',
            async (option) => {
                const [model, link] = [file('model.gguf'), file('link.gguf')];
                fs.copyFileSync(tiny, model);
                fs.symlinkSync(model, link);
                for (const name of [model, link]) {
                    const outputs = option === 'output' ? ['-o', name] : ['-o', file('new.gguf'), '--order', name];
                    await expectRefused(
                        folder,
                        ['prune', model, ...outputs, '--force', ...shortSearch],
                        'is the model itself'
                    );
                    expect(fs.readFileSync(model).equals(fs.readFileSync(tiny))).toBe(true);
                }
            }
        );

        test('the order and the output must be two files', async () => {
            await expectRefused(
                folder,
                ['prune', tiny, '-o', file('one.gguf'), '--order', file('one.gguf'), ...shortSearch],
                'the order file and the output are both'
            );
        });
    });
});

describe('perplexity', () => {
    const measure = (...args: string[]) =>
        runJson<Perplexity>('perplexity', tiny, '--text', text, '--context', '64', ...onCpu, ...args);

    test('prints one JSON object', async () => {
        const { perplexity, nll, tokens, sequences, ...rest } = await measure();
        expect(rest).toEqual({});
        expect(sequences).toBeGreaterThan(2);
        expect(tokens).toBe(63 * sequences);
        expect(perplexity).toBeCloseTo(Math.exp(nll), 8);
    });

    test("leaves out blocks, by our names and by the paper's", async () => {
        const [dense, ours, papers] = [
            await measure(),
            await measure('--skip', 'attn.3,ffn.7'),
            await measure('--skip', 'mlp.7, mha.3')
        ];
        expect(ours).toEqual(papers);
        expect(ours.perplexity).not.toBe(dense.perplexity);
    });

    test('takes the last of an option that is given twice', async () => {
        expect(await measure('--context', '32')).toEqual(
            await runJson('perplexity', tiny, '--text', text, '--context', '32', ...onCpu)
        );
    });

    test('has the definition of llama.cpp', async () => {
        const [paper, theirs] = [await measure(), await measure('--definition', 'llama.cpp')];
        expect(theirs.tokens).toBe(31 * paper.sequences);
        expect(theirs.perplexity).not.toBe(paper.perplexity);
    });

    test('of a pruned file is that of the model without the blocks', async () => {
        const output = file('without.gguf');
        const {
            removed: [block]
        } = await runJson<PruneResult>('prune', tiny, '-o', output, '--no-verify', ...shortSearch);
        const { perplexity } = await runJson<Perplexity>(
            'perplexity',
            output,
            '--text',
            text,
            '--context',
            '64',
            ...onCpu
        );
        expect(perplexity / (await measure('--skip', `attn.${block!.layer}`)).perplexity).toBeCloseTo(1, 6);
    });
});

test('eval scores tasks, as a table and as JSON', async () => {
    const lines = (records: unknown[]) => records.map((record) => JSON.stringify(record)).join('\n');
    fs.writeFileSync(
        file('piqa, all.jsonl'),
        lines([
            { goal: 'Sail', sol1: 'With the wind.', sol2: 'With zqx vkw.' },
            { goal: 'Rest', sol1: 'Qwz pxk.', sol2: 'Sleep at night.' }
        ])
    );
    fs.writeFileSync(file('labels.lst'), '0\n1\n');
    fs.writeFileSync(
        file('winogrande.jsonl'),
        lines([
            {
                sentence: 'The ship passed the rock because the _ sailed away.',
                option1: 'ship',
                option2: 'rock',
                answer: '1'
            }
        ])
    );
    const args = [
        'eval',
        tiny,
        '--task',
        `piqa=${file('piqa, all.jsonl')},${file('labels.lst')}`,
        '--task',
        `winogrande=${file('winogrande.jsonl')}`,
        ...onCpu
    ];
    const score = { value: expect.any(Number) as number, stderr: expect.any(Number) as number };
    expect(await runJson('eval', ...args.slice(1), '--limit', '2', '--skip', 'attn.3')).toEqual({
        tasks: [
            { task: 'piqa', questions: 2, acc: score, acc_norm: score },
            { task: 'winogrande', questions: 1, acc: { ...score, stderr: null }, acc_norm: null }
        ],
        answers: null
    });
    const { code, stdout } = await run(...args);
    expect([code, stdout.trimEnd().split('\n')]).toEqual([
        0,
        [
            expect.stringMatching(/^piqa +2 questions +acc [\d.]+ ± [\d.]+ % +acc_norm [\d.]+ ± [\d.]+ %$/),
            expect.stringMatching(/^winogrande +1 questions +acc [\d.]+ %$/)
        ]
    ]);
});

test('prune by another method', async () => {
    const result = await runJson<PruneResult>(
        'prune',
        tiny,
        '-o',
        file('layers.gguf'),
        '--method',
        'shortgpt',
        '--remove',
        '4',
        ...shortPrune
    );
    expect(result.steps.map(({ removed }) => removed.map(({ kind }) => kind))).toEqual([
        ['attn', 'ffn'],
        ['attn', 'ffn']
    ]);
});

test('inspect lists the blocks', async () => {
    const { architecture, host, reason, moves, layers, blocks, history, ...rest } = await runJson<Inspection>(
        'inspect',
        tiny
    );
    expect(history).toEqual([]);
    expect({ architecture, host, layers, rest }).toEqual({
        architecture: 'llama',
        host: 'deci',
        layers: 12,
        rest: { repair: { linear: true, unfitted: [], unfittedInputs: [] } }
    });
    expect(reason).toMatch('deci');
    expect(blocks).toHaveLength(24);
    expect(moves).toEqual(blocks.map(({ kind, layer }) => [{ kind, layer }]));
    expect(blocks.slice(0, 2)).toEqual([
        { kind: 'attn', layer: 0, parameters: 196864, bytes: 209920 },
        { kind: 'ffn', layer: 0, parameters: 393472, bytes: 418816 }
    ]);
    expect((await run('inspect', tiny)).stdout).toMatch(
        /^architecture +llama\nhost +deci: .*\nlayers +12, 24 blocks\nrepair +linear blocks go into gaps; all output projections can be fitted; all input projections can be fitted\n +attn\.0 .*\n(.*\n){23}$/
    );
});

test('a model from a URL is downloaded, and stdout is JSON all the same', async () => {
    const server = http.createServer((_, response) =>
        response.writeHead(200, { 'content-length': fs.statSync(tiny).size }).end(fs.readFileSync(tiny))
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { HOME, USERPROFILE } = process.env;
    process.env.HOME = process.env.USERPROFILE = file('home'); // it keeps models there
    try {
        const { blocks } = await runJson<Inspection>(
            'inspect',
            `http://127.0.0.1:${(server.address() as AddressInfo).port}/tiny.gguf`
        );
        expect(blocks).toHaveLength(24);
    } finally {
        Object.assign(process.env, {
            ...(HOME !== undefined && { HOME }),
            ...(USERPROFILE !== undefined && { USERPROFILE })
        });
        server.closeAllConnections();
        server.close();
    }
});

// Windows has no SIGINT for other processes
(process.platform === 'win32' ? describe.skip : describe)('Ctrl-C', () => {
    const outputFiles = () =>
        fs.readdirSync(outputs).filter((name) => !['order.json', 'new.gguf.journal', 'new.gguf.repair'].includes(name));
    async function expectStops(
        { ended, interrupt, stderr }: ReturnType<typeof start>,
        ready: () => boolean
    ): Promise<void> {
        while (!ready()) {
            await new Promise((resolve) => setTimeout(resolve, 5));
        }
        const before = stderr();
        const interrupted = performance.now();
        interrupt();
        const { code, stdout, stderr: after } = await ended;
        expect(performance.now() - interrupted).toBeLessThan(2000);
        expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
        expect(after.slice(before.length)).toMatch(/^( +\d+\. .*\n)?blockpruner: stopped.*\n$/); // a step may have ended meanwhile
        expect(outputFiles()).toEqual([]);
    }
    let outputs: string;
    beforeEach(() => {
        outputs = fs.mkdtempSync(file('outputs-'));
    });

    test('stops a search', async () => {
        const search = start(
            'prune',
            tiny,
            '-o',
            path.join(outputs, 'new.gguf'),
            '--order',
            path.join(outputs, 'order.json'),
            '--remove',
            '20',
            '--calibration',
            'embedded',
            '--samples',
            '2',
            '--context',
            '128',
            ...onCpu
        );
        await expectStops(search, () => search.stderr().includes('  1. '));
        expect(JSON.parse(fs.readFileSync(path.join(outputs, 'order.json'), 'utf8'))).toHaveProperty('1'); // what was found is kept
        expect(search.stderr()).toMatch('; the same with --resume goes on\n');
    });

    test('stops writing and verifying', async () => {
        const order = file('stop.json');
        fs.writeFileSync(order, '{"1": [["mlp", 3]]}');
        const writing = start(
            'apply',
            tiny,
            '-o',
            path.join(outputs, 'new.gguf'),
            '--order',
            order,
            '--remove',
            '1',
            '--calibration',
            'embedded',
            '--samples',
            '8',
            ...onCpu
        );
        await expectStops(writing, () => hasDraft(outputs));
    });
});

describe('--json-progress', () => {
    const eventsOf = (stderr: string) =>
        stderr
            .trimEnd()
            .split('\n')
            .map((line) => JSON.parse(line) as Record<string, unknown>);

    test('tells of phases, the start and each removal, one object a line', async () => {
        const search = ['--blocks', 'attn', '--remove', '2', ...shortPrune, '--threads', '1000'];
        const { code, stdout, stderr } = await run(
            ...['prune', tiny, '-o', file('events.gguf'), ...search, '--json-progress', '--json']
        );
        expect(code).toBe(0);
        const result = JSON.parse(stdout) as PruneResult;
        const events = eventsOf(stderr);
        const phases = events.flatMap(({ phase }) => (phase === undefined ? [] : [phase]));
        expect([...new Set(phases)]).toEqual(['load', 'calibrate', 'search', 'write', 'verify']);
        expect(events.filter(({ start }) => start)).toHaveLength(1);
        const steps = events.filter(({ step }) => step).map(({ step, number }) => ({ step, number }));
        expect(steps).toEqual(result.steps.map((step, i) => ({ step, number: i + 1 })));
        const [{ notice }] = events.filter((event) => 'notice' in event) as [{ notice: string }];
        expect(notice).toMatch(/threads/);
    });

    test('tells of an error, and of arguments that are none', async () => {
        const missing = await run('inspect', 'nothing.gguf', '--json-progress');
        expect(eventsOf(missing.stderr)).toEqual([
            { error: expect.stringMatching(/there is no such file$/) as string, code: 'MODEL' }
        ]);
        const unknown = await run('inspect', tiny, '--no-such', '--json-progress');
        expect(eventsOf(unknown.stderr)).toEqual([
            { error: expect.stringMatching(/such.*--help tells more/) as string, code: 'ARGUMENT' }
        ]);
        expect([missing.code, unknown.code]).toEqual([1, 1]);
    });
});

// `script` gives a command a terminal
const hasScript = process.platform === 'linux' && fs.existsSync('/usr/bin/script');
(hasScript ? test : test.skip)('on a terminal, without arguments, it says in a few lines what to do', () => {
    const command = `${process.execPath} ${path.resolve(__dirname, '../../dist/cli/index.js')}`;
    const { status, stdout } = spawnSync('script', ['-qec', command, '/dev/null'], { encoding: 'utf8' });
    expect(status).toBe(0);
    expect(stdout.trim().split('\n').length).toBeLessThan(8);
    for (const name of ['inspect', 'prune', 'compare', '--help']) {
        expect(stdout).toContain(`npx blockpruner ${name}`);
    }
});
