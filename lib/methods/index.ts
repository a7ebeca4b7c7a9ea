import { formatMove, layersOf, without, type Block, type BlockSelection, type Move } from '../runtime/blocks.js';
import { BlockprunerError } from '../errors.js';
import type { Host } from '../export/host.js';
import type { Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
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
export const methods = [
    'blockpruner',
    'sleb',
    'shortgpt',
    'laco',
    'laco-code',
    'relative-magnitude',
    'block-influence',
    'random'
] as const;
export type Method = (typeof methods)[number];

/** @throws BlockprunerError if it is none */
export function checkMethod(name: string): asserts name is Method {
    if (!methods.some((method) => method === name)) {
        throw new BlockprunerError('ARGUMENT', `there is no method '${name}': there are ${methods.join(', ')}`);
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
        throw new BlockprunerError(
            'ARGUMENT',
            `the method ${method} removes whole layers: it can't be limited to ${selection} blocks`
        );
    }
}

/** Of what moves are made. */
interface MoveOptions {
    host: Host;
    /** All of the model's, in the order of the residual stream. */
    blocks: readonly Block[];
    /** Which may go. Default: all. */
    selection?: BlockSelection | undefined;
}

export interface MethodOptions extends MoveOptions {
    model: Model;
    calibration: Sequences;
    /** `random`: the order is another with another number. Default: 0. */
    seed?: number | undefined;
    signal?: AbortSignal | undefined;
}

/** What a method ranks: blocks or layers. */
function unitsOf(method: GreedyMethod, { blocks, selection = 'all' }: MoveOptions): Move[] {
    return (removesLayers(method) ? layersOf(blocks) : blocks.map((block): Move => [block])).filter((unit) =>
        isChosen(unit, selection)
    );
}

function isChosen(move: Move, selection: BlockSelection): boolean {
    return move.every(({ kind }) => selection === 'all' || kind === selection);
}

/**
 * All that a method could let go next, without regard to how much it matters: of what the host lets go, blocks or whole layers.
 * @throws BlockprunerError if a method of layers is to remove blocks of one kind
 */
export function possibleMoves(method: GreedyMethod, options: MoveOptions): (removed: readonly Block[]) => Move[] {
    const { host, blocks, selection = 'all' } = options;
    checkMethod(method);
    checkSelection(method, selection);
    const hostMoves = (removed: readonly Block[]) =>
        host.moves(without(blocks, removed)).filter((move) => isChosen(move, selection));
    if (method === 'blockpruner') {
        return hostMoves;
    }
    const isLayer = (move: Move) =>
        layersOf(move).every((part) => part.length === blocks.filter(({ layer }) => layer === part[0]!.layer).length);
    const units = unitsOf(method, options);
    // where blocks go by themselves, so do layers; where they go together, what goes is made of units
    const single = host.moves(blocks).every(({ length }) => length === 1);
    return (removed) => {
        const moves = hostMoves(removed);
        if (!single) {
            return moves.filter((move) => !removesLayers(method) || isLayer(move));
        }
        const free = new Set(moves.map(formatMove));
        return units.filter(
            (unit) =>
                unit.every((block) => free.has(formatMove([block]))) && unit.length < blocks.length - removed.length
        );
    };
}

/**
 * What a method that removes blocks one after the other lets go next, of at most so many blocks. Of methods that rank once, that is a
 * single candidate, the lowest of those that are possible; of what goes together, by the mean.
 * @throws BlockprunerError as {@link possibleMoves}
 */
export async function movesOf(
    method: GreedyMethod,
    options: MethodOptions
): Promise<(removed: readonly Block[], most?: number) => Move[]> {
    const { model, calibration, seed = 0, signal } = options;
    const possible = possibleMoves(method, options);
    const fitting = (removed: readonly Block[], most = Infinity) =>
        possible(removed).filter(({ length }) => length <= most);
    if (method === 'blockpruner' || method === 'sleb') {
        return fitting;
    }
    const units = unitsOf(method, options);
    const scores =
        method === 'random'
            ? units.map(randomNumbers(seed))
            : (await model.influence(calibration, units, { signal })).map(({ cosine, change }) =>
                  method === 'relative-magnitude' ? change : 1 - cosine
              );
    const scoreOf = new Map(units.map((unit, i) => [formatMove(unit), scores[i]!]));
    const mean = (move: Move) => {
        const parts = removesLayers(method) ? layersOf(move) : move.map((block) => [block]);
        return parts.reduce((sum, part) => sum + scoreOf.get(formatMove(part))!, 0) / parts.length;
    };
    return (removed, most) =>
        fitting(removed, most)
            .map((move) => ({ move, score: mean(move) }))
            .sort((a, b) => a.score - b.score)
            .slice(0, 1)
            .map(({ move }) => move);
}
