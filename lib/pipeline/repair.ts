import { checkInteger, checkOneOf } from '../check.js';
import { BlockprunerError } from '../errors.js';
import { meanNll } from '../evaluation/perplexity.js';
import type { Host } from '../export/host.js';
import type { Decision } from '../methods/method.js';
import { fitText } from '../repair/fit-text.js';
import { fitRepair, repairs, usualType, type Repair } from '../repair/fit.js';
import type { RepairResult } from '../report/prune-result.js';
import { bare } from '../runtime/blocks.js';
import { countSequences } from '../runtime/sequences.js';
import type { PhaseProgress, Session } from './session.js';

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
     * `q8_0` in a quantized one, else `f16`; of output projections, their own.
     */
    repairType?: (typeof repairTypes)[number] | undefined;
}

/** @throws ArgumentError if an option is none that there is, or out of its range */
export function checkRepairOptions({ repair, repairTokens, repairType }: RepairOptions): void {
    checkOneOf('repair', repair, repairs);
    checkOneOf('repairType', repairType, repairTypes);
    checkInteger('repairTokens', repairTokens, { least: 1 });
}

/** The repair by default. */
export function usualRepair(host: Host): Exclude<Repair, 'none'> {
    return host.linear ? 'linear' : 'all';
}

/** How many parameters a repair puts into each gap. */
export function gapParameters({ host, model }: Session, { repair = usualRepair(host) }: RepairOptions): number {
    return repair !== 'none' && host.linear ? model.embedding ** 2 : 0;
}

/** A decision after its repair, and what the repair did. */
export interface Repaired {
    decision: Decision;
    repair: RepairResult;
}

/**
 * Repairs what a decision leaves of a model: fits the repair to text that the search has not seen, and accepts it only
 * if the perplexity on the calibration text falls, measured on the very file that would be written.
 * @param folder where that file is for the time of its use
 * @throws BlockprunerError if a repair that was asked for is not possible
 */
export async function repair(
    session: Session,
    decision: Decision,
    folder: string,
    options: RepairOptions & { signal?: AbortSignal | undefined; onProgress?: PhaseProgress | undefined }
): Promise<Repaired> {
    const started = performance.now();
    const { repairTokens, signal, onProgress } = options;
    if (options.repair === 'none') {
        return { decision, repair: { kind: 'none', reason: 'it was turned off' } };
    }
    const { model, blocks, calibration, gguf, host } = session;
    const kind = options.repair ?? usualRepair(host);
    let text, fit;
    try {
        checkRepairable(session, decision, kind);
        text = await fitText(model, calibration, repairTokens, {
            signal,
            onProgress: (done, total) => onProgress?.('calibrate', done, total)
        });
        onProgress?.('repair', 0, 1);
        const type = options.repairType ?? usualType(gguf, model.embedding);
        const wanted = { repair: kind, linear: host.linear, type };
        fit = await fitRepair(model, blocks, decision.removed, text, wanted, {
            signal,
            onProgress: (done, total) => onProgress?.('repair', done, total)
        });
    } catch (error) {
        if (options.repair !== undefined || !(error instanceof BlockprunerError)) {
            throw error;
        }
        return { decision, repair: { kind: 'none', reason: error.message } };
    }

    const nllBefore = decision.nll ?? (await model.evaluate(calibration, { skip: decision.removed, signal }));
    const fitted: Decision = { ...decision, ...fit, changedType: options.repairType };
    const nll = await session.useDecided(fitted, folder, (model) => model.evaluate(calibration, { signal }), signal);
    const [unrepaired, repaired] = [nllBefore, nll].map((values) => Math.exp(meanNll(values, calibration.length))) as [
        number,
        number
    ];
    if (!(repaired < unrepaired)) {
        const reason = `it would change the perplexity on the calibration text from ${unrepaired} to ${repaired}`;
        return { decision: { ...decision, nll: nllBefore }, repair: { kind: 'none', reason } };
    }
    return {
        decision: { ...fitted, nll },
        repair: {
            kind,
            linear: (fit.linear ?? []).map(({ before, type }) => ({
                before: before ? bare([before])[0]! : null,
                type
            })),
            refitted: [...(fit.changes ?? new Map<string, never>()).keys()],
            tokens: countSequences(text) * text.length,
            unrepaired,
            seconds: (performance.now() - started) / 1000
        }
    };
}

/** @throws BlockprunerError if there is nothing to repair, or a repair can't be written */
function checkRepairable({ host }: Session, { merges, removed }: Decision, repair: Repair): void {
    const obstacle =
        repair === 'linear' && !host.linear
            ? `the model is written as ${host.name}, which has no linear blocks`
            : merges
              ? 'layers were merged, and a repair is fitted to the blocks as they are'
              : removed.length === 0
                ? 'nothing was removed'
                : undefined;
    if (obstacle !== undefined) {
        throw new BlockprunerError('UNSUPPORTED', `no repair is possible: ${obstacle}`);
    }
}
