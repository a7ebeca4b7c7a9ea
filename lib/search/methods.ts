import { formatMove, layersOf, without, type Block, type BlockSelection, type Move } from '../blocks.js';
import { BlockprunerError } from '../errors.js';
import type { Host } from '../export/host.js';
import type { Model, Sequences } from '../model.js';
import { randomNumbers } from '../random.js';
import { isLaco, type LacoMethod } from './laco.js';

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
 * - `laco`, `laco-code`: layers are merged into others as long as the outputs stay similar (Yang et al. 2024), by the paper's
 *   formula or as its code does; see laco.ts.
 * - `random`: blocks at random.
 */
export const methods = ['blockpruner', 'sleb', 'shortgpt', 'laco', 'laco-code', 'relative-magnitude', 'block-influence', 'random'] as const;
export type Method = (typeof methods)[number];

/** @throws BlockprunerError if it is none */
export function checkMethod(name: string): asserts name is Method {
    if (!methods.some((method) => method === name)) {
        throw new BlockprunerError(`there is no method '${name}': there are ${methods.join(', ')}`);
    }
}

/** Of the others, single blocks go where the model lets them. */
export function removesLayers(method: Method): boolean {
    return method === 'sleb' || method === 'shortgpt' || method === 'relative-magnitude' || isLaco(method);
}

/** The methods that remove blocks one after the other. */
export type GreedyMethod = Exclude<Method, LacoMethod>;

/** @throws BlockprunerError if a method of layers is to remove blocks of one kind */
export function checkSelection(method: Method, selection: BlockSelection): void {
    if (selection !== 'all' && removesLayers(method)) {
        throw new BlockprunerError(`the method ${method} removes whole layers: it can't be limited to ${selection} blocks`);
    }
}

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
 * What a method that removes blocks one after the other lets go next. Of methods that rank once, that is a single candidate, the lowest of what the host lets go; of
 * what goes together, by the mean.
 */
export async function movesOf(method: GreedyMethod, { model, host, blocks, calibration, selection = 'all', seed = 0, signal }: MethodOptions): Promise<(removed: readonly Block[]) => Move[]> {
    checkMethod(method);
    checkSelection(method, selection);
    const chosen = (move: Move) => move.every(({ kind }) => selection === 'all' || kind === selection);
    const hostMoves = (removed: readonly Block[]) => host.moves(without(blocks, removed)).filter(chosen);
    if (method === 'blockpruner') {
        return hostMoves;
    }
    const isLayer = (move: Move) => layersOf(move).every((part) => part.length === blocks.filter(({ layer }) => layer === part[0]!.layer).length);
    const ofBlocks = method === 'random' || method === 'block-influence';
    const units = (ofBlocks ? blocks.map((block): Move => [block]) : layersOf(blocks)).filter(chosen);
    // where blocks go by themselves, so do layers; where they go together, what goes is made of units
    const single = host.moves(blocks).every(({ length }) => length === 1);
    const fitting = (removed: readonly Block[]) => {
        const moves = hostMoves(removed);
        if (!single) {
            return moves.filter((move) => ofBlocks || isLayer(move));
        }
        const free = new Set(moves.map(formatMove));
        return units.filter((unit) => unit.every((block) => free.has(formatMove([block]))) && unit.length < blocks.length - removed.length);
    };
    if (method === 'sleb') {
        return fitting;
    }
    const scores = method === 'random' ? units.map(randomNumbers(seed)) : (await model.compare(calibration, units, { signal }))
        .map(({ cosine, change }) => (method === 'relative-magnitude' ? change : 1 - cosine));
    const scoreOf = new Map(units.map((unit, i) => [formatMove(unit), scores[i]!]));
    const mean = (move: Move) => {
        const parts = ofBlocks ? move.map((block) => [block]) : layersOf(move);
        return parts.reduce((sum, part) => sum + scoreOf.get(formatMove(part))!, 0) / parts.length;
    };
    return (removed) => fitting(removed).map((move) => ({ move, score: mean(move) })).sort((a, b) => a.score - b.score).slice(0, 1).map(({ move }) => move);
}
