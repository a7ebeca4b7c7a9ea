import { z } from 'zod';
import type { DownloadOptions } from '../calibration/download.js';
import { jsonLines, nameOf, readText, valueAt } from '../calibration/text.js';
import { BlockprunerError } from '../errors.js';

/** A multiple-choice question. The model's choice is the ending that is likeliest after its context. */
export interface Question {
    /** All have the same context, except in WinoGrande, where all have the same ending. */
    choices: { context: string; ending: string }[];
    /** The index of the right choice. */
    answer: number;
}

export interface Task {
    /** The benchmark's name, or the file's. */
    name: string;
    questions: Question[];
    /** Whether endings differ in length, so that likelihood over length says something too: `acc_norm`. */
    normalized: boolean;
}

/**
 * Where a task's questions are: in files, or behind URIs, `https://…` or `hf://datasets/user/repo/path`, downloaded
 * once.
 */
export interface TaskSource {
    /** `piqa`, `winogrande`, `hellaswag`, `arc-easy`, `arc-challenge`, or `multiple-choice` with `fields` */
    name: string;
    file: string;
    /** For PIQA: a file with a label a line, where the records have none. */
    labels?: string | undefined;
    /**
     * For `multiple-choice`: which fields have the context, the list of choices, and the index of the right one.
     * `a.0.b` goes into objects and lists.
     */
    fields?: { context: string; choices: string; answer: string } | undefined;
}

type Read = (record: unknown, label: string | undefined, source: TaskSource) => Question;

/**
 * Prompts, and what of them is scored, are those of the LM Evaluation Harness (v0.4): see each benchmark's YAML there.
 */
const benchmarks: Record<string, { read: Read; normalized: boolean }> = {
    piqa: {
        normalized: true,
        read(record, label) {
            const {
                goal,
                sol1,
                sol2,
                label: own
            } = z
                .object({ goal: z.string(), sol1: z.string(), sol2: z.string(), label: z.number().optional() })
                .parse(record);
            return question(`Question: ${goal}\nAnswer:`, [sol1, sol2], label ?? own);
        }
    },
    winogrande: {
        normalized: false,
        read(record) {
            const { sentence, option1, option2, answer } = z
                .object({
                    sentence: z.string().regex(/_/, 'has no _'),
                    option1: z.string(),
                    option2: z.string(),
                    answer: z.enum(['1', '2'])
                })
                .parse(record);
            const gap = sentence.indexOf('_');
            const ending = ` ${sentence.slice(gap + 1).trim()}`;
            return {
                choices: [option1, option2].map((option) => ({ context: sentence.slice(0, gap) + option, ending })),
                answer: Number(answer) - 1
            };
        }
    },
    hellaswag: {
        normalized: true,
        read(record) {
            const { ctx_a, ctx_b, activity_label, endings, label } = z
                .object({
                    ctx_a: z.string(),
                    ctx_b: z.string(),
                    activity_label: z.string(),
                    endings: z.array(z.string()).min(2),
                    label: z.union([z.string(), z.number()])
                })
                .parse(record);
            const clean = (text: string) =>
                text
                    .trim()
                    .replaceAll(' [title]', '. ')
                    .replace(/\[.*?\]/g, '')
                    .replaceAll('  ', ' ');
            const capitalized = ctx_b.slice(0, 1).toUpperCase() + ctx_b.slice(1).toLowerCase();
            return question(clean(`${activity_label}: ${ctx_a} ${capitalized}`), endings.map(clean), label);
        }
    },
    'arc-easy': { normalized: true, read: readArc },
    'arc-challenge': { normalized: true, read: readArc },
    'multiple-choice': {
        normalized: true,
        read(record, _, { fields }) {
            const { context, choices, answer } = fields!;
            return question(
                z.string({ error: `field '${context}' is no text` }).parse(valueAt(record, context)),
                z
                    .array(z.string(), { error: `field '${choices}' is no list of texts` })
                    .min(2)
                    .parse(valueAt(record, choices)),
                z
                    .union([z.number(), z.string()], { error: `field '${answer}' is no index` })
                    .parse(valueAt(record, answer))
            );
        }
    }
};

export const taskNames = Object.keys(benchmarks);

function readArc(record: unknown): Question {
    const {
        question: { stem, choices },
        answerKey
    } = z
        .object({
            question: z.object({
                stem: z.string(),
                choices: z.array(z.object({ text: z.string(), label: z.string() })).min(2)
            }),
            answerKey: z.string()
        })
        .parse(record);
    const answer = choices.findIndex(({ label }) => label === answerKey);
    if (answer < 0) {
        throw new BlockprunerError('INPUT', `the answerKey '${answerKey}' is the label of no choice`);
    }
    return question(
        `Question: ${stem}\nAnswer:`,
        choices.map(({ text }) => text),
        answer
    );
}

function question(context: string, endings: string[], label: string | number | undefined): Question {
    const answer = Number(label);
    if (label === undefined || label === '' || !Number.isInteger(answer) || answer < 0 || answer >= endings.length) {
        throw new BlockprunerError(
            'INPUT',
            label === undefined ? 'it has no label' : `the label '${label}' is none of 0 to ${endings.length - 1}`
        );
    }
    return { choices: endings.map((ending) => ({ context, ending: ` ${ending}` })), answer };
}

/**
 * Reads a benchmark's questions: JSON Lines as the benchmark is published, or of HellaSwag also llama.cpp's text form
 * (six lines each: the context, the right ending's index, four endings).
 * @throws BlockprunerError naming the file and the line that is wrong
 */
export async function loadTask(source: TaskSource, options?: DownloadOptions): Promise<Task> {
    const benchmark = Object.hasOwn(benchmarks, source.name) ? benchmarks[source.name]! : undefined;
    if (!benchmark) {
        throw new BlockprunerError('ARGUMENT', `there is no task '${source.name}': there are ${taskNames.join(', ')}`);
    }
    if (source.name === 'multiple-choice' && !source.fields) {
        throw new BlockprunerError(
            'ARGUMENT',
            `multiple-choice of ${source.file}: name its fields, FILE,context:FIELD,choices:FIELD,answer:FIELD`
        );
    }
    const name = source.name === 'multiple-choice' ? nameOf(source.file) : source.name;
    const text = await readText(source.file, options);
    if (source.name === 'hellaswag' && !text.trimStart().startsWith('{')) {
        return { name, questions: hellaswagText(source.file, text), normalized: true };
    }
    const labels =
        source.labels === undefined ? undefined : (await readText(source.labels, options)).trimEnd().split('\n');
    const records = jsonLines(source.file, text);
    if (labels && labels.length !== records.length) {
        throw new BlockprunerError(
            'INPUT',
            `${source.labels} has ${labels.length} labels, and ${source.file} has ${records.length} questions`
        );
    }
    const questions = records.map(({ record, place }, index) => {
        try {
            return benchmark.read(record, labels?.[index]?.trim(), source);
        } catch (error) {
            if (error instanceof z.ZodError) {
                const issue = error.issues[0]!;
                const field = issue.path.length > 0 ? `field '${issue.path.join('.')}': ` : '';
                throw new BlockprunerError('INPUT', `${source.file}, ${place}: ${field}${issue.message}`);
            }
            if (error instanceof BlockprunerError) {
                throw new BlockprunerError('INPUT', `${source.file}, ${place}: ${error.message}`);
            }
            throw error;
        }
    });
    return { name, questions, normalized: benchmark.normalized };
}

function hellaswagText(file: string, text: string): Question[] {
    const lines = text.trimEnd().split(/\r?\n/);
    if (lines.length % 6 !== 0) {
        throw new BlockprunerError(
            'INPUT',
            `${file} has ${lines.length} lines: llama.cpp's form of HellaSwag has six for each question`
        );
    }
    return Array.from({ length: lines.length / 6 }, (_, index) => {
        const [context, label, ...endings] = lines.slice(6 * index, 6 * index + 6) as [string, string, ...string[]];
        try {
            return question(context, endings, label);
        } catch (error) {
            throw error instanceof BlockprunerError
                ? new BlockprunerError('INPUT', `${file}, line ${6 * index + 2}: ${error.message}`)
                : error;
        }
    });
}
