import { bare, type Block, type Move } from '../runtime/blocks.js';
import { BlockprunerError, MethodError } from '../errors.js';
import { perplexityOfAll, type Candidate, type Contest } from './contest.js';
import { ExactSearch } from './exact.js';
import { DEFAULT_CONFIDENCE, Race } from './race.js';

/**
 * How the next block is chosen. `full`: every candidate on every sequence, as the paper's code does. `exact`: the same
 * choice, but candidates that can no longer win are stopped. `race`: candidates that lose by what was seen of them are
 * dropped, with a stated probability of being wrong.
 */
export type SearchMode = 'full' | 'exact' | 'race';

export interface Step {
    removed: Move;
    /** of the model without all blocks removed so far */
    perplexity: number;
    /** all that could have gone instead, and what did, in the order in which the paper's code tries them */
    candidates: Candidate[];
    /** sequences evaluated for this removal, over all candidates */
    evaluations: number;
    seconds: number;
}

/** What a search needs to know of a model; it knows nothing of files. Calls may overlap. */
export interface Evaluator {
    /** How many calibration sequences there are. */
    readonly sequences: number;
    /** How many can be evaluated at once. */
    readonly devices: number;
    /**
     * NLL of each predicted token, of each of the sequences asked for, without some blocks.
     * @param mayWin this is likely to be the next model: keep what evaluations of its candidates can start from
     */
    evaluate(skip: readonly Block[], sequences: readonly number[], mayWin?: boolean): Promise<Float32Array[]>;
    /** From now on, every evaluation leaves out these blocks. */
    remove(removed: readonly Block[]): void;
}

export interface SearchOptions {
    /** What may be removed next. None ends the search. */
    moves(removed: readonly Block[]): readonly Move[];
    /** Default: `race`. */
    mode?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
    /** The highest perplexity that a removal may lead to. Default: no limit. */
    limit?: (dense: number) => number;
    onStart?: (dense: number) => void;
    /** After each evaluation: how many of this removal's candidates are decided; parts count. */
    onEvaluation?: (step: number, decided: number, candidates: number) => void;
    onStep?: (step: Step, number: number) => void;
}

export interface SearchResult {
    dense: number;
    /** In the order of removal. */
    steps: Step[];
    /** NLL of each predicted token of each sequence, of the model without the removed blocks. */
    nll: Float32Array[];
}

/**
 * BlockPruner's iterative search (Zhong et al. 2025, section 3.3 and algorithm 1, as its own code does it): remove the
 * block without which the perplexity is lowest, and repeat on what is left. Candidates stand in the order attention blocks
 * by layer, then FFN blocks by layer; of equal ones the earlier is removed.
 * @throws BlockprunerError if the perplexity is not finite, of the model or whichever block goes next
 */
export async function searchOrder(evaluator: Evaluator, options: SearchOptions): Promise<SearchResult> {
    const { mode = 'race', confidence = DEFAULT_CONFIDENCE } = options;
    const byPaper = ([a]: Move, [b]: Move) => (a!.kind === b!.kind ? a!.layer - b!.layer : a!.kind === 'attn' ? -1 : 1);
    const removed: Block[] = [];
    const steps: Step[] = [];
    const all = Array.from({ length: evaluator.sequences }, (_, sequence) => sequence);
    const search = mode === 'race' ? new Race(confidence) : new ExactSearch(mode === 'full');

    let current = await evaluator.evaluate([], all, true);
    const dense = perplexityOfAll(current);
    if (!Number.isFinite(dense)) {
        throw new BlockprunerError(
            'UNSUPPORTED',
            `the model's perplexity on the calibration text is ${dense}: it can't be searched`
        );
    }
    options.onStart?.(dense);
    const limit = options.limit?.(dense) ?? NaN; // none: nothing is above it

    for (;;) {
        const candidates = [...options.moves(removed)].sort(byPaper);
        if (candidates.length === 0) {
            break;
        }
        const started = performance.now();
        let evaluations = 0;
        const contest: Contest = {
            current,
            candidates,
            atOnce: evaluator.devices,
            evaluate: async (candidate, sequences, mayWin) => {
                const nll = await evaluator.evaluate([...removed, ...candidate], sequences, mayWin);
                evaluations += sequences.length;
                return nll;
            },
            onProgress: (decided) => options.onEvaluation?.(steps.length + 1, decided, candidates.length)
        };
        const { move, nll, candidates: found } = await search.choose(contest);
        const perplexity = perplexityOfAll(nll);
        if (perplexity > limit) {
            break;
        }
        if (!Number.isFinite(perplexity)) {
            throw new MethodError(
                `after ${removed.length} removals, the perplexity is not finite whichever block goes next`
            );
        }
        removed.push(...move);
        evaluator.remove([...removed]);
        current = nll;
        const step: Step = {
            removed: bare(move),
            perplexity,
            candidates: found,
            evaluations,
            seconds: (performance.now() - started) / 1000
        };
        steps.push(step);
        options.onStep?.(step, steps.length);
    }
    return { dense, steps, nll: current };
}
