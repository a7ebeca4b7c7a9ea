import fs from 'node:fs';
import path from 'node:path';
import type { Argv } from 'yargs';
import { compare } from '../pipeline/compare.js';
import { BlockprunerError } from '../errors.js';
import { comparisonTable } from '../report/comparison-table.js';
import { comparedMethods, type ComparedMethod } from '../report/comparison.js';
import { loadTasks, taskOptions } from './eval.js';
import {
    calibrationOf,
    calibrationOptions,
    checkDevice,
    checkInteger,
    deviceOptions,
    Interrupted,
    interruptSignal,
    jsonOption,
    modelArgument,
    repeatableTask,
    searchOptions,
    searchSettings
} from './shared.js';

export const command = 'compare <model>';
export const describe = 'Compare what methods of pruning cost, at several ratios, in a table and a report';

export const builder = (yargs: Argv) =>
    repeatableTask(modelArgument(yargs))
        .options({
            ratios: { type: 'string', default: '0.1,0.2,0.3', describe: 'Shares of the parameters to remove' },
            methods: { type: 'string', default: comparedMethods.join(), describe: 'The methods' },
            seeds: { type: 'number', default: 3, describe: 'Orders of the method random, of which the mean is shown' },
            ...taskOptions,
            text: { type: 'string', describe: 'A text on which the perplexity is measured too' },
            'text-samples': {
                type: 'number',
                describe: 'Only the first so many sequences of it',
                defaultDescription: 'all'
            },
            ...searchOptions,
            resume: { type: 'boolean', default: false, describe: 'Go on with the results that are in the folder' },
            remeasure: {
                type: 'boolean',
                default: false,
                describe: 'Go on with its searches, but measure all results anew, with other tasks or another text'
            },
            output: {
                type: 'string',
                alias: 'o',
                demandOption: true,
                describe: 'The folder, for report.html, table.md, table.csv and results.json'
            },
            ...calibrationOptions,
            ...deviceOptions,
            json: jsonOption
        })
        .example(
            '$0 compare model.gguf --ratios 0.1,0.2 --task piqa=valid.jsonl,labels.lst --limit 400 -o comparison',
            ''
        );

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('limit', argv.limit, 1);
    checkInteger('seeds', argv.seeds, 1);
    checkInteger('text-samples', argv['text-samples'], 1);
    const ratios = argv.ratios.split(',').map(Number);
    if (ratios.some((ratio) => !(ratio > 0 && ratio < 1))) {
        throw new BlockprunerError(
            'ARGUMENT',
            `--ratios: write shares between 0 and 1, such as 0.1,0.2, not '${argv.ratios}'`
        );
    }
    const signal = interruptSignal();
    try {
        const comparison = await compare(argv.model, {
            output: argv.output,
            resume: argv.resume || argv.remeasure,
            remeasure: argv.remeasure,
            ratios,
            methods: argv.methods.split(',').map((name) => name.trim()) as ComparedMethod[],
            seeds: argv.seeds,
            tasks: await loadTasks(argv.task ?? [], { signal }),
            limit: argv.limit,
            text: argv.text,
            textSamples: argv['text-samples'],
            ...searchSettings(argv),
            calibration: calibrationOf(argv),
            device: argv.device,
            gpuLayers: argv['gpu-layers'],
            threads: argv.threads,
            signal,
            onProgress: (what) => process.stderr.write(`${what}\n`)
        });
        console.log(argv.json ? JSON.stringify(comparison) : comparisonTable(comparison));
    } catch (error) {
        throw error instanceof Interrupted && fs.existsSync(path.join(argv.output, 'results.json'))
            ? new Interrupted(`the results so far are in ${argv.output}; the same with --resume goes on`)
            : error;
    }
}
