import { bare, type Move } from '../runtime/blocks.js';

/** One removal to decide. */
export interface Contest {
    /** In the order in which the paper's code tries them: of equal ones the earlier is removed. */
    candidates: readonly Move[];
    /** NLL of each token of each sequence, of the current model. */
    current: readonly Float32Array[];
    evaluate: (candidate: Move, sequences: readonly number[], mayWin?: boolean) => Promise<Float32Array[]>;
    /** How many evaluations should be asked for at once. */
    atOnce: number;
    /** Tells how many candidates are decided; parts count. */
    onProgress: (decided: number) => void;
}

/** A candidate that was evaluated on every sequence. */
export interface Winner {
    move: Move;
    nll: Float32Array[];
}

/** The winner, and what was found of all candidates, in their order. */
export interface Outcome extends Winner {
    candidates: Candidate[];
}

/** What was found of one candidate of a removal. */
export interface Candidate {
    move: Move;
    /**
     * Of the model without it and all blocks removed before; null where that is no finite number. It is exact if all sequences
     * were evaluated; of a candidate that was stopped before, it is what those that were evaluated let expect.
     */
    perplexity: number | null;
    /** sequences that it was evaluated on */
    sequences: number;
}

/** exp of the mean over sequences of a sequence's mean NLL. */
export function perplexityOfAll(nll: readonly Float32Array[]): number {
    return Math.exp(meanOf(nll.map(meanOf)));
}

/**
 * What was found of a candidate.
 * @param nll of each token of the sequences that were evaluated
 * @param expected the mean NLL over all sequences that these let expect, where they aren't all
 */
export function candidateOf(
    move: Move,
    nll: readonly (Float32Array | undefined)[],
    all: number,
    expected: number
): Candidate {
    const seen = nll.filter((values) => values !== undefined);
    const perplexity = seen.length === all ? perplexityOfAll(seen) : Math.exp(expected);
    return { move: bare(move), perplexity: Number.isFinite(perplexity) ? perplexity : null, sequences: seen.length };
}

/** Infinity where a value is no number: an overflow is never the best. */
export function meanOf(values: ArrayLike<number>): number {
    let sum = 0;
    for (let i = 0; i < values.length; i++) {
        sum += values[i]!;
    }
    return Number.isNaN(sum) ? Infinity : sum / values.length;
}
