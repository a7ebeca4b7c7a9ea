import path from 'node:path';
import { BlockprunerError } from '../errors.js';
import { checkNames, checkOutput } from '../output.js';
import { forgetMatrices } from '../repair/journal.js';
import type { PruneResult } from '../report/prune-result.js';
import { bare, formatBlock, SkipSet, without, type Block } from '../runtime/blocks.js';
import { isolated } from './isolated.js';
import { withLock } from './lock.js';
import { deliver, measure, type DeliverOptions } from './deliver.js';
import { checkQuantization, checkQuantizeOptions } from './quantize.js';
import { checkRepairOptions, planRepair, repair, repairJournalOf, type RepairOptions } from './repair.js';
import { checkSessionOptions, findModel, Session, type SessionOptions, type Source } from './session.js';

export interface ApplyOptions extends DeliverOptions, SessionOptions, RepairOptions {
    /** The blocks to remove, for instance from {@link readOrder}. */
    order: readonly Block[];
}

/**
 * Removes given blocks, without a search, and writes the result as {@link prune} does. A repair that was stopped has
 * left what it found in a folder beside the output ({@link repairJournalOf}), from which the same call goes on.
 * @throws BlockprunerError as prune, or if the model doesn't have such blocks or can't be written without them
 */
export async function apply(model: string, options: ApplyOptions): Promise<PruneResult> {
    const { output, force } = options;
    if (options.isolate) {
        return isolated('apply', model, options);
    }
    checkSessionOptions(options);
    checkRepairOptions(options);
    checkQuantizeOptions(options);
    checkNames({ 'importance matrix': options.imatrixOut, output });
    const source = await findModel(model, options);
    await checkOutput(output, source.gguf.files, force);
    await checkQuantization(source.gguf, options);
    return withLock(output, () => applyTo(source, options));
}

async function applyTo(source: Source, options: ApplyOptions): Promise<PruneResult> {
    const started = performance.now();
    const { order, output } = options;
    const session = await Session.open(source, options, { copies: false });
    const folder = path.dirname(output);
    const journal = repairJournalOf(output);
    let repaired, fitted, measured;
    try {
        checkOrder(session, order);
        const plan = await planRepair(session, options);
        fitted = plan.kind === 'none' ? undefined : plan.text;
        repaired = await repair(session, { removed: bare(order), steps: [] }, plan, { folder, journal }, options);
        measured = await measure(session, repaired.decision, { ...options, folder });
    } finally {
        session.dispose();
    }
    const score = () => Promise.resolve([]); // no tasks are asked for
    const decided = { uri: source.model, method: null, searched: null, ...repaired, fitted, measured, score, started };
    const result = await deliver(session, decided, { ...options, speed: false });
    await forgetMatrices(journal);
    return result;
}

/** @throws BlockprunerError unless the model can be written without these blocks */
function checkOrder({ blocks, host, model }: Session, order: readonly Block[]): void {
    const existing = new SkipSet(blocks);
    const unknown = order.find((block) => !existing.has(block));
    if (unknown) {
        throw new BlockprunerError(
            'ARGUMENT',
            `the order doesn't fit this model: it has no block ${formatBlock(unknown)}, ` +
                `its layers are 0 to ${model.layers - 1}`
        );
    }
    const twice = order.find((block, i) => new SkipSet(order.slice(0, i)).has(block));
    if (twice) {
        throw new BlockprunerError('ARGUMENT', `the block ${formatBlock(twice)} is to be removed twice`);
    }
    if (order.length >= blocks.length) {
        throw new BlockprunerError('ARGUMENT', `can't remove all ${blocks.length} blocks: one must stay`);
    }
    host.plan(without(blocks, order));
}
