import { checkOneOf } from '../check.js';
import { BlockprunerError, MethodError } from '../errors.js';
import { bare, formatBlock, formatMove, type Block, type BlockKind, type Move } from '../runtime/blocks.js';
import { perplexityOfAll, type Candidate, type Contest } from './contest.js';
import { ExactSearch } from './exact.js';
import { checkConfidence, DEFAULT_CONFIDENCE, Race } from './race.js';

/**
 * How the next removal is decided. `full`: every candidate on every sequence, as the paper's code does. `exact`: the
 * same choice, but candidates that can no longer win are stopped. `race`: candidates that lose by what was seen of them
 * are dropped, with a stated probability of being wrong.
 */
export type SearchMode = 'full' | 'exact' | 'race';

export const searchModes: readonly SearchMode[] = ['full', 'exact', 'race'];

/** One removal, or one removal in the place of another. */
export interface Step {
    removed: Move;
    /** What is there again for it. */
    restored?: Move;
    /** Perplexity of the model without all blocks removed so far. */
    perplexity: number;
    /**
     * All that could have gone, the move that did and what was restored among them, in the order in which the paper's
     * code tries it.
     */
    candidates: Candidate[];
    /**
     * How many sequences were evaluated for this removal, over all candidates, and for what was looked at again in vain
     * right before.
     */
    evaluations: number;
    seconds: number;
}

/** What a search needs to know of a model. Calls may overlap. */
export interface CandidateEvaluator {
    /** How many calibration sequences there are. */
    readonly sequences: number;
    /** How many of them can be evaluated at once. */
    readonly devices: number;
    /** Into how many shares the sequences are divided, each of which only one device can evaluate. Default: 1. */
    readonly shares?: number;
    /**
     * How many sequences of a device take hardly more time than one: evaluations are of so many at least. Default: 1.
     */
    readonly together?: number;
    /**
     * The NLL of each predicted token without some blocks, one array for each of the sequences asked for.
     * @param mayWin this skip set is likely to be the next model's: keep what evaluations of its candidates can start
     * from
     */
    evaluate(skip: readonly Block[], sequences: readonly number[], mayWin?: boolean): Promise<Float32Array[]>;
    /** From now on, every evaluation leaves out these blocks. */
    remove(removed: readonly Block[]): void;
}

/** An evaluator that a search is made by, and that is disposed at its end. */
export interface SearchEvaluator extends CandidateEvaluator {
    /** Whether linear blocks stand in the gaps that evaluations leave. */
    readonly linear: boolean;
    /** At how many boundaries of each sequence there is room to keep the residual stream, and the bytes of it now. */
    readonly kept: { boundaries: number; bytes: number };
    /**
     * What must stay the same when a stopped search goes on, in numbers, beside what is known of its model and text:
     * they are asked for when a search begins, and given when it goes on. Default: nothing.
     */
    readonly terms?: { ask: () => Promise<number[]>; give: (terms: readonly number[]) => Promise<void> };
    /** Frees what it takes. */
    dispose(): void | Promise<void>;
}

export interface SearchOptions {
    /** What may be removed next. The search ends where there is nothing. */
    moves(removed: readonly Block[]): readonly Move[];
    /**
     * What a move is worth, above 0: its rise of the NLL is divided by that before it is compared with others. Default:
     * 1 for each, as in the paper.
     */
    worth?: ((move: Move, removed: readonly Block[]) => number) | undefined;
    /** Default: `race`. */
    mode?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
    /**
     * How often each removal is looked at again when the search is at its end, and what could have gone in its place,
     * itself among them, beside all others. What leaves the lowest perplexity goes. Each removal was the best when less
     * was gone, the first ones when nothing was. Default: never, as in the paper.
     */
    swaps?: { rounds: number; moves(others: readonly Block[], instead: Move): readonly Move[] } | undefined;
    /**
     * The search ends before a removal would lead to a higher perplexity than this, given the dense model's. Default:
     * any.
     */
    maxPerplexity?: ((dense: number) => number) | undefined;
    onStart?: (dense: number) => void;
    /**
     * After each evaluation: how many of a step's candidates are decided; one that has been looked at counts in part.
     */
    onEvaluation?: (step: number, decided: number, candidates: number) => void;
    onStep?: (step: Step, number: number) => void;
}

export interface SearchResult {
    /** Perplexity of the model as it is. */
    dense: number;
    /** One after the other; {@link movesAfter} tells what is gone after them. */
    steps: Step[];
    /** NLL of each predicted token, without the removed blocks: one array for each sequence. */
    nll: Float32Array[];
}

/**
 * BlockPruner's iterative search (Zhong et al. 2025, section 3.3 and algorithm 1, as its own code does it): remove the
 * move without which the perplexity is lowest (or, where moves differ in worth, rises least for its worth), and repeat
 * on what is left. Candidates stand in the order attention blocks by layer, then FFN blocks by layer; of equal ones the
 * earlier is removed.
 * @throws ArgumentError if the mode or the confidence isn't one that there is
 * @throws BlockprunerError if the perplexity of the dense model is not finite
 * @throws MethodError if the perplexity is not finite whichever block goes next
 */
export async function searchOrder(evaluator: CandidateEvaluator, options: SearchOptions): Promise<SearchResult> {
    const { mode = 'race', confidence = DEFAULT_CONFIDENCE, worth = () => 1, swaps } = options;
    checkOneOf('search', mode, searchModes);
    checkConfidence(confidence);
    const steps: Step[] = [];
    const all = Array.from({ length: evaluator.sequences }, (_, sequence) => sequence);
    const search = mode === 'race' ? new Race(confidence) : new ExactSearch(mode === 'full');

    let current = await evaluator.evaluate([], all, true);
    const dense = perplexityOfAll(current);
    if (!Number.isFinite(dense)) {
        const message = `the model's perplexity on the calibration text is ${dense}: it can't be searched`;
        throw new BlockprunerError('UNSUPPORTED', message);
    }
    options.onStart?.(dense);
    const most = options.maxPerplexity?.(dense) ?? Infinity;

    let [decisions, evaluations, started] = [0, 0, performance.now()];
    const choose = async (contest: Pick<Contest, 'moves' | 'current' | 'worth'>, removed: readonly Block[]) => {
        const { length } = contest.moves;
        const outcome = await search.choose({
            ...contest,
            atOnce: evaluator.devices,
            shares: evaluator.shares ?? 1,
            together: (evaluator.together ?? 1) * (evaluator.shares ?? 1),
            evaluate: async (move, sequences, mayWin) => {
                const nll = await evaluator.evaluate([...removed, ...move], sequences, mayWin);
                evaluations += sequences.length;
                return nll;
            },
            onProgress: (decided) => options.onEvaluation?.(decisions + 1, decided, length)
        });
        decisions++;
        return { ...outcome, perplexity: perplexityOfAll(outcome.nll) };
    };
    const take = (step: Omit<Step, 'evaluations' | 'seconds'>, nll: Float32Array[]) => {
        const seconds = (performance.now() - started) / 1000;
        steps.push({ ...step, evaluations, seconds });
        [current, evaluations, started] = [nll, 0, performance.now()];
        options.onStep?.(steps.at(-1)!, steps.length);
    };

    for (;;) {
        const removed = movesAfter(steps).flat();
        const moves = [...options.moves(removed)].sort(inThePapersOrder);
        if (moves.length === 0) {
            break;
        }
        const contest = { moves, current, worth: (move: Move) => worth(move, removed) };
        const { move, nll, perplexity, candidates } = await choose(contest, removed);
        if (perplexity > most) {
            break;
        }
        if (!Number.isFinite(perplexity)) {
            const message = `after ${removed.length} removals, the perplexity is not finite whichever block goes next`;
            throw new MethodError(message);
        }
        evaluator.remove([...removed, ...move]);
        take({ removed: bare(move), perplexity, candidates }, nll);
    }

    for (let round = 0, before = -1; round < (swaps?.rounds ?? 0) && before !== steps.length; round++) {
        before = steps.length;
        for (const earlier of movesAfter(steps)) {
            const rest = movesAfter(steps)
                .filter((move) => !isSame(move, earlier))
                .flat();
            const moves = [...swaps!.moves(rest, earlier)].sort(inThePapersOrder);
            // An empty gap that has joined one with a linear block is not offered as such.
            const same = moves.find((move) => isSame(move, earlier)) ?? moves.find((move) => isOf(move, earlier));
            if (moves.length < 2 || !same) {
                continue; // the others could not have gone without it
            }
            evaluator.remove(rest);
            const contest = { moves, current: await evaluator.evaluate(rest, all, true), worth: () => 1 };
            const { move, nll, perplexity, candidates } = await choose(contest, rest);
            if (perplexity < perplexityOfAll(current) && !isSame(move, same)) {
                take({ removed: bare(move), restored: earlier, perplexity, candidates }, nll);
            }
        }
    }
    return { dense, steps, nll: current };
}

/** The moves that are made after some steps: those of a swap stand where those stood that were restored. */
export function movesAfter(steps: readonly Pick<Step, 'removed' | 'restored'>[]): Move[] {
    const moves: Move[] = [];
    for (const { removed, restored } of steps) {
        const index = restored ? moves.findIndex((move) => isSame(move, restored)) : moves.length;
        moves[index] = removed;
    }
    return moves;
}

/** Says what a step did: `attn.3`, or `attn.3 for ffn.7`. */
export function formatStep({ removed, restored }: Pick<Step, 'removed' | 'restored'>): string {
    return `${formatMove(removed)}${restored ? ` for ${formatMove(restored)}` : ''}`;
}

function isSame(a: Move, b: Move): boolean {
    return formatMove(a) === formatMove(b);
}

/** Whether two moves are of the same blocks, whatever they leave in their gaps. */
function isOf(a: Move, b: Move): boolean {
    return a.map(formatBlock).join() === b.map(formatBlock).join();
}

const kindsInOrder: readonly BlockKind[] = ['attn', 'ffn', 'linear'];

/**
 * Attention blocks by layer, then FFN blocks by layer, then linear ones, which the paper doesn't have; a move of
 * several blocks stands where its first one does.
 */
function inThePapersOrder([a]: Move, [b]: Move): number {
    return kindsInOrder.indexOf(a!.kind) - kindsInOrder.indexOf(b!.kind) || a!.layer - b!.layer;
}
