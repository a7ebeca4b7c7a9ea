import { sampleStandardDeviation } from 'simple-statistics';
import { checkInteger } from '../check.js';
import { BlockprunerError } from '../errors.js';
import type { Block } from '../runtime/blocks.js';
import type { Model } from '../runtime/model.js';
import type { Task } from './tasks.js';

export interface Score {
    /** The share of right answers. */
    value: number;
    /** The standard error: the sample's standard deviation over √n. It is null where there is a single question. */
    stderr: number | null;
}

/** How well a model does at a task, scored as by the LM Evaluation Harness. */
export interface TaskScores {
    task: string;
    questions: number;
    /** An answer counts as right where the likeliest ending is the right one. */
    acc: Score;
    /**
     * Here, the likelihood counts in relation to the ending's length in characters. Null where all endings are the
     * same.
     */
    acc_norm: Score | null;
}

export interface TaskOptions {
    /** Blocks to leave out. Default: none. */
    skip?: readonly Block[] | undefined;
    /** How many questions are scored, from the first one on. Default: all. */
    limit?: number | undefined;
    signal?: AbortSignal | undefined;
    onProgress?: ((questions: number, total: number) => void) | undefined;
}

/** @throws ArgumentError if `limit` is no whole number of at least 1 */
export function checkTaskOptions({ limit }: TaskOptions): void {
    checkInteger('limit', limit, { least: 1 });
}

/** What of a model scores. */
export type Scorer = Pick<Model, 'tokenize' | 'score'>;

/**
 * Scores a model on a multiple-choice task, zero-shot.
 * @throws ArgumentError if `limit` is no whole number of at least 1
 * @throws BlockprunerError if a context or an ending has no tokens of its own
 */
export async function scoreTask(model: Scorer, task: Task, options: TaskOptions = {}): Promise<TaskScores> {
    const nll = await endingsNll(model, task, options);
    const right = { acc: [] as number[], norm: [] as number[] };
    nll.forEach((values, question) => {
        const { choices, answer } = task.questions[question]!;
        right.acc.push(Number(lowest(values) === answer));
        right.norm.push(
            Number(lowest(values.map((value, i) => value / [...choices[i]!.ending.slice(1)].length)) === answer)
        );
    });
    return {
        task: task.name,
        questions: nll.length,
        acc: scoreOf(right.acc),
        acc_norm: task.normalized ? scoreOf(right.norm) : null
    };
}

/** Scores a model on several tasks, zero-shot; errors are those of {@link scoreTask}. */
export async function scoreTasks(
    model: Scorer,
    tasks: readonly Task[],
    options: TaskOptions = {}
): Promise<TaskScores[]> {
    const scores: TaskScores[] = [];
    for (const task of tasks) {
        scores.push(await scoreTask(model, task, options));
    }
    return scores;
}

/** The score that the paper reports: `acc_norm` where there is one, else `acc`. */
export function reportedScore({ acc, acc_norm }: Pick<TaskScores, 'acc' | 'acc_norm'>): Score {
    return acc_norm ?? acc;
}

/**
 * Gives the negative log-likelihood of each ending of each question: one list for each question. Context and ending are
 * tokenised together, as by the LM Evaluation Harness: the ending's tokens are those after the context's number of
 * tokens.
 */
export async function endingsNll(model: Scorer, task: Task, options: TaskOptions = {}): Promise<number[][]> {
    const { skip, limit, signal, onProgress } = options;
    checkTaskOptions({ limit });
    const questions = task.questions.slice(0, limit);
    const contexts = new Map<string, number>();
    const choices = [];
    for (const { choices: ofQuestion } of questions) {
        for (const { context, ending } of ofQuestion) {
            const whole = await model.tokenize(context + ending, signal);
            // White space at the end of the context counts as the ending's.
            const start = contexts.get(context) ?? (await model.tokenize(context.trimEnd(), signal)).length;
            contexts.set(context, start);
            if (start === 0 || whole.length <= start) {
                const empty = start === 0 ? `the context '${context}'` : `the ending '${ending}'`;
                throw new BlockprunerError('INPUT', `${task.name}: ${empty} has no tokens`);
            }
            choices.push({ context: whole.subarray(0, start), ending: whole.subarray(start) });
        }
    }
    const nll = await model.score(choices, {
        skip,
        signal,
        onProgress:
            onProgress && ((done, total) => onProgress(Math.round((done / total) * questions.length), questions.length))
    });
    let next = 0;
    return questions.map(({ choices: ofQuestion }) => ofQuestion.map(() => nll[next++]!));
}

function lowest(values: readonly number[]): number {
    return values.reduce((best, value, i) => (value < values[best]! ? i : best), 0);
}

/** @param right of each question: 1 where it is answered rightly, else 0 */
export function scoreOf(right: readonly number[]): Score {
    const value = right.reduce((sum, one) => sum + one, 0) / right.length;
    return { value, stderr: right.length > 1 ? sampleStandardDeviation([...right]) / Math.sqrt(right.length) : null };
}
