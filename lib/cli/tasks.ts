// What --task names.
import fs from 'node:fs';
import { isUri, type DownloadOptions } from '../calibration/download.js';
import { BlockprunerError } from '../errors.js';
import { loadTask, type Task, type TaskSource } from '../evaluation/tasks.js';

/** Loads the tasks of all --task. Every text is parsed before the first file is read. */
export async function loadTasks(texts: readonly string[], options: DownloadOptions): Promise<Task[]> {
    const tasks: Task[] = [];
    for (const source of texts.map(parseTask)) {
        tasks.push(await loadTask(source, options));
    }
    return tasks;
}

/**
 * Parses a --task: `BENCHMARK=FILE`, `piqa=FILE,LABELS` or `multiple-choice=FILE,context:a,choices:b,answer:c`. The
 * name of a file, and the query of a URI, may contain commas.
 * @throws BlockprunerError if the text has none of these forms
 */
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
