import { checkOneOf } from '../check.js';
import { BlockprunerError, MethodError } from '../errors.js';
import { bare, type Block, type BlockKind, type Move } from '../runtime/blocks.js';
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

/** One removal. */
export interface Step {
    removed: Move;
    /** Perplexity of the model without all blocks removed so far. */
    perplexity: number;
    /** All that could have gone, the move that did among them, in the order in which the paper's code tries it. */
    candidates: Candidate[];
    /** How many sequences were evaluated for this removal, over all candidates. */
    evaluations: number;
    seconds: number;
}

/** What a search needs to know of a model. Calls may overlap. */
export interface CandidateEvaluator {
    /** How many calibration sequences there are. */
    readonly sequences: number;
    /** How many of them can be evaluated at once. */
    readonly devices: number;
    /**
     * The NLL of each predicted token without some blocks, one array for each of the sequences asked for.
     * @param mayWin this skip set is likely to be the next model's: keep what evaluations of its candidates can start
     * from
     */
    evaluate(skip: readonly Block[], sequences: readonly number[], mayWin?: boolean): Promise<Float32Array[]>;
    /** From now on, every evaluation leaves out these blocks. */
    remove(removed: readonly Block[]): void;
}

export interface SearchOptions {
    /** What may be removed next. The search ends where there is nothing. */
    moves(removed: readonly Block[]): readonly Move[];
    /** Default: `race`. */
    mode?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
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
    /** In the order of removal. */
    steps: Step[];
    /** NLL of each predicted token, without the removed blocks: one array for each sequence. */
    nll: Float32Array[];
}

/**
 * BlockPruner's iterative search (Zhong et al. 2025, section 3.3 and algorithm 1, as its own code does it): remove the
 * move without which the perplexity is lowest, and repeat on what is left. Candidates stand in the order attention
 * blocks by layer, then FFN blocks by layer; of equal ones the earlier is removed.
 * @throws ArgumentError if the mode or the confidence isn't one that there is
 * @throws BlockprunerError if the perplexity of the dense model is not finite
 * @throws MethodError if the perplexity is not finite whichever block goes next
 */
export async function searchOrder(evaluator: CandidateEvaluator, options: SearchOptions): Promise<SearchResult> {
    const { mode = 'race', confidence = DEFAULT_CONFIDENCE } = options;
    checkOneOf('search', mode, searchModes);
    checkConfidence(confidence);
    const removed: Block[] = [];
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

    for (;;) {
        const moves = [...options.moves(removed)].sort(inThePapersOrder);
        if (moves.length === 0) {
            break;
        }
        const started = performance.now();
        let evaluations = 0;
        const contest: Contest = {
            current,
            moves,
            atOnce: evaluator.devices,
            evaluate: async (move, sequences, mayWin) => {
                const nll = await evaluator.evaluate([...removed, ...move], sequences, mayWin);
                evaluations += sequences.length;
                return nll;
            },
            onProgress: (decided) => options.onEvaluation?.(steps.length + 1, decided, moves.length)
        };
        const { move, nll, candidates } = await search.choose(contest);
        const perplexity = perplexityOfAll(nll);
        if (perplexity > most) {
            break;
        }
        if (!Number.isFinite(perplexity)) {
            const message = `after ${removed.length} removals, the perplexity is not finite whichever block goes next`;
            throw new MethodError(message);
        }
        removed.push(...move);
        evaluator.remove([...removed]);
        current = nll;
        const seconds = (performance.now() - started) / 1000;
        const step: Step = { removed: bare(move), perplexity, candidates, evaluations, seconds };
        steps.push(step);
        options.onStep?.(step, steps.length);
    }
    return { dense, steps, nll: current };
}

const kindsInOrder: readonly BlockKind[] = ['attn', 'ffn', 'linear'];

/**
 * Attention blocks by layer, then FFN blocks by layer, then linear ones, which the paper doesn't have; a move of
 * several blocks stands where its first one does.
 */
function inThePapersOrder([a]: Move, [b]: Move): number {
    return kindsInOrder.indexOf(a!.kind) - kindsInOrder.indexOf(b!.kind) || a!.layer - b!.layer;
}
