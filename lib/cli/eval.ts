import type { Argv } from 'yargs';
import { BlockprunerError } from '../errors.js';
import { scoreAnswers } from '../evaluation/answers.js';
import { checkTaskOptions, scoreTasks } from '../evaluation/scores.js';
import { formatScore } from '../format.js';
import { parseBlocks } from '../runtime/blocks.js';
import { interruptSignal } from './interrupt.js';
import { loadModel, shared } from './model.js';
import {
    clusterOf,
    clusterOptions,
    deviceOptions,
    jsonOption,
    modelArgument,
    repeatableTask,
    skipOption,
    taskOptions
} from './options.js';
import { formatScores, print } from './print.js';
import { withProgress } from './progress.js';
import { loadTasks } from './tasks.js';

export const command = 'eval <model>';
export const describe = 'Score a model on multiple-choice benchmarks, with any blocks left out, or on its own answers';

export const builder = (yargs: Argv) =>
    repeatableTask(modelArgument(yargs))
        .options({
            ...taskOptions,
            answers: {
                type: 'boolean',
                default: false,
                describe: 'Ask simple questions too, which are answered in free text'
            },
            skip: skipOption,
            ...deviceOptions,
            ...clusterOptions,
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
    const { limit, answers } = argv;
    const skip = parseBlocks(argv.skip);
    if (argv.task === undefined && !answers) {
        throw new BlockprunerError('ARGUMENT', 'nothing to score: give --task BENCHMARK=FILE or --answers');
    }
    if (answers && skip.length > 0) {
        const message = "--answers: a model with blocks left out can't write: prune it, and score the file";
        throw new BlockprunerError('ARGUMENT', message);
    }
    const cluster = clusterOf(argv);
    const signal = interruptSignal();
    const scores = await withProgress(async (progress) => {
        const tasks = await loadTasks(argv.task ?? [], { signal, onProgress: progress.of('download') });
        const model = await loadModel(argv.model, argv, progress, signal);
        const scorer = cluster ? shared(model, cluster, argv, progress, signal) : model;
        const found = await scoreTasks(scorer, tasks, { skip, limit, signal, onProgress: progress.of('score') });
        const answered = answers ? await scoreAnswers(model, { signal, onProgress: progress.of('score') }) : null;
        model.dispose();
        return { tasks: found, answers: answered };
    });
    print(scores, argv.json, () => [
        ...scores.tasks.map(formatScores),
        ...(scores.answers ? [`answers: ${formatScore(scores.answers)}`] : [])
    ]);
}
