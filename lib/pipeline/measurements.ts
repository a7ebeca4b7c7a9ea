// How compare measures each of the models that it makes.
import crypto from 'node:crypto';
import { median } from 'simple-statistics';
import { describeSequences } from '../calibration/calibration.js';
import { formatOf } from '../calibration/text.js';
import { scoreAnswers } from '../evaluation/answers.js';
import { measurePerplexity, perplexityOf, textSequences } from '../evaluation/perplexity.js';
import { scoreTasks } from '../evaluation/scores.js';
import type { Task } from '../evaluation/tasks.js';
import type { Cost, Quality } from '../report/comparison.js';
import type { Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import type { JournalInputs } from '../search/journal.js';
import { stockDraft, type Speed } from '../stock/stock.js';
import { measureSpeeds, stockOptions } from './deliver.js';
import type { Session, SessionOptions } from './session.js';

/** As drafts, models write so many tokens at a time, after so many prompts of so many tokens, so many in all. */
const DRAFT_AHEAD = 4;
const DRAFT_PROMPTS = 4;
const DRAFT_PROMPT_TOKENS = 32;
const DRAFT_TOKENS = 64;

/** What compare measures of each model, beside the perplexity on the calibration text. */
export interface MeasurementOptions {
    /** Default: none. */
    tasks?: readonly Task[] | undefined;
    /** How many questions of each task are scored, from the first one on. Default: all. */
    limit?: number | undefined;
    /** Also ask simple questions that are answered in free text: {@link scoreAnswers}. Default: true. */
    answers?: boolean | undefined;
    /** Also measure how fast each file is in the stock runtime. Default: false. */
    speed?: boolean | undefined;
    /** Also measure each file as the draft of the model as it is: {@link stockDraft}. Default: false. */
    draft?: boolean | undefined;
    /** A text on which perplexity and divergence from the dense model are measured too. */
    text?: string | undefined;
    /** How many sequences of the text are used, from the first one on. Default: all. */
    textSamples?: number | undefined;
}

/** How models are measured, and what that depends on. */
export interface Measurements {
    inputs: JournalInputs;
    /** @param calibrated the perplexity on the calibration text, if it is known */
    measure: (measured: Model, calibrated?: number) => Promise<Quality>;
}

/** @throws BlockprunerError if a text can't be read or is too short */
export async function prepareMeasurements(
    session: Session,
    options: MeasurementOptions & Pick<SessionOptions, 'calibration' | 'signal'>
): Promise<Measurements> {
    const { model, calibration } = session;
    const { tasks = [], limit, text, textSamples: samples, answers = true, speed = false, draft = false } = options;
    const { signal } = options;
    let sequences: Sequences | undefined;
    if (text !== undefined) {
        const field = formatOf(text) === 'text' ? undefined : options.calibration?.field;
        sequences = await textSequences(model, text, { samples, context: calibration.length, field, signal });
    }
    const names = tasks.map(({ name }) => name).join(', ');
    const hash = crypto.createHash('sha256').update(JSON.stringify(tasks)).digest('hex');
    return {
        inputs: {
            text: sequences ? describeSequences(sequences) : 'none',
            tasks: tasks.length === 0 ? 'none' : `${names}, ${limit ?? 'all'} questions, SHA-256 ${hash}`,
            answers: answers ? 'asked for' : 'none',
            speed: speed ? 'measured' : 'none',
            ...(draft && { draft: 'measured' }) // results of before there was this don't have it
        },
        async measure(measured, calibrated) {
            // The scores come first, so that a question that can't be scored is found soon.
            const scores = await scoreTasks(measured, tasks, { limit, signal });
            const onText = sequences && (await measurePerplexity(measured, sequences, { dense: model, signal }));
            const perplexity = calibrated ?? (await perplexityOf(measured, calibration, { signal }));
            return {
                calibration: finite(perplexity),
                text: onText
                    ? {
                          perplexity: finite(onText.perplexity),
                          divergence: finite(onText.dense!.divergence),
                          sameTop: onText.dense!.sameTop
                      }
                    : null,
                tasks: scores,
                answers: answers ? await scoreAnswers(measured, { signal }) : null,
                cost: {
                    bytes: measured.gguf.bytes,
                    cacheBytes: await measured.cacheBytes(signal),
                    speed: speed ? await relativeSpeed(model, measured, signal) : null,
                    draft: draft ? await asDraft(model, measured, calibration, signal) : null
                }
            };
        }
    };
}

/** How much faster a model is in the stock runtime than the dense one: the ratio of the medians of rounds in turns. */
async function relativeSpeed(dense: Model, measured: Model, signal?: AbortSignal): Promise<Cost['speed']> {
    if (measured === dense) {
        return { prompt: 1, generation: 1 };
    }
    const speeds = await measureSpeeds(dense.path, measured.path, stockOptions(dense, signal));
    const ratio = (of: keyof Speed) =>
        median(speeds.pruned.map((speed) => speed[of])) / median(speeds.dense.map((speed) => speed[of]));
    return { prompt: ratio('prompt'), generation: ratio('generation') };
}

/** What a model gains as the draft of the dense one, which writes on after the beginnings of some sequences. */
async function asDraft(
    dense: Model,
    measured: Model,
    { tokens, length }: Sequences,
    signal?: AbortSignal
): Promise<Cost['draft']> {
    const count = Math.min(DRAFT_PROMPTS, tokens.length / length);
    const prompts = Array.from({ length: count }, (_, i) =>
        tokens.slice(i * length, i * length + Math.min(length, DRAFT_PROMPT_TOKENS))
    );
    const request = { prompts, tokens: DRAFT_TOKENS, ahead: DRAFT_AHEAD };
    const { acceptance, ...speeds } = await stockDraft(dense.path, measured.path, request, stockOptions(dense, signal));
    const cost = speeds.target / speeds.draft; // of one of its tokens, in those of the dense model
    const tokensAtOnce = Array.from({ length: DRAFT_AHEAD + 1 }, (_, i) => acceptance ** i).reduce((a, b) => a + b);
    return {
        acceptance,
        expected: tokensAtOnce / (DRAFT_AHEAD * cost + 1),
        measured: speeds.together / speeds.target
    };
}

/** A perplexity that overflowed in a broken model is as bad as can be. */
function finite(value: number): number {
    return Number.isNaN(value) ? Infinity : value;
}
