// What quantization does to a pruned model by different importance matrices: `npm run bench:workflows -- --help`.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import { describe, options, orderOptions, setting, write } from './shared.mjs';

const { adapt, apply, loadCalibration, Model, quantizeGguf, readGguf, readOrder, textPerplexity, writeImatrix } =
    blockpruner;

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench:workflows --')
    .usage('$0 [options]\n\nPrunes and quantizes a model, and writes bench/results/NAME.md and .json')
    .options({
        ...options,
        name: { type: 'string', default: 'workflows-embedded', describe: 'Name of the results' },
        ...orderOptions,
        calibration: { type: 'string', describe: 'Calibration text', defaultDescription: 'embedded text' },
        samples: { type: 'number', default: 16, describe: 'Calibration sequences' },
        context: { type: 'number', default: 256, describe: 'Tokens in a sequence' },
        text: { type: 'string', demandOption: true, describe: 'The text that the perplexities are on' },
        'text-samples': { type: 'number', default: 32, describe: 'Sequences of it' },
        type: { type: 'string', array: true, default: ['Q4_K_M', 'Q3_K_M', 'IQ3_XXS', 'Q2_K'], describe: 'Types' }
    })
    .strict()
    .wrap(120)
    .parseAsync();

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-workflows-'));
const at = (name) => path.join(folder, name);
const onDevice = { device: argv.device, threads: argv.threads };
const calibration = { file: argv.calibration ?? 'embedded', samples: argv.samples, context: argv.context, seed: 1 };

async function withModel(file, work) {
    const model = await Model.load(file, onDevice);
    return work(model).finally(() => model.dispose());
}

const perplexityOf = async (file) => {
    const { perplexity } = await withModel(file, (model) =>
        textPerplexity(model, argv.text, { samples: argv.textSamples, context: argv.context })
    );
    return { perplexity, bytes: fs.statSync(file).size };
};

/** llama.cpp's own tool; undefined where the type needs an importance matrix and has none. */
function quantize(model, type, imatrix) {
    const output = at(`${type}.gguf`);
    const tool = path.resolve(import.meta.dirname, '..', 'build', 'cmake', 'llama-quantize');
    const given = imatrix ? ['--imatrix', imatrix] : [];
    try {
        execFileSync(tool, [...given, '--allow-requantize', model, output, type, String(argv.threads)], {
            stdio: 'ignore'
        });
    } catch {
        return undefined;
    }
    return output;
}

try {
    const dense = at('f16.gguf');
    await quantizeGguf(await readGguf(argv.model), dense, { type: 'F16', threads: argv.threads });
    const pruning = { ...onDevice, calibration, order: await readOrder(argv.order, argv.remove), repair: 'linear' };
    const [pruned, own] = [at('pruned.gguf'), at('own.imatrix.gguf')];
    const { removed, repair, parameters } = await apply(dense, { ...pruning, output: pruned, imatrixOut: own });
    const [ofDense, adapted] = [at('dense.imatrix.gguf'), at('adapted.imatrix.gguf')];
    const importance = await withModel(dense, async (model) =>
        model.importance(await loadCalibration(model, { ...calibration, samples: 4 * argv.samples }))
    );
    const text = { name: path.basename(calibration.file), sequences: 4 * argv.samples, context: argv.context };
    await writeImatrix(ofDense, importance, text);
    const { kept, gone } = await adapt(ofDense, { to: pruned, output: adapted });

    const rows = [
        { model: 'dense', type: 'F16', ...(await perplexityOf(dense)) },
        { model: 'pruned', type: 'F16', ...(await perplexityOf(pruned)) }
    ];
    for (const type of argv.type) {
        const made = [
            ['dense, its matrix', dense, ofDense],
            ['pruned, its own matrix', pruned, own],
            ["pruned, the dense model's, adapted", pruned, adapted],
            ['pruned, none', pruned, undefined]
        ];
        for (const [model, file, imatrix] of made) {
            const output = quantize(file, type, imatrix);
            rows.push({ model, type, ...(output ? await perplexityOf(output) : { perplexity: null, bytes: null }) });
            console.log(JSON.stringify(rows.at(-1)));
        }
    }
    const report = { ...setting(argv), repair, parameters, adapted: { kept, gone: gone.length }, rows };
    const lines = rows.map(({ model, type, perplexity, bytes }) =>
        perplexity === null
            ? `| ${type} | ${model} | not possible | |`
            : `| ${type} | ${model} | ${perplexity.toFixed(2)} | ${(bytes / 2 ** 20).toFixed(1)} MiB |`
    );
    const what = `${report.model}, ${removed.length} blocks removed, ${repair.kind} repair; ${path.basename(argv.text)}, ${argv.textSamples} × ${argv.context} tokens.`;
    const table = ['| type | model and importance matrix | perplexity | size |', '|---|---|---|---|', ...lines];
    console.log(write(argv.name, report, [what, '', ...table, '', describe(report.machine), ''].join('\n')));
} finally {
    fs.rmSync(folder, { recursive: true, force: true });
}
