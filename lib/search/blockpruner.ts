import type { Block } from '../blocks.js';
import { BlockprunerError } from '../errors.js';

export interface Step {
    removed: Block;
    /** of the model without all blocks removed so far */
    perplexity: number;
    /** candidates evaluated for this removal */
    evaluations: number;
    seconds: number;
}

/** What a search needs to know of a model; it knows nothing of files. */
export interface Evaluator {
    /** Perplexity without some blocks, and makes this the model that the next candidates differ from by one block. */
    setCurrent(removed: readonly Block[]): Promise<number>;
    /** Perplexity without `removed` (those of setCurrent) and one block more. */
    withoutOneMore(removed: readonly Block[], candidate: Block): Promise<number>;
}

export interface SearchOptions {
    /** The blocks that may be removed. */
    candidates: readonly Block[];
    /** Asked before each removal. */
    done(removed: readonly Block[]): boolean;
    /** The highest perplexity that a removal may lead to. Default: no limit. */
    limit?: (dense: number) => number;
    onStart?: (dense: number) => void;
    /** After each evaluation: how many of this removal's candidates are done. */
    onEvaluation?: (step: number, evaluated: number, candidates: number) => void;
    onStep?: (step: Step, number: number) => void;
}

export interface SearchResult {
    dense: number;
    /** In the order of removal. */
    steps: Step[];
}

/**
 * BlockPruner's iterative search (Zhong et al. 2025, section 3.3 and algorithm 1, as its own code does it): remove the
 * block without which the perplexity is lowest, and repeat on what is left. Candidates are walked attention blocks first,
 * by layer, then FFN blocks; of equal ones the earlier is removed.
 */
export async function searchOrder(evaluator: Evaluator, options: SearchOptions): Promise<SearchResult> {
    const byPaper = (a: Block, b: Block) => (a.kind === b.kind ? a.layer - b.layer : a.kind === 'attn' ? -1 : 1);
    let remaining = [...options.candidates].sort(byPaper);
    const removed: Block[] = [];
    const steps: Step[] = [];

    const dense = await evaluator.setCurrent([]);
    if (!Number.isFinite(dense)) {
        throw new BlockprunerError(`the model's perplexity on the calibration text is ${dense}: it can't be searched`);
    }
    options.onStart?.(dense);
    const limit = options.limit?.(dense) ?? Infinity;

    while (remaining.length > 0 && !options.done(removed)) {
        const started = performance.now();
        if (removed.length > 0) {
            await evaluator.setCurrent(removed);
        }
        let best: { block: Block; perplexity: number } | undefined;
        for (const [index, block] of remaining.entries()) {
            const value = await evaluator.withoutOneMore(removed, block);
            const perplexity = Number.isNaN(value) ? Infinity : value; // an overflow: never the best
            if (!best || perplexity < best.perplexity || Number.isNaN(best.perplexity)) {
                best = { block, perplexity };
            }
            options.onEvaluation?.(steps.length + 1, index + 1, remaining.length);
        }
        const { block, perplexity } = best!;
        if (perplexity === Infinity) {
            throw new BlockprunerError(`after ${removed.length} removals, the perplexity is not finite whichever block goes next`);
        }
        if (perplexity > limit) {
            break;
        }
        removed.push(block);
        const step = { removed: { kind: block.kind, layer: block.layer }, perplexity, evaluations: remaining.length, seconds: (performance.now() - started) / 1000 };
        remaining = remaining.filter((other) => other !== block);
        steps.push(step);
        options.onStep?.(step, steps.length);
    }
    return { dense, steps };
}
