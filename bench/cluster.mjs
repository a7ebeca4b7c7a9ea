// What workers gain: `npm run bench:cluster -- --help`. A search is made with a Redis and real workers on this machine,
// one thread each, and what they did is counted. What many machines would gain is simulated: the same search, with the
// same values, on a clock of its own that goes on by what a block was measured to take.
import { spawn } from 'node:child_process';
import path from 'node:path';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import { startRedis } from '../test/cluster/redis.mjs';
import { describe, options, setting, write } from './shared.mjs';

const { formatBlock, loadCalibration, Model, PrefixEvaluator, prune, searchOrder, without } = blockpruner;

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench:cluster --')
    .usage('$0 [options]\n\nShares a search, and simulates more workers; writes bench/results/NAME.md and .json')
    .options({
        model: options.model,
        name: { type: 'string', default: 'cluster-embedded', describe: 'Name of the results' },
        remove: { type: 'number', default: 6, describe: 'Removals' },
        samples: { type: 'number', default: 32, describe: 'Calibration sequences' },
        context: { type: 'number', default: 128, describe: 'Tokens in a sequence' },
        search: { choices: ['race', 'exact'], default: 'race', describe: 'The search' },
        workers: { type: 'string', default: '1,2,4', describe: 'Real workers' },
        simulated: { type: 'string', default: '1,2,4,8,16,32,64', describe: 'Simulated workers' },
        overhead: {
            type: 'number',
            default: 3,
            describe: 'Milliseconds that a unit takes on its way, for the simulation'
        }
    })
    .strict()
    .wrap(120)
    .parseAsync();

const real = await measureReal(numbers(argv.workers));
const { cost, simulated } = await simulateAll(numbers(argv.simulated));
const { samples, context, remove, search, overhead } = argv;
const report = { ...setting({ ...argv, device: 'cpu', threads: 1 }), search, remove, samples, context, overhead };
const table = [
    `# A shared search: ${report.model}`,
    '',
    `${describe(report.machine)} ${search}, ${remove} removals, ${samples} sequences of ${context} tokens.`,
    '',
    'Real workers on this machine, one thread each:',
    '',
    '| workers | seconds | sequences evaluated | by each | waited, of the time of all workers |',
    '|---|---|---|---|---|',
    ...real.map(
        ({ workers, seconds, sequences, each, idle }) =>
            `| ${workers} | ${seconds.toFixed(1)} | ${sequences} | ${each.join(', ')} | ${(100 * idle).toFixed(0)} % |`
    ),
    '',
    `Simulated, with ${cost.block.toFixed(2)} ms a block and sequence, ${cost.head.toFixed(2)} ms for the rest of the ` +
        `model, and ${argv.overhead} ms for the way of a unit:`,
    '',
    '| workers | time | sequences evaluated | waited |',
    '|---|---|---|---|',
    ...simulated.map(
        ({ workers, seconds, sequences, idle }) =>
            `| ${workers} | ${(simulated[0].seconds / seconds).toFixed(1)} times as fast | ${sequences} | ` +
            `${(100 * idle).toFixed(0)} % |`
    )
];
console.log(write(argv.name, { ...report, real, cost, simulated }, table.join('\n')));

/** The search by real workers: how long it took, what each did, and how long they had nothing to do. */
async function measureReal(counts) {
    const redis = await startRedis();
    const cli = path.resolve(import.meta.dirname, '..', 'dist', 'cli', 'index.js');
    const found = [];
    try {
        for (const count of counts) {
            const args = ['worker', argv.model, '--redis', redis.url, '--device', 'cpu', '--threads', '1'];
            const workers = Array.from({ length: count }, () => spawn(process.execPath, [cli, ...args]));
            const { steps, workers: shares } = await prune(argv.model, {
                output: path.join(import.meta.dirname, '..', 'build', 'bench-cluster.gguf'),
                force: true,
                resume: false,
                method: 'blockpruner',
                repair: 'none',
                verify: false,
                device: 'cpu',
                threads: 1,
                remove: argv.remove,
                search: argv.search,
                calibration: { file: 'embedded', samples: argv.samples, context: argv.context },
                cluster: { redis: redis.url, workers: count }
            });
            const seconds = steps.reduce((sum, step) => sum + step.seconds, 0);
            workers.forEach((worker) => worker.kill());
            const busy = shares.reduce((sum, share) => sum + share.seconds, 0);
            found.push({
                workers: count,
                seconds,
                sequences: shares.reduce((sum, share) => sum + share.sequences, 0),
                each: shares.map(({ sequences }) => sequences),
                idle: Math.max(0, 1 - busy / (count * seconds)),
                order: steps.flatMap(({ removed }) => removed.map(formatBlock))
            });
            console.log(found.at(-1));
        }
    } finally {
        await redis.stop();
    }
    return found;
}

/** The same search on a clock of its own, by fleets of several sizes. */
async function simulateAll(counts) {
    const model = await Model.load(argv.model, { device: 'cpu', threads: 1 });
    try {
        const blocks = await model.blocks();
        const calibration = await loadCalibration(model, {
            file: 'embedded',
            samples: argv.samples,
            context: argv.context
        });
        const costs = await measureCosts(model, blocks, calibration);
        const values = new Map();
        const simulated = [];
        for (const workers of counts) {
            const evaluator = await PrefixEvaluator.create([model], calibration);
            simulated.push(await simulate(evaluator, values, blocks, costs, workers));
            evaluator.dispose();
            console.log(simulated.at(-1));
        }
        return { cost: costs, simulated };
    } finally {
        model.dispose();
    }
}

/** Milliseconds of a block, and of all else, for a sequence: of two models of which one has half of the blocks. */
async function measureCosts(model, blocks, { tokens, length }) {
    const one = { tokens: tokens.subarray(0, length), length };
    const half = blocks.slice(0, blocks.length / 2);
    const time = async (skip) => {
        const began = performance.now();
        for (let i = 0; i < 5; i++) {
            await model.evaluate(one, { skip });
        }
        return (performance.now() - began) / 5;
    };
    await time([]);
    const [whole, less] = [await time([]), await time(half)];
    const block = (whole - less) / half.length;
    return { block, head: whole - block * blocks.length };
}

/**
 * A fleet on a clock of its own. A worker that has a stream up to where a candidate's block was computes what
 * is behind it, else what is before it too; where removals change the stream, it is computed anew from there.
 */
async function simulate(evaluator, values, blocks, { block, head }, count) {
    const queues = Array.from({ length: Math.min(8, evaluator.sequences) }, () => []);
    const workers = Array.from({ length: count }, (_, i) => ({
        home: Math.floor(((i * 0.618034) % 1) * queues.length),
        streams: new Map(),
        busy: 0,
        free: true
    }));
    const running = [];
    let [now, sequences, removed] = [0, 0, []];
    const position = new Map(blocks.map((one, i) => [formatBlock(one), i]));
    const costOf = (worker, { skip, sequence, version }) => {
        const candidate = skip.filter((one) => !version.includes(formatBlock(one)));
        const first = Math.min(...candidate.map((one) => position.get(formatBlock(one))), blocks.length);
        const kept = worker.streams.get(sequence) ?? { version: [], upTo: 0 };
        const changed = version.filter((name) => !kept.version.includes(name)).map((name) => position.get(name));
        const valid = Math.min(kept.upTo, ...changed);
        worker.streams.set(sequence, { version, upTo: Math.max(valid, first) });
        const stays = blocks.length - skip.length;
        return argv.overhead + head + block * Math.max(0, stays - Math.min(valid, first));
    };
    const give = () => {
        for (const worker of workers.filter(({ free }) => free)) {
            const order = queues.map((_, i) => queues[(worker.home + i) % queues.length]);
            const unit = order.find((queue) => queue.length > 0)?.shift();
            if (unit) {
                const cost = costOf(worker, unit);
                worker.free = false;
                worker.busy += cost;
                running.push({ at: now + cost, worker, unit });
            }
        }
    };
    const settle = () => new Promise((resolve) => setTimeout(resolve));
    let over = false;
    const clock = (async () => {
        for (await settle(); !over; await settle()) {
            give();
            running.sort((a, b) => a.at - b.at);
            const next = running.shift();
            if (next) {
                now = next.at;
                next.worker.free = true;
                next.unit.done();
            }
        }
    })();
    const valueOf = async (skip, sequence, mayWin) => {
        const name = `${skip.map(formatBlock).sort().join(' ')}/${sequence}`;
        if (!values.has(name)) {
            values.set(name, (await evaluator.evaluate(skip, [sequence], mayWin))[0]);
        }
        return values.get(name);
    };
    const fleet = {
        sequences: evaluator.sequences,
        devices: count,
        evaluate: async (skip, asked, mayWin) => {
            sequences += asked.length;
            const version = removed.map(formatBlock);
            const found = [];
            for (const sequence of asked) {
                found.push(await valueOf(skip, sequence, mayWin)); // the clock stands still meanwhile
            }
            await Promise.all(
                asked.map(
                    (sequence) =>
                        new Promise((done) => queues[sequence % queues.length].push({ skip, sequence, version, done }))
                )
            );
            return found;
        },
        remove: (gone) => {
            removed = gone;
            evaluator.remove(gone);
        }
    };
    const moves = (gone) => (gone.length < argv.remove ? without(blocks, gone).map((one) => [one]) : []);
    const { steps } = await searchOrder(fleet, { mode: argv.search, moves });
    over = true;
    await clock;
    const busy = workers.reduce((sum, worker) => sum + worker.busy, 0);
    return {
        workers: count,
        seconds: now / 1000,
        sequences,
        idle: 1 - busy / (count * now),
        order: steps.flatMap(({ removed: move }) => move.map(formatBlock))
    };
}

function numbers(text) {
    return text.split(',').map(Number);
}
