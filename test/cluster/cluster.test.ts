// Searches that are shared over a real Redis, against the same ones on this computer alone. `npm run test:cluster`
// breaks many more.
import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Queue, QueueEvents, Worker, type QueueOptions } from 'bullmq';
import { Redis } from 'ioredis';
import { Fleet } from '../../lib/cluster/fleet.js';
import {
    loadCalibration,
    Model,
    PrefixEvaluator,
    prune,
    textPerplexity,
    type Block,
    type Calibration,
    type ClusterOptions,
    type PruneOptions,
    type PruneResult
} from '../../lib/index.js';
import { hashGguf } from '../../lib/runtime/gguf.js';
import { version } from '../../lib/version.js';
import { expectRefused, onCpu, run, start, startNode } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const file = (name: string) => path.join(folder, name);
type RedisServer = Awaited<ReturnType<typeof import('./redis.mjs').startRedis>>;
const isThere = (() => {
    try {
        return execFileSync('redis-server', ['--version']).length > 0;
    } catch {
        return false; // without it, there is nothing to test with: CONTRIBUTING.md says how to get it
    }
})();

/** A search of a second or two. */
const text = { samples: 6, context: 32 };
const calibration = ['--calibration', 'embedded', '--samples', String(text.samples), '--context', String(text.context)];
const args = ['--method', 'blockpruner', '--repair', 'none', '--no-verify', '--remove', '2', ...calibration, ...onCpu];
const search = (output: string, more: Partial<PruneOptions> = {}) =>
    prune(tiny, {
        output: file(output),
        method: 'blockpruner',
        remove: 2,
        repair: 'none',
        verify: false,
        device: 'cpu',
        threads: 1,
        calibration: { file: 'embedded', ...text },
        ...more
    });
const foundIn = ({ perplexity, steps }: PruneResult) => ({
    perplexity,
    steps: steps.map(({ removed, perplexity: value }) => [removed, value])
});
const evaluationsOf = ({ steps }: PruneResult) => steps.reduce((sum, { evaluations }) => sum + evaluations, 0);
/** As but stderr may have lines of workers. */
const runJsonQuietly = async (...more: string[]) => {
    const { code, stdout, stderr } = await run(...more, '--json');
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    return JSON.parse(stdout) as PruneResult;
};
const sleep = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const until = async (isTrue: () => boolean | Promise<boolean>) => {
    for (const end = Date.now() + 60_000; !(await isTrue()); await sleep(20)) {
        expect(Date.now()).toBeLessThan(end);
    }
};

(isThere ? describe : describe.skip)('over Redis', () => {
    let server: RedisServer;
    let redis: Redis;
    const workers = new Set<ReturnType<typeof start>>();
    const join = (...more: string[]) => {
        const worker = start('worker', tiny, '--redis', server.url, ...onCpu, ...more);
        workers.add(worker);
        return worker;
    };
    const leave = async () => {
        workers.forEach((worker) => worker.kill());
        await Promise.all([...workers].map(({ ended }) => ended));
        workers.clear();
    };
    /**
     * Waits until nothing is left but what says for a few seconds that a run is over, and that a worker is alive.
     * Workers that leave delete the run's queues once more, for which BullMQ writes a key of each: what is there is
     * looked at as a whole, again and again.
     */
    const expectNothingLeft = (namespace: string) =>
        until(async () => {
            const left = await redis.keys(`${namespace}:*`);
            const ends = await Promise.all(left.map((key) => redis.ttl(key)));
            return left.every((key, i) => /:(run|alive):/.test(key) && ends[i] !== -1 && ends[i]! <= 10);
        });
    const results: Record<string, PruneResult> = {};
    beforeAll(async () => {
        const { startRedis } = await import('./redis.mjs');
        server = await startRedis();
        redis = new Redis(server.url);
        redis.on('error', () => undefined);
        for (const mode of ['race', 'exact'] as const) {
            results[mode] = await search(`${mode}.gguf`, { search: mode });
        }
    });
    afterEach(leave);
    afterAll(async () => {
        redis.disconnect();
        await server.stop();
    });

    test.each([
        [1, 'race'],
        [2, 'race'],
        [4, 'race'],
        [2, 'exact']
    ] as const)('%i workers find what %s finds alone, bit for bit', async (count, mode) => {
        for (let i = 0; i < count; i++) {
            join();
        }
        const output = `${count}-${mode}.gguf`;
        const shared = ['--redis', server.url, '--workers', String(count), '--search', mode];
        const result = await runJsonQuietly('prune', tiny, '-o', file(output), ...args, ...shared);
        expect(foundIn(result)).toEqual(foundIn(results[mode]!));
        expect(fs.readFileSync(file(output)).equals(fs.readFileSync(file(`${mode}.gguf`)))).toBe(true);
        const alone = evaluationsOf(results[mode]!);
        expect(evaluationsOf(result) / alone).toBeLessThan(1.05);
        if (count === 1) {
            expect(evaluationsOf(result)).toBe(alone);
        }
        // what the workers say they did is what the search asked for, and each has done some of it
        const done = result.workers!.map(({ sequences }) => sequences);
        expect(done.reduce((sum, value) => sum + value, 0)).toBe(evaluationsOf(result) + text.samples);
        expect(result.workers).toHaveLength(count);
        expect(Math.min(...done)).toBeGreaterThan(0);
        expect(result.workers!.every(({ difference, seconds }) => difference === 0 && seconds > 0)).toBe(true);
        await expectNothingLeft('blockpruner');
    });

    test('workers that die, hang or come late change nothing', async () => {
        const [first, second] = [join(), join()];
        const shared = search('faults.gguf', {
            cluster: { redis: server.url, workers: 2, lockDuration: 500 },
            onStart: () => {
                first.kill();
                second.pause();
                join();
            },
            onStep: (_, number) => {
                if (number === 1) {
                    second.goOn();
                }
            }
        });
        const result = await shared;
        expect(foundIn(result)).toEqual(foundIn(results.race!));
        expect(result.workers).toHaveLength(3);
        await until(() => second.stderr().includes('done with the search'));
    });

    test('searches break at random moments and find the same', async () => {
        const { breakRuns } = await import('./faults.mjs');
        const which = ['redis', 'coordinator'];
        const short = args.filter((arg) => !onCpu.includes(arg));
        const { failures } = await breakRuns({ model: tiny, args: short, runs: 2, which, seed: 5 });
        expect(failures).toEqual([]);
    });

    /** A run without a search, in a namespace of its own, with one worker; and what is known of it. */
    const withFleet = async (
        more: Partial<ClusterOptions> & { linear?: boolean },
        work: (known: {
            fleet: Fleet;
            run: string;
            options: QueueOptions;
            model: Model;
            calibration: Calibration;
        }) => Promise<void>
    ) => {
        const { linear, ...cluster } = more;
        const namespace = `test-${crypto.randomUUID()}`;
        join('--namespace', namespace);
        const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
        const calibration = await loadCalibration(model, { file: 'embedded', ...text });
        const connection = redis.duplicate({ maxRetriesPerRequest: null });
        try {
            const fleet = await Fleet.create(
                await hashGguf(model.gguf),
                calibration,
                linear ? calibration : undefined,
                { redis: server.url, namespace, ...cluster },
                { onNotice: (notice: string) => notices.push(notice) }
            );
            try {
                await fleet.terms.give(await fleet.terms.ask());
                const [key] = await redis.keys(`${namespace}:run:*`);
                const options = { connection, prefix: namespace };
                await work({ fleet, run: key!.split(':')[2]!, options, model, calibration });
            } finally {
                await fleet.dispose();
            }
            await expectNothingLeft(namespace);
        } finally {
            connection.disconnect();
            model.dispose();
        }
    };
    const stillComputes = async (fleet: Fleet, model: Model, calibration: Calibration) => {
        const [nll] = await fleet.evaluate([{ kind: 'ffn', layer: 3 }], [5]);
        const all = await model.evaluate(calibration, { skip: [{ kind: 'ffn', layer: 3 }] });
        const predicted = text.context - 1;
        expect(nll).toEqual(all.slice(5 * predicted, 6 * predicted));
    };
    const notices: string[] = [];
    beforeEach(() => notices.splice(0));

    /** Applies as workers do, and gives the answer. */
    const apply = async (run: string, options: QueueOptions, applicant: object): Promise<unknown> => {
        const [queue, events] = [new Queue(`${run}.join`, options), new QueueEvents(`${run}.join`, options)];
        events.on('error', () => undefined); // the connection ends before it does
        await events.waitUntilReady();
        const job = await queue.add('join', applicant);
        const answer: unknown = await job.waitUntilFinished(events, 20_000).catch((error: Error) => error.message);
        await events.close();
        return answer;
    };
    const probeOf = (value: number) =>
        Buffer.from(new Float32Array(text.context - 1).fill(value).buffer).toString('base64');

    test('only workers with the model, the version and the rounding of the others take part', () =>
        withFleet({}, async ({ fleet, run, options, model, calibration }) => {
            const described = JSON.parse((await redis.get(`${options.prefix}:run:${run}`))!) as { model: string };
            const mine = { id: 'mine', version, model: described.model, device: 'cpu: another one' };
            const like = { ...mine, together: 1, boundaries: 1 };
            expect(await apply(run, options, { ...like, id: 'old', version: '0.0.1' })).toEqual({
                refused: `it has version 0.0.1 of blockpruner, and the search ${version}`
            });
            expect(await apply(run, options, { ...like, id: 'other', model: 'abc' })).toEqual({
                refused: expect.stringMatching(/^it has another model \(SHA-256 abc…, not [0-9a-f]{12}…\)$/) as string
            });
            expect(await apply(run, options, { ...like, probe: probeOf(1) })).toEqual({
                refused: expect.stringMatching(/^on cpu: another one, NLLs of the first sequence differ by /) as string
            });
            for (const [id, probe] of Object.entries({
                none: undefined,
                short: 'AAAAAA==',
                nan: probeOf(NaN)
            })) {
                expect(await apply(run, options, { ...like, id, probe })).toEqual({
                    refused: expect.any(String) as string
                });
            }
            expect(await apply(run, options, { ...like, probe: 'AAAA' })).toBe('a value is cut off');
            expect(await apply(run, options, { code: 'process.exit()' })).toMatch(/invalid/i);
            expect(notices.filter((notice) => /can't take part/.test(notice))).toHaveLength(6);
            await stillComputes(fleet, model, calibration);

            // another file, in a real worker
            const other = file('other.gguf');
            fs.copyFileSync(file('exact.gguf'), other);
            const stranger = start('worker', other, '--redis', server.url, '--namespace', options.prefix!, ...onCpu);
            workers.add(stranger);
            await until(() => /not taking part in the search .*: it has another model/.test(stranger.stderr()));
        }));

    test('linear blocks are in the gaps of shared candidates too', () =>
        withFleet({ linear: true }, async ({ fleet, model, calibration }) => {
            const alone = await PrefixEvaluator.create([model], calibration, { linear: calibration });
            const candidates: Block[][] = [[{ kind: 'ffn', layer: 3 }], [{ kind: 'attn', layer: 7, empty: true }]];
            const all = Array.from({ length: text.samples }, (_, i) => i);
            for (const evaluator of [fleet, alone]) {
                evaluator.remove([{ kind: 'attn', layer: 1 }]);
            }
            for (const candidate of candidates) {
                const skip: Block[] = [{ kind: 'attn', layer: 1 }, ...candidate];
                expect(await fleet.evaluate(skip, all)).toEqual(await alone.evaluate(skip, all));
            }
            alone.dispose();
        }));

    test('perplexity and scores are shared too', async () => {
        join();
        join();
        const shared = ['--redis', server.url, '--workers', '2', '--json', ...onCpu];
        const skip = ['--skip', 'attn.1,ffn.3'];
        const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
        const blocks: Block[] = [
            { kind: 'attn', layer: 1 },
            { kind: 'ffn', layer: 3 }
        ];
        const words = path.resolve(__dirname, '../../models/calibration.txt');
        const options = { context: 64, samples: 9 };
        const perplexity = await run(
            ...['perplexity', tiny, '--text', words, '--context', '64', '--samples', '9', ...skip, ...shared]
        );
        expect(JSON.parse(perplexity.stdout)).toEqual(await textPerplexity(model, words, { ...options, skip: blocks }));

        // more endings than a unit has
        const task = file('ends.jsonl');
        const questions = Array.from({ length: 40 }, (_, i) => ({
            context: `The ${['king', 'sea', 'old man'][i % 3]} said ${i} times:`,
            endings: [' come here', ' go away', ` ${i}`],
            answer: i % 3 // what is right doesn't matter
        }));
        fs.writeFileSync(task, questions.map((one) => JSON.stringify(one)).join('\n'));
        const named = `multiple-choice=${task},context:context,choices:endings,answer:answer`;
        const scored = await run('eval', tiny, '--task', named, ...skip, ...shared);
        const alone = await run('eval', tiny, '--task', named, ...skip, '--json', ...onCpu);
        expect(JSON.parse(scored.stdout)).toEqual(JSON.parse(alone.stdout));
        model.dispose();

        await expectRefused(
            folder,
            ['perplexity', tiny, '--text', words, '--dense', tiny, ...shared],
            '--dense compares two models on this computer: leave out --redis'
        );
    });

    test('a mixed fleet is taken where it is asked for, and the difference told', () =>
        withFleet({ mixed: true }, async ({ fleet, run, options }) => {
            const described = JSON.parse((await redis.get(`${options.prefix}:run:${run}`))!) as { model: string };
            const mine = { id: 'mine', version, model: described.model, device: 'cpu: another one' };
            const answer = await apply(run, options, { ...mine, together: 1, boundaries: 1, probe: probeOf(1) });
            expect(answer).toEqual({ home: expect.any(Number) as number });
            expect(fleet.workers.map(({ difference }) => difference > 0)).toEqual([false, true]);

            // who is gone is told of
            await leave();
            await until(() => fleet.workers.every(({ alive }) => !alive));
            expect(notices.filter((notice) => / is gone$/.test(notice))).toHaveLength(2);
            expect(notices.at(-1)).toBe('no worker is left: the search waits for one');
        }));

    test('what is no unit of the search is not computed, and ends nothing', () =>
        withFleet({}, async ({ fleet, run, options, model, calibration }) => {
            const queue = new Queue(`${run}.0`, options);
            const unit = { skip: [], removed: [], sequences: [0], mayWin: false };
            for (const poison of [
                { ...unit, sequences: [] },
                { ...unit, sequences: [1e6] },
                { ...unit, skip: [{ kind: 'attn', layer: 99 }] },
                { ...unit, skip: '../../etc/passwd' },
                { ...unit, code: 'process.exit()' },
                { require: 'fs' }
            ]) {
                const job = await queue.add('unit', poison);
                await until(async () => (await job.getState()) === 'failed');
            }
            // runs that are none
            await redis.set(`${options.prefix}:run:-x`, '{"version":', 'EX', 5);
            await redis.set(`${options.prefix}:run:../y`, '{}', 'EX', 5);
            const late = join('--namespace', options.prefix!);
            await until(() => late.stderr().includes('taking part in the search ' + run));
            expect(late.stderr()).toContain('not taking part in the search -x: ');
            await stillComputes(fleet, model, calibration);
        }));

    test('a unit that no worker can compute ends the search with the reason', () =>
        withFleet({}, async ({ fleet }) => {
            await expect(fleet.evaluate([{ kind: 'attn', layer: 99 }], [0])).rejects.toMatchObject({
                code: 'REDIS',
                message: expect.stringContaining('the model has no block attn.99') as string
            });
        }));

    test('a result that is none ends the search with a word', () =>
        withFleet({}, async ({ fleet, run, options }) => {
            await leave();
            const liar = new Worker(`${run}.0`, () => Promise.resolve({ worker: 'me', nll: 'AAA=' }), options);
            await expect(fleet.evaluate([{ kind: 'ffn', layer: 3 }], [0])).rejects.toMatchObject({
                code: 'REDIS',
                message: "the result of a unit (unit-0) isn't what it should be"
            });
            await liar.close(true);
        }));

    test('Ctrl-C ends workers and searches while Redis is away', async () => {
        const away = await (await import('./redis.mjs')).startRedis();
        const idle = start('worker', tiny, '--redis', away.url, '--namespace', 'idle', ...onCpu);
        const waiting = start('prune', tiny, '-o', file('away.gguf'), ...args, '--redis', away.url);
        [idle, waiting].forEach((one) => workers.add(one));
        await until(() => idle.stderr().includes('ready as') && waiting.stderr().includes('waiting for a worker'));
        await away.stop();
        await sleep(500);
        for (const one of [idle, waiting]) {
            one.interrupt();
            expect((await one.ended).code).toBe(130);
        }
    }, 30_000);

    test('Ctrl-C ends a worker, whose unit goes to another, and a search that waits for one', async () => {
        const [first] = [join(), join()];
        const result = await search('left.gguf', {
            cluster: { redis: server.url, workers: 2 },
            onStart: () => first.interrupt()
        });
        expect(foundIn(result)).toEqual(foundIn(results.race!));
        const { code, stderr } = await first.ended;
        expect([code, stderr.trimEnd().split('\n').at(-1)]).toEqual([130, 'blockpruner: stopped']);
        await leave();

        const alone = start('prune', tiny, '-o', file('waiting.gguf'), ...args, '--redis', server.url);
        await until(() => alone.stderr().includes("waiting for a worker: 'blockpruner worker MODEL --redis URL'"));
        alone.interrupt();
        expect(await alone.ended).toMatchObject({ code: 130 });
    });

    test('bad addresses are refused in one line, without the password in them', async () => {
        const secret = 'geheim';
        const locked = await (await import('./redis.mjs')).startRedis('--requirepass', secret);
        const prunes = (...more: string[]) => ['prune', tiny, '-o', file('bad.gguf'), ...args, ...more];
        const at = (password: string) => locked.url.replace('//', `//:${password}@`);
        try {
            for (const [more, says] of [
                [['--redis', 'localhost:6379'], /--redis must be an address such as redis:\/\/host:6379/],
                [['--redis', `http://u:${secret}@host`], /--redis must be an address/],
                [['--redis', `redis://u:${secret}@host/abc`], /--redis must be an address/],
                [['--redis', `${server.url}/99`], /can't use Redis at 127\.0\.0\.1:\d+: ERR DB index is out of range/],
                [['--redis', `redis://u:${secret}@127.0.0.1:1`], /can't use Redis at 127\.0\.0\.1:1: .*ECONNREFUSED/],
                [['--redis', locked.url], /can't use Redis at 127\.0\.0\.1:\d+: it wants a password/],
                [['--redis', at('wrong')], /can't use Redis at 127\.0\.0\.1:\d+: WRONGPASS/],
                [['--redis', server.url, '--namespace', 'a:b'], /--namespace must be of letters, digits/],
                [['--redis', server.url, '--workers', '0'], /--workers must be a whole number/],
                [['--workers', '2'], /--namespace, --workers and --mixed are of workers: say by --redis where/]
            ] as const) {
                await expectRefused(folder, prunes(...more), new RegExp(`^(?!.*${secret}).*${says.source}`));
            }
            await expectRefused(folder, ['worker', tiny], 'say by --redis (or BLOCKPRUNER_REDIS) where searches are');
            await expectRefused(folder, ['worker', tiny, '--redis', 'nowhere'], '--redis must be an address');
            await expectRefused(folder, ['worker', file('none.gguf'), '--redis', server.url], 'there is no such file');

            // with the password, it works
            workers.add(start('worker', tiny, '--redis', at(secret), ...onCpu));
            const result = await search('secret.gguf', { cluster: { redis: at(secret) } });
            expect(foundIn(result)).toEqual(foundIn(results.race!));
        } finally {
            await leave();
            await locked.stop();
        }
    });

    test('programs are told of workers in JSON', async () => {
        join('--json-progress');
        const { stderr, code } = await run(
            ...['prune', tiny, '-o', file('json.gguf'), ...args, '--redis', server.url, '--json', '--json-progress']
        );
        expect(code).toBe(0);
        const events = stderr
            .trimEnd()
            .split('\n')
            .map((line) => JSON.parse(line) as { workers?: unknown[] });
        expect(events.flatMap(({ workers: told }) => (told ? [told] : [])).at(-1)).toMatchObject([
            { device: expect.stringMatching(/^cpu: /) as string, alive: true, difference: 0 }
        ]);
        const [worker] = workers;
        await until(() => worker!.stderr().includes('"event":"left"'));
        const lines = worker!
            .stderr()
            .trimEnd()
            .split('\n')
            .map((line) => JSON.parse(line) as object);
        expect(lines.filter((line) => 'event' in line)).toMatchObject([
            { event: 'ready' },
            { event: 'joined' },
            { event: 'left', units: expect.any(Number) as number }
        ]);
    });
});

test('without --redis, nothing of Redis is loaded', async () => {
    const script = `
        const { prune } = require(${JSON.stringify(path.resolve(__dirname, '../../dist/index.js'))});
        prune(${JSON.stringify(tiny)}, { output: ${JSON.stringify(file('plain.gguf'))}, remove: 1, repair: 'none',
            verify: false, device: 'cpu', calibration: { file: 'embedded', samples: 1, context: 32 } }).then(() =>
            console.log(Object.keys(require.cache).filter((name) => /bullmq|ioredis/.test(name)).length));`;
    expect(await startNode(['-e', script]).ended).toMatchObject({ code: 0, stdout: '0\n' });
});
