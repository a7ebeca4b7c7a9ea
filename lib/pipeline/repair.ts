import { describeSequences } from '../calibration/calibration.js';
import { checkInteger, checkOneOf } from '../check.js';
import { BlockprunerError } from '../errors.js';
import { meanNll } from '../evaluation/perplexity.js';
import type { Host } from '../export/host.js';
import { gapText, type Decision, type LinearGaps, type PruningMethod } from '../methods/method.js';
import { fitText, searchText } from '../repair/fit-text.js';
import { fitRepair, repairs, usualType, type Repair } from '../repair/fit.js';
import type { RepairResult } from '../report/prune-result.js';
import { bare, gapsOf } from '../runtime/blocks.js';
import { countSequences, type Sequences } from '../runtime/sequences.js';
import type { JournalInputs } from '../search/journal.js';
import type { PhaseProgress, SearchChoice, Session } from './session.js';

/** The tensor types that a repair can be written in. */
export const repairTypes = ['f32', 'f16', 'bf16', 'q8_0', 'q5_1', 'q5_0', 'q4_1', 'q4_0'] as const;

export interface RepairOptions {
    /**
     * Default: `linear` where the model's host has linear blocks, else `all`; `none` where nothing can be fitted or the
     * calibration text is too short.
     */
    repair?: Repair | undefined;
    /**
     * How many tokens of the calibration text the repair is fitted to, those aside that the search is measured on.
     * Default: 64 for each value of the residual stream, at most 65,536, or as many as there are.
     */
    repairTokens?: number | undefined;
    /**
     * The tensor type of what is put in and of what is fitted anew. Default: of linear blocks `f32` in an F32 model,
     * `q8_0` in a quantized one, else `f16`; of projections, their own.
     */
    repairType?: (typeof repairTypes)[number] | undefined;
}

/** @throws ArgumentError if an option is none that there is, or out of its range */
export function checkRepairOptions({ repair, repairTokens, repairType }: RepairOptions): void {
    checkOneOf('repair', repair, repairs);
    checkOneOf('repairType', repairType, repairTypes);
    checkInteger('repairTokens', repairTokens, { least: 1 });
}

/** The folder in which the repair of an output keeps the matrices that it has found. */
export function repairJournalOf(output: string): string {
    return `${output}.repair`;
}

/** The repair by default. */
export function usualRepair(host: Host): Exclude<Repair, 'none'> {
    return host.linear ? 'linear' : 'all';
}

/**
 * How much of the error before a gap its linear block is to take back is tried out: half of it is best for SmolLM2, and
 * nothing for a small model, which all of it would make worse than without linear blocks.
 */
const CORRECTIONS = [0.5, 0];

/** What is known of a repair before it is decided what goes. */
export type RepairPlan =
    | { kind: 'none'; reason: string }
    | {
          kind: Exclude<Repair, 'none'>;
          /** What it is fitted to. */
          text: Sequences;
          /** The linear blocks that it puts into gaps, if it does. */
          linear?: LinearGaps | undefined;
      };

/**
 * Chooses the repair, and reads the text for it, or has the model write it.
 * @param merges whether layers will be merged
 * @throws BlockprunerError if a repair that was asked for is not possible
 */
export async function planRepair(
    { model, calibration, host }: Session,
    options: RepairOptions &
        Pick<SearchChoice, 'repairSearch'> & {
            merges?: boolean;
            signal?: AbortSignal | undefined;
            onProgress?: PhaseProgress | undefined;
        }
): Promise<RepairPlan> {
    const { repairTokens, repairSearch = false, merges = false, signal, onProgress } = options;
    if (options.repair === 'none') {
        return { kind: 'none', reason: 'it was turned off' };
    }
    const kind = options.repair ?? usualRepair(host);
    try {
        if (merges) {
            throw impossible('layers are merged, and a repair is fitted to the blocks as they are');
        }
        if (kind === 'linear' && !host.linear) {
            throw impossible(`the model is written as ${host.name}, which has no linear blocks`);
        }
        const text = await fitText(model, calibration, repairTokens, {
            signal,
            onProgress: (done, total) => onProgress?.('calibrate', done, total)
        });
        const linear = host.linear && {
            parameters: model.embedding ** 2,
            text: repairSearch ? searchText(model, text) : undefined
        };
        return { kind, text, ...(linear && { linear }) };
    } catch (error) {
        return none(error, options);
    }
}

/** What the evaluations of a method's search depend on, if a repair's linear blocks are in its candidates' gaps. */
export function repairInputs(method: PruningMethod, linear: LinearGaps | undefined): JournalInputs {
    const text = gapText(method, linear);
    return text ? { repair: `linear blocks fitted to ${describeSequences(text)}` } : {};
}

/**
 * What stands for a repair that isn't possible, where none was asked for.
 * @throws what made it impossible, where it was asked for or what it has found can't be kept
 */
function none(error: unknown, { repair }: RepairOptions): { kind: 'none'; reason: string } {
    if (repair !== undefined || !(error instanceof BlockprunerError) || error.code === 'OUTPUT') {
        throw error;
    }
    return { kind: 'none', reason: error.message };
}

function impossible(why: string): BlockprunerError {
    return new BlockprunerError('UNSUPPORTED', `no repair is possible: ${why}`);
}

/** A decision after its repair, and what the repair did. */
export interface Repaired {
    decision: Decision;
    repair: RepairResult;
}

/**
 * Repairs what a decision leaves of a model: fits the repair to text that the search was not measured on, and accepts
 * it only if the perplexity on the calibration text falls, measured on the very file that would be written.
 * @param folder where that file is for the time of its use
 * @param journal the folder in which what is found is kept, so that a repair of the same goes on from there
 * @throws BlockprunerError if a repair that was asked for is not possible
 */
export async function repair(
    session: Session,
    decision: Decision,
    plan: RepairPlan,
    { folder, journal }: { folder: string; journal: string },
    options: RepairOptions & { signal?: AbortSignal | undefined; onProgress?: PhaseProgress | undefined }
): Promise<Repaired> {
    const started = performance.now();
    const { repairType, signal, onProgress } = options;
    if (plan.kind === 'none') {
        return { decision, repair: plan };
    }
    const { model, blocks, calibration, gguf } = session;
    const { kind, text, linear } = plan;
    const { removed } = decision;
    const perplexityOf = (nll: Float32Array) => Math.exp(meanNll(nll, calibration.length));
    const corrections = kind === 'linear' ? CORRECTIONS : [undefined];
    const fits: { fitted: Decision; correction: number | undefined }[] = [];
    try {
        if (removed.length === 0) {
            throw impossible('nothing was removed');
        }
        if (kind === 'linear' && gapsOf(blocks, removed).every((gap) => !gap.linear)) {
            return { decision, repair: { kind: 'none', reason: 'the search has left all gaps empty' } };
        }
        onProgress?.('repair', 0, 1);
        const kept = { folder: journal, inputs: await session.modelInputs(signal) };
        const type = repairType ?? usualType(gguf, model.embedding);
        for (const [i, correction] of corrections.entries()) {
            const wanted = { repair: kind, linear: linear !== undefined, correction, type };
            const fit = await fitRepair(model, blocks, removed, text, wanted, {
                journal: kept,
                signal,
                onProgress: (done, total) => onProgress?.('repair', i * total + done, corrections.length * total)
            });
            fits.push({ fitted: { ...decision, ...fit, changedType: repairType }, correction });
        }
    } catch (error) {
        return { decision, repair: none(error, options) };
    }

    let best: { fitted: Decision; correction: number | undefined; nll: Float32Array } | undefined;
    for (const { fitted, correction } of fits) {
        const nll = await session.useDecided(fitted, folder, (one) => one.evaluate(calibration, { signal }), signal);
        if (!best || perplexityOf(nll) < perplexityOf(best.nll)) {
            best = { fitted, correction, nll };
        }
    }
    const nllBefore = decision.nll ?? (await model.evaluate(calibration, { skip: removed, signal }));
    const unrepaired = perplexityOf(nllBefore);
    const { fitted, nll, correction } = best!;
    const perplexity = perplexityOf(nll);
    if (!(perplexity < unrepaired)) {
        const reason = `it would change the perplexity on the calibration text from ${unrepaired} to ${perplexity}`;
        return { decision: { ...decision, nll: nllBefore }, repair: { kind: 'none', reason } };
    }
    return {
        decision: { ...fitted, nll },
        repair: {
            kind,
            linear: (fitted.linear ?? []).map(({ before, type }) => ({
                before: before ? bare([before])[0]! : null,
                type
            })),
            ...(correction !== undefined && { correction }),
            refitted: [...(fitted.changes ?? new Map<string, never>()).keys()],
            tokens: countSequences(text) * text.length,
            unrepaired,
            seconds: (performance.now() - started) / 1000
        }
    };
}
