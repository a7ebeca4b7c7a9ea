// Measures a model on a GPU: `npm run bench:gpu -- --model FILE --name NAME`. A pass over all sequences, the head alone
// (a pass without any block), one removal by exact, some removals by race; and beside them, with --peer, a pass of the
// same shape in PyTorch, as the paper's code does it, on the same card and the same tokens.
import fs from 'node:fs';
import path from 'node:path';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import { peerPass, setting } from './shared.mjs';

const { formatMove, loadCalibration, Model, PrefixEvaluator, searchOrder, without } = blockpruner;

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench:gpu --')
    .usage('$0 --model FILE --name NAME [options]\n\nMeasures a model on a GPU and writes bench/results/gpu-NAME.json')
    .options({
        model: { type: 'string', demandOption: true, describe: 'GGUF file' },
        name: { type: 'string', demandOption: true, describe: 'Name of the results' },
        device: { type: 'string', default: 'auto', describe: 'Device' },
        threads: { type: 'number', describe: 'Threads on the CPU' },
        samples: { type: 'number', default: 32, describe: 'Calibration sequences' },
        context: { type: 'number', default: 256, describe: 'Tokens in a sequence' },
        'tokens-at-once': {
            type: 'number',
            array: true,
            describe: 'Tokens that are computed at once; several are tried'
        },
        memory: { type: 'number', describe: 'MiB for the residual stream', defaultDescription: 'what is free' },
        exact: { type: 'boolean', default: true, describe: 'Search one removal by exact' },
        race: { type: 'number', default: 12, describe: 'Removals by race' },
        random: { type: 'boolean', default: false, describe: 'Random tokens, for a model without a vocabulary' },
        peer: { type: 'string', describe: 'Python with torch and transformers, for the peer' },
        output: { type: 'string', default: 'bench/results', describe: 'Folder of the results' }
    })
    .strict()
    .parseAsync();

const timed = async (work) => {
    const started = performance.now();
    await work();
    return (performance.now() - started) / 1000;
};

/** The median of three runs, after one that warms up. */
async function median(work) {
    await work();
    const seconds = [await timed(work), await timed(work), await timed(work)];
    return seconds.sort((a, b) => a - b)[1];
}

const results = { name: argv.name, ...setting(argv), samples: argv.samples, context: argv.context, runs: [] };
let calibration;
for (const tokensAtOnce of argv.tokensAtOnce ?? [undefined]) {
    const { device, threads } = argv;
    const load = performance.now();
    const model = await Model.load(argv.model, { device, threads, ...(tokensAtOnce && { tokensAtOnce }) });
    const run = { device: model.device, tokensAtOnce, load: (performance.now() - load) / 1000 };
    calibration = argv.random
        ? { tokens: randomTokens(model.vocabulary), length: argv.context }
        : await loadCalibration(model, { file: 'embedded', samples: argv.samples, context: argv.context });
    const blocks = await model.blocks();
    run.blocks = blocks.length;
    run.pass = await median(() => model.evaluate(calibration));
    run.head = await median(() => model.evaluate(calibration, { skip: blocks }));
    console.error(run);
    const searches = { ...(argv.exact && { exact: 1 }), ...(argv.race > 0 && { race: argv.race }) };
    for (const [mode, count] of Object.entries(searches)) {
        const keepBytes = argv.memory === undefined ? undefined : argv.memory * 2 ** 20;
        const evaluator = await PrefixEvaluator.create([model], calibration, { keepBytes });
        const steps = [];
        let dense;
        const seconds = await timed(() =>
            searchOrder(evaluator, {
                mode,
                moves: (removed) => (removed.length < count ? without(blocks, removed).map((block) => [block]) : []),
                onStart: () => {
                    dense = performance.now();
                    run.boundaries = Math.min(evaluator.kept.boundaries, blocks.length - 1);
                    run.keptMiB = Math.round(evaluator.work[0].keptBytes / 2 ** 20);
                },
                onStep: (step) => {
                    steps.push({ move: formatMove(step.removed), seconds: step.seconds, perplexity: step.perplexity });
                }
            })
        );
        run[mode] = {
            seconds,
            removals: (performance.now() - dense) / 1000,
            passes: evaluator.work[0].blocks / blocks.length / argv.samples,
            steps
        };
        evaluator.dispose();
        console.error(mode, JSON.stringify(run[mode]));
    }
    results.runs.push(run);
    model.dispose();
}

if (argv.peer) {
    results.peer = peerPass(argv.peer, await blockpruner.readGguf(argv.model), calibration, { device: 'cuda' });
    // the paper's code evaluates every candidate on everything
    results.peer.removal = results.peer.pass * results.runs[0].blocks;
    console.error(results.peer);
}
fs.mkdirSync(argv.output, { recursive: true });
fs.writeFileSync(path.join(argv.output, `gpu-${argv.name}.json`), `${JSON.stringify(results, null, 4)}\n`);

function randomTokens(vocabulary) {
    let state = 1;
    return Int32Array.from({ length: argv.samples * argv.context }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
        return Math.floor((state / 2 ** 32) * vocabulary);
    });
}
