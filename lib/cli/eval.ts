import type { Argv } from 'yargs';
import { checkTaskOptions, scoreTasks } from '../evaluation/scores.js';
import { parseBlocks } from '../runtime/blocks.js';
import { interruptSignal } from './interrupt.js';
import { loadModel } from './model.js';
import { deviceOptions, jsonOption, modelArgument, repeatableTask, skipOption, taskOptions } from './options.js';
import { formatScores, print } from './print.js';
import { withProgress } from './progress.js';
import { loadTasks } from './tasks.js';

export const command = 'eval <model>';
export const describe = 'Score a model on multiple-choice benchmarks, with any blocks left out';

export const builder = (yargs: Argv) =>
    repeatableTask(modelArgument(yargs))
        .options({
            ...taskOptions,
            task: { ...taskOptions.task, demandOption: true },
            skip: skipOption,
            ...deviceOptions,
            json: jsonOption
        })
        .example(
            '$0 eval model.gguf --task hellaswag=hellaswag.txt --limit 400',
            "llama.cpp's text form, or JSON Lines"
        )
        .example(
            '$0 eval model.gguf --task piqa=valid.jsonl,valid-labels.lst',
            'with the labels in a file of their own'
        )
        .example(
            '$0 eval model.gguf --task multiple-choice=mine.jsonl,context:question,choices:options,answer:label',
            'any JSON Lines, by its fields'
        );

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkTaskOptions({ limit: argv.limit }); // before any file is read
    const { limit } = argv;
    const skip = parseBlocks(argv.skip);
    const signal = interruptSignal();
    const scores = await withProgress(async (progress) => {
        const tasks = await loadTasks(argv.task, { signal, onProgress: progress.of('download') });
        const model = await loadModel(argv.model, argv, progress, signal);
        const found = await scoreTasks(model, tasks, { skip, limit, signal, onProgress: progress.of('score') });
        model.dispose();
        return found;
    });
    print({ tasks: scores }, argv.json, () => scores.map(formatScores));
}
