// Compares the ways to search on one model: `npm run bench -- --help`. Each has a process and a copy of the model of
// its own, and they take turns, one removal each, so that a machine that becomes slower slows down all of them. On
// large models, naive and prefix can be timed on a few candidates of each removal: every candidate of naive takes the
// same. Beside them, as far as they are asked for, are a race in a copy in Q8_0 and a pass of the paper's code in
// PyTorch.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import { describe, gib, options, peerPass, setting, write } from './shared.mjs';

const { chooseHost, formatMove, loadCalibration, Model, parseBlock, PrefixEvaluator, searchOrder, without } =
    blockpruner;

const ways = {
    naive: { mode: 'full', keepBytes: 0 },
    prefix: { mode: 'full' },
    exact: { mode: 'exact' },
    race: { mode: 'race' },
    copy: { mode: 'race', copy: true } // as with --search-type
};

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench --')
    .usage('$0 [options]\n\nCompares the ways to search and writes bench/results/NAME.md and .json')
    .options({
        ...options,
        name: { type: 'string', default: 'embedded', describe: 'Name of the results' },
        remove: { type: 'number', default: 12, describe: 'Removals' },
        sample: {
            type: 'number',
            describe: 'Time naive and prefix on so many candidates of each removal, and scale',
            defaultDescription: 'all'
        },
        'exact-removals': {
            type: 'number',
            describe: 'Run exact for the first so many removals only, and scale',
            defaultDescription: 'all'
        },
        samples: { type: 'number', default: 32, describe: 'Calibration sequences' },
        context: { type: 'number', default: 256, describe: 'Tokens in a sequence' },
        calibration: { type: 'string', describe: 'Calibration text', defaultDescription: 'embedded text' },
        memory: { type: 'number', default: 2048, describe: 'MiB for the residual stream' },
        ways: {
            type: 'string',
            array: true,
            choices: Object.keys(ways),
            describe: 'Compare these alone; naive is what the others are compared with',
            defaultDescription: 'all that there can be'
        },
        copy: { type: 'string', describe: 'A copy of the model in Q8_0, to be raced in with its weights repacked' },
        peer: { type: 'string', describe: "Python with torch and transformers, for a pass of the paper's code" },
        way: { type: 'string', hidden: true }
    })
    .strict()
    .wrap(120)
    .parseAsync();

await (argv.way ? searchOneWay(argv.way) : compare());

/** In a process of its own: waits for its turn before each removal, and tells what it took. */
async function searchOneWay(name) {
    const { mode, copy = false, keepBytes = argv.memory * 2 ** 20 } = ways[name];
    const { device, threads } = argv;
    const model = await Model.load(copy ? argv.copy : argv.model, { device, threads, repack: copy });
    const calibration = await calibrationOf(model);
    const blocks = await model.blocks();
    const host = await chooseHost(model.gguf);
    const evaluator = await PrefixEvaluator.create([model], calibration, { keepBytes });
    const computed = () => evaluator.work.reduce((sum, share) => sum + share.blocks, 0);
    const passes = () => computed() / blocks.length / argv.samples;
    const timed = async (work) => {
        const [started, before] = [performance.now(), passes()];
        await work();
        return { seconds: (performance.now() - started) / 1000, passes: passes() - before };
    };
    let pass;
    if (name === 'naive') {
        const without = (skip) => timed(() => model.evaluate(calibration, { skip }));
        await without([]);
        pass = { seconds: (await without([])).seconds, head: (await without(blocks)).seconds };
    }

    const all = [...Array(argv.samples).keys()];
    let before = passes();
    const tell = (message) => process.send({ ...message, memory: process.resourceUsage().maxRSS * 1024 });
    // resolves to the moves made so far
    const turn = () => once(process, 'message').then(([removed]) => removed);

    if (argv.sample !== undefined && mode === 'full') {
        tell({ pass });
        for (let number = 1; number <= argv.remove; number++) {
            const removed = (await turn()).flatMap((move) => move.split(' ').map(parseBlock));
            const candidates = host.moves(without(blocks, removed));
            const middles = Array.from(
                { length: argv.sample },
                (_, i) => candidates[Math.floor(((i + 0.5) * candidates.length) / argv.sample)]
            );
            evaluator.remove(removed);
            // the current model is run once a removal, whatever the number of candidates
            const current =
                keepBytes > 0 ? await timed(() => evaluator.evaluate(removed, all)) : { seconds: 0, passes: 0 };
            const some = await timed(async () => {
                for (const move of middles) {
                    await evaluator.evaluate([...removed, ...move], all);
                }
            });
            const scaled = (what) => current[what] + (some[what] * candidates.length) / argv.sample;
            tell({
                step: { seconds: scaled('seconds'), passes: scaled('passes'), sequences: argv.sample * argv.samples },
                ended: number === argv.remove
            });
        }
    } else {
        let ready = turn().then(() => performance.now());
        tell({ pass });
        const removals = Math.min(argv.remove, argv[`${name}-removals`] ?? argv.remove);
        let sequences = 0,
            done = 0,
            began;
        await searchOrder(
            {
                sequences: evaluator.sequences,
                devices: evaluator.devices,
                shares: evaluator.shares,
                together: evaluator.together,
                evaluate: async (...asked) => {
                    began = await ready;
                    sequences += asked[1].length;
                    return evaluator.evaluate(...asked);
                },
                remove: (removed) => evaluator.remove(removed)
            },
            {
                mode,
                moves: (removed) => (removals === done ? [] : host.moves(without(blocks, removed))),
                onStep: ({ removed, perplexity }, number) => {
                    done = number;
                    const seconds = (performance.now() - began) / 1000;
                    const step = {
                        removed: formatMove(removed),
                        perplexity,
                        seconds,
                        sequences,
                        passes: passes() - before
                    };
                    before = passes();
                    sequences = 0;
                    ready = turn().then(() => performance.now());
                    tell({ step, ended: number === removals });
                }
            }
        );
    }
    model.dispose();
    process.disconnect();
}

function calibrationOf(model) {
    const { calibration: file = 'embedded', samples, context } = argv;
    return loadCalibration(model, { file, samples, context });
}

async function compare() {
    const wanted = argv.ways ?? Object.keys(ways).filter((name) => argv.copy !== undefined || !ways[name].copy);
    const searches = wanted.map((name) => ({ name, steps: [], memory: 0, ended: false }));
    for (const search of searches) {
        search.process = fork(import.meta.filename, [...process.argv.slice(2), '--way', search.name]);
        search.process.once('exit', (code, signal) => code !== 0 && process.exit(signal ? 1 : code));
        Object.assign(search, await nextMessage(search.process));
    }
    const model = await Model.load(argv.model, { device: argv.device });
    const blocks = (await model.blocks()).length;
    const { gguf } = model;
    const calibration = await calibrationOf(model);
    model.dispose();
    const peers = [];
    const runPeer = () => argv.peer && peers.push(peerPass(argv.peer, gguf, calibration, argv));
    runPeer();
    for (let round = 1; round <= argv.remove; round++) {
        for (const search of searches.filter(({ ended }) => !ended)) {
            search.process.send(
                searches
                    .at(-1)
                    .steps.slice(0, round - 1)
                    .map(({ removed }) => removed)
            );
            const { step, ended, memory } = await nextMessage(search.process);
            search.steps.push(step);
            Object.assign(search, { ended, memory });
            console.error(
                [
                    String(round).padStart(3),
                    search.name.padEnd(7),
                    (step.removed ?? '').padEnd(8),
                    step.seconds.toFixed(1).padStart(7),
                    's',
                    step.passes.toFixed(1).padStart(6),
                    'passes'
                ].join(' ')
            );
        }
        writeResults(searches, blocks, peers); // what there is so far
    }
    runPeer();
    console.log(writeResults(searches, blocks, peers));
}

/** Writes the results of the removals that were made. */
function writeResults(searches, blocks, peers) {
    const { pass } = searches[0];
    const order = (steps) => steps.flatMap(({ removed }) => removed ?? []);
    const total = (steps, what) => steps.reduce((sum, step) => sum + step[what], 0);
    const longest = Math.max(...searches.map(({ steps }) => steps.length));
    const results = searches.map(({ name, steps, memory }) => {
        // removals that weren't made are scaled by what naive took for them
        const naiveSteps = searches[0].steps;
        const scale = (what) =>
            total(naiveSteps.slice(0, longest), what) / total(naiveSteps.slice(0, steps.length), what);
        const found = order(steps);
        return {
            name,
            removals: steps.length,
            sampled: found.length === 0,
            scaled: found.length < longest,
            passes: total(steps, 'passes') * scale('passes'),
            seconds: total(steps, 'seconds') * scale('seconds'),
            memory,
            order: found,
            steps
        };
    });
    const naive = results[0];
    const report = {
        ...setting(argv),
        blocks,
        removals: longest,
        sample: argv.sample,
        calibration: {
            text: path.basename(argv.calibration ?? 'embedded'),
            sequences: argv.samples,
            tokens: argv.context
        },
        memoryBudget: argv.memory * 2 ** 20,
        pass,
        // the paper's code evaluates every candidate on everything
        ...(peers.length > 0 && { peer: { evaluations: longest * (blocks - (longest - 1) / 2), passes: peers } }),
        results: results.map((result) => ({
            ...result,
            ratio: naive.seconds / result.seconds,
            floor: result.passes / longest
        }))
    };
    return write(argv.name, report, markdown(report));
}

async function nextMessage(child) {
    const [message] = await once(child, 'message');
    return message;
}

function markdown({
    model,
    modelBytes,
    blocks,
    removals,
    sample,
    calibration,
    memoryBudget,
    pass,
    peer,
    machine,
    date,
    results
}) {
    const exact = results.find(({ name }) => name === 'exact')?.order ?? [];
    const agreement = ({ order }) => {
        const common = Math.min(order.length, exact.length);
        const wrong = order.slice(0, common).findIndex((move, i) => move !== exact[i]);
        return common === 0 ? '' : wrong < 0 ? `yes, all ${common}` : `NO, from removal ${wrong + 1} on`;
    };
    const rows = results.map((result) => {
        const mark = (text) => (result.scaled ? `${text}*` : text);
        const cells = [
            result.name,
            mark(result.passes.toFixed(1)),
            mark(result.seconds.toFixed(0)),
            mark(result.ratio.toFixed(2)),
            mark(result.floor.toFixed(1)),
            gib(result.memory),
            agreement(result)
        ];
        return `| ${cells.join(' | ')} |`;
    });
    const notes = results
        .filter(({ scaled }) => scaled)
        .map((result) =>
            result.sampled
                ? `${result.name} was timed on ${sample} evenly spread candidates of each removal and scaled by their ` +
                  'number'
                : `${result.name} was run for the first ${result.removals} removals and scaled by what naive takes for ` +
                  'the others'
        );
    return `# Search: ${model}

${removals} of ${blocks} blocks removed; calibration ${calibration.text},
${calibration.sequences} sequences of ${calibration.tokens} tokens; ${date}.
${describe(machine)}

| search | passes | seconds | times faster than naive | times the floor | peak memory, GiB | the order of exact |
|---|---|---|---|---|---|---|
${rows.join('\n')}

A pass is the computation of as many blocks as the whole model has, on all sequences; it leaves out the output
projection. The floor is one pass a removal. Peak memory is the process's resident set, Node.js and the model
(${gib(modelBytes)} GiB) included; the budget for the residual stream is ${gib(memoryBudget)} GiB. The searches took turns, one removal each, in one run.
${notes.length > 0 ? `\n\\* ${notes.join('; ')}.\n` : ''}
A full pass takes ${pass.seconds.toFixed(2)} s, of which the output projection and the NLL take
${pass.head.toFixed(2)} s (${((100 * pass.head) / pass.seconds).toFixed(0)} %).
${peer ? `\n${peerText(peer, results.at(-1))}\n` : ''}
${results
    .filter(({ order }) => order.length > 0)
    .map(({ name, order }) => `- ${name}: ${order.join(' ')}`)
    .join('\n')}
`;
}

/** Says how long the paper's loop would take in PyTorch, beside one of our searches. */
function peerText({ evaluations, passes }, { name, seconds }) {
    const [least, most] = [Math.min, Math.max].map((choose) => choose(...passes.map(({ pass }) => pass)));
    const range = (digits, ...values) => [...new Set(values.map((value) => value.toFixed(digits)))].join(' to ');
    return `A full pass of a Llama of this shape takes ${range(2, least, most)} s in PyTorch (${passes[0].dtype}, batches of 8; measured
before the searches and behind them). The paper's loop of ${evaluations} evaluations would take ${range(0, least * evaluations, most * evaluations)} s,
${range(1, (least * evaluations) / seconds, (most * evaluations) / seconds)} times as long as ${name}.`;
}
