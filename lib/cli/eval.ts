import fs from 'node:fs';
import type { Argv } from 'yargs';
import { parseBlocks } from '../runtime/blocks.js';
import { isUri, type DownloadOptions } from '../calibration/download.js';
import { BlockprunerError } from '../errors.js';
import { scoreTasks, type Score, type TaskScores } from '../evaluation/scores.js';
import { loadTask, taskNames, type Task, type TaskSource } from '../evaluation/tasks.js';
import {
    checkDevice,
    checkInteger,
    deviceOptions,
    interruptSignal,
    jsonOption,
    loadModel,
    modelArgument,
    Progress,
    repeatableTask,
    skipOption
} from './shared.js';

export const command = 'eval <model>';
export const describe = 'Score a model on multiple-choice benchmarks, with any blocks left out';

export const taskOptions = {
    task: {
        type: 'string',
        array: true,
        nargs: 1,
        describe: `BENCHMARK=FILE, or a URI, as often as wanted: ${taskNames.join(', ')}`
    },
    limit: { type: 'number', describe: 'Score the first so many questions of each', defaultDescription: 'all' }
} as const;

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
    checkDevice(argv);
    checkInteger('limit', argv.limit, 1);
    const skip = parseBlocks(argv.skip);
    const progress = new Progress();
    const signal = interruptSignal();
    try {
        const tasks = await loadTasks(argv.task, {
            signal,
            onProgress: (done, total) => progress.update('download', done, total)
        });
        const model = await loadModel(argv, progress, signal);
        const scores = await scoreTasks(model, tasks, {
            skip,
            limit: argv.limit,
            signal,
            onProgress: (done, total) => progress.update('score', done, total)
        });
        model.dispose();
        progress.stop();
        console.log(argv.json ? JSON.stringify({ tasks: scores }) : scores.map(formatScores).join('\n'));
    } finally {
        progress.stop();
    }
}

/** A line of a table. */
export function formatScores({ task, questions, acc, acc_norm }: TaskScores): string {
    return `${task.padEnd(14)} ${String(questions).padStart(6)} questions  acc ${percent(acc)}${acc_norm ? `  acc_norm ${percent(acc_norm)}` : ''}`;
}

function percent({ value, stderr }: Score): string {
    return `${(100 * value).toFixed(2)}${stderr === null ? '' : ` ± ${(100 * stderr).toFixed(2)}`} %`;
}

/** What --task names, each time; all are understood before the first is read. */
export async function loadTasks(texts: readonly string[], options: DownloadOptions): Promise<Task[]> {
    const tasks: Task[] = [];
    for (const source of texts.map(parseTask)) {
        tasks.push(await loadTask(source, options));
    }
    return tasks;
}

/** `piqa=FILE,LABELS`, `multiple-choice=FILE,context:a,choices:b,answer:c`; a file, or a URI's query, may have commas in its name. */
export function parseTask(text: string): TaskSource {
    const [, name, rest] = /^([\w-]+)=(.+)$/.exec(text) ?? [];
    if (name === undefined || rest === undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            `--task '${text}': write BENCHMARK=FILE, such as hellaswag=hellaswag.jsonl`
        );
    }
    if (fs.existsSync(rest)) {
        return { name, file: rest };
    }
    if (name === 'multiple-choice') {
        const [, file, context, choices, answer] =
            /^(.+),context:([^,]+),choices:([^,]+),answer:([^,]+)$/.exec(rest) ?? [];
        if (!file || !context || !choices || !answer) {
            throw new BlockprunerError(
                'ARGUMENT',
                `--task '${text}': write multiple-choice=FILE,context:FIELD,choices:FIELD,answer:FIELD`
            );
        }
        return { name, file, fields: { context, choices, answer } };
    }
    const [, file, labels] = /^(.+),(\w+:\/\/.+)$/.exec(rest) ?? /^(.+),([^,]+)$/.exec(rest) ?? [];
    const hasLabels =
        name === 'piqa' &&
        file !== undefined &&
        labels !== undefined &&
        (!file.includes('?') || isUri(labels) || fs.existsSync(labels));
    return hasLabels ? { name, file, labels } : { name, file: rest };
}
