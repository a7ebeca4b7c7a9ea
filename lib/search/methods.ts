import { formatMove, layersOf, without, type Block, type BlockSelection, type Move } from '../blocks.js';
import { BlockprunerError } from '../errors.js';
import type { Host } from '../export/host.js';
import type { Model, Sequences } from '../model.js';

/**
 * How it is decided what goes.
 *
 * - `blockpruner`: greedy by perplexity, on blocks (Zhong et al. 2025).
 * - `sleb`: greedy by perplexity, on whole layers (Song et al., ICML 2024, arXiv 2402.09025, algorithm 1).
 * - `shortgpt`: the layers with the lowest Block Influence, 1 − E[cos(x_l, x_{l+1})] of the hidden states before and after,
 *   all measured once in the dense model (Men et al. 2024, arXiv 2403.03853, section 3.2).
 * - `relative-magnitude`: the layers with the lowest E[|f(x)| / |x + f(x)|], measured once (Samragh et al. 2023, arXiv
 *   2312.09299, as ShortGPT compares with it).
 * - `block-influence`: as `shortgpt`, but single blocks.
 * - `random`: blocks at random.
 */
export const methods = ['blockpruner', 'sleb', 'shortgpt', 'relative-magnitude', 'block-influence', 'random'] as const;
export type Method = (typeof methods)[number];

export interface MethodOptions {
    model: Model;
    host: Host;
    /** All of the model's, in the order of the residual stream. */
    blocks: readonly Block[];
    calibration: Sequences;
    /** Which may go. Default: all. */
    selection?: BlockSelection | undefined;
    /** `random`: the order is another with another number. Default: 0. */
    seed?: number | undefined;
    signal?: AbortSignal | undefined;
}

/**
 * What a method lets go next. Of methods that rank once, that is a single candidate: the lowest whose removal leaves what the
 * host can write.
 */
export async function movesOf(method: Method, { model, host, blocks, calibration, selection = 'all', seed = 0, signal }: MethodOptions): Promise<(removed: readonly Block[]) => Move[]> {
    const chosen = (move: Move) => move.every(({ kind }) => selection === 'all' || kind === selection);
    const hostMoves = (removed: readonly Block[]) => host.moves(without(blocks, removed)).filter(chosen);
    if (method === 'blockpruner') {
        return hostMoves;
    }
    const ofBlocks = method === 'random' || method === 'block-influence';
    const units = (ofBlocks ? blocks.map((block): Move => [block]) : layersOf(blocks)).filter(chosen);
    const canGo = (unit: Move, removed: readonly Block[]) => without(unit, removed).length === unit.length && isWritable(host, without(blocks, [...removed, ...unit]));
    if (method === 'sleb') {
        return (removed) => units.filter((unit) => canGo(unit, removed));
    }
    const scores = method === 'random' ? units.map(randomNumbers(seed)) : (await model.compare(calibration, units, { signal }))
        .map(({ cosine, change }) => (method === 'relative-magnitude' ? change : 1 - cosine));
    const ranked = units.map((unit, i) => ({ unit, score: scores[i]! })).sort((a, b) => a.score - b.score).map(({ unit }) => unit);
    if (ofBlocks && hostMoves([]).every(({ length }) => length > 1)) {
        // single blocks don't go from this model: those that go together are ranked by their sum
        const rank = new Map(units.map((unit, i) => [formatMove(unit), scores[i]!]));
        const sum = (move: Move) => move.reduce((total, block) => total + rank.get(formatMove([block]))!, 0);
        return (removed) => hostMoves(removed).sort((a, b) => sum(a) - sum(b)).slice(0, 1);
    }
    return (removed) => {
        const next = ranked.find((unit) => canGo(unit, removed));
        return next ? [next] : [];
    };
}

function isWritable(host: Host, remaining: readonly Block[]): boolean {
    try {
        host.plan(remaining);
        return true;
    } catch (error) {
        if (error instanceof BlockprunerError) {
            return false;
        }
        throw error;
    }
}

/** Numbers that look random and are the same in every run (splitmix32). */
function randomNumbers(seed: number): () => number {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x9e3779b9) >>> 0;
        let z = state;
        z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
        z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
        return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
    };
}
