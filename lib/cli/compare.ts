import path from 'node:path';
import type { Argv } from 'yargs';
import { BlockprunerError } from '../errors.js';
import { compare } from '../pipeline/compare.js';
import { comparisonText } from '../report/comparison-table.js';
import { comparedMethods, type ComparedMethod } from '../report/comparison.js';
import type { Quantization } from '../runtime/quantize.js';
import { interruptSignal, withOutcome } from './interrupt.js';
import {
    calibrationOf,
    calibrationOptions,
    deviceOf,
    deviceOptions,
    jsonOption,
    modelArgument,
    repairOf,
    repairOptions,
    repeatableTask,
    searchOf,
    searchOptions,
    taskOptions
} from './options.js';
import { print } from './print.js';
import { tell } from './stderr.js';
import { loadTasks } from './tasks.js';

export const command = 'compare <model>';
export const describe = 'Compare what methods of pruning cost, at several ratios, in a table and a report';

export const builder = (yargs: Argv) =>
    repeatableTask(modelArgument(yargs))
        .options({
            ratios: { type: 'string', default: '0.1,0.2,0.3', describe: 'Shares of the parameters to remove' },
            methods: { type: 'string', default: comparedMethods.join(), describe: 'The methods' },
            seeds: { type: 'number', default: 3, describe: 'Orders of the method random, of which the mean is shown' },
            ...taskOptions,
            quantize: {
                type: 'string',
                default: 'auto',
                describe:
                    'Types that the model as it is gets quantized to, to be compared too, such as Q5_K_M,Q4_K_M; ' +
                    'auto: for each ratio the best of the usual ones that is at least so much smaller; none'
            },
            answers: {
                type: 'boolean',
                default: true,
                describe: 'Ask simple questions that are answered in free text; --no-answers leaves them out'
            },
            speed: { type: 'boolean', default: false, describe: 'Measure how fast each file is in the stock runtime' },
            draft: {
                type: 'boolean',
                default: false,
                describe: 'Measure what each file gains as the draft of the model in speculative decoding'
            },
            text: { type: 'string', describe: 'A text on which the perplexity is measured too' },
            'text-samples': {
                type: 'number',
                describe: 'Only the first so many sequences of it',
                defaultDescription: 'all'
            },
            ...searchOptions,
            ...repairOptions,
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
    const { output, resume, remeasure, seeds, answers, speed, draft, limit, text, textSamples } = argv;
    const ratios = parseRatios(argv.ratios);
    const methods = argv.methods.split(',').map((name) => name.trim()) as ComparedMethod[];
    const search = searchOf(argv);
    const signal = interruptSignal();
    try {
        const comparison = await compare(argv.model, {
            output,
            resume: resume || remeasure,
            remeasure,
            ratios,
            methods,
            seeds,
            quantize: parseTypes(argv.quantize),
            answers,
            speed,
            draft,
            tasks: await loadTasks(argv.task ?? [], { signal }),
            limit,
            text,
            textSamples,
            ...search,
            ...repairOf(argv),
            calibration: calibrationOf(argv),
            ...deviceOf(argv),
            signal,
            onProgress: (what) => tell(what, { work: what })
        });
        print(comparison, argv.json, () => [comparisonText(comparison)]);
    } catch (error) {
        const outcome = `the results so far are in ${output}; the same with --resume goes on`;
        throw withOutcome(error, path.join(output, 'results.json'), outcome);
    }
}

function parseTypes(text: string): readonly Quantization[] | 'auto' {
    return text === 'auto' ? text : text === 'none' ? [] : text.split(',').map((type) => type.trim() as Quantization);
}

function parseRatios(text: string): number[] {
    const ratios = text.split(',').map(Number);
    if (ratios.some((ratio) => !(ratio > 0 && ratio < 1))) {
        throw new BlockprunerError(
            'ARGUMENT',
            `--ratios: write shares between 0 and 1, such as 0.1,0.2, not '${text}'`
        );
    }
    return ratios;
}
