import fs from 'node:fs';
import path from 'node:path';
import type { Argv } from 'yargs';
import { compare, comparisonTable, writeComparison } from '../compare.js';
import { BlockprunerError } from '../errors.js';
import { loadTask } from '../evaluation/tasks.js';
import { methods, type Method } from '../search/methods.js';
import { parseTask, taskOptions } from './eval.js';
import { calibrationOf, calibrationOptions, checkDevice, checkInteger, deviceOptions, interruptSignal, jsonOption, lastCounts, modelArgument } from './shared.js';

export const command = 'compare <model>';
export const describe = 'Compare what methods of pruning cost, at several ratios, in a table';

export const builder = (yargs: Argv) => modelArgument(yargs)
    .parserConfiguration({ 'duplicate-arguments-array': true }) // several tasks
    .middleware(lastCounts, true)
    .options({
        ratios: { type: 'string', default: '0.1,0.2,0.3', describe: 'Shares of the parameters to remove' },
        methods: { type: 'string', default: methods.join(), describe: 'The methods' },
        seeds: { type: 'number', default: 3, describe: 'Orders of the method random, of which the mean is shown' },
        ...taskOptions,
        text: { type: 'string', describe: 'A text whose perplexity is measured, beside that of the calibration text' },
        search: { choices: ['race', 'exact'] as const, default: 'race' as const, describe: 'How perplexities are compared; see prune --help' },
        output: { type: 'string', alias: 'o', demandOption: true, describe: 'A new folder, for table.md, table.csv and results.json' },
        ...calibrationOptions,
        ...deviceOptions,
        json: jsonOption
    })
    .example('$0 compare model.gguf --ratios 0.1,0.2 --task piqa=valid.jsonl,labels.lst --limit 400 -o comparison', '');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('limit', argv.limit, 1);
    checkInteger('seeds', argv.seeds, 1);
    const ratios = argv.ratios.split(',').map(Number);
    const chosen = argv.methods.split(',').map((name) => name.trim());
    const unknown = chosen.find((name) => !methods.includes(name as Method));
    if (unknown !== undefined) {
        throw new BlockprunerError(`--methods: there is no method '${unknown}': there are ${methods.join(', ')}`);
    }
    if (ratios.some((ratio) => !(ratio > 0 && ratio < 1))) {
        throw new BlockprunerError(`--ratios: write shares between 0 and 1, such as 0.1,0.2, not '${argv.ratios}'`);
    }
    if (fs.existsSync(argv.output)) {
        throw new BlockprunerError(`the output ${argv.output} exists: choose another name`);
    }
    if (!fs.existsSync(path.dirname(path.resolve(argv.output)))) {
        throw new BlockprunerError(`can't write to the folder ${path.dirname(path.resolve(argv.output))}: there is no such folder`);
    }
    const tasks = await Promise.all((argv.task ?? []).map((text) => loadTask(parseTask(text))));
    const calibration = calibrationOf(argv);
    fs.mkdirSync(argv.output);
    const comparison = await compare(argv.model, {
        ratios, methods: chosen as Method[], seeds: argv.seeds, limit: argv.limit, text: argv.text, search: argv.search,
        tasks, calibration,
        device: argv.device, gpuLayers: argv['gpu-layers'], threads: argv.threads,
        signal: interruptSignal(),
        onProgress: (what) => process.stderr.write(`${what}\n`)
    }).catch((error: unknown) => {
        fs.rmdirSync(argv.output);
        throw error;
    });
    await writeComparison(comparison, argv.output);
    console.log(argv.json ? JSON.stringify(comparison) : comparisonTable(comparison));
}
