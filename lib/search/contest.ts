// What the two ways to decide a removal, exact.ts and race.ts, share: the question, the answer, and the arithmetic of
// NLLs.
import { mean } from '../evaluation/perplexity.js';
import { bare, type Move } from '../runtime/blocks.js';

/** One removal to decide. */
export interface Contest {
    /** What may go, in the order in which the paper's code tries it: of equal moves, the earlier one wins. */
    moves: readonly Move[];
    /** The current model's NLL of each token: one array of values for each sequence. */
    current: readonly Float32Array[];
    /** Gives the NLL of each token without a move's blocks, one array for each of the sequences asked for. */
    evaluate: (move: Move, sequences: readonly number[], mayWin?: boolean) => Promise<Float32Array[]>;
    /**
     * What a move's rise of the NLL is divided by before it is compared with others: the parameters that go with it, or
     * 1, above 0.
     */
    worth: (move: Move) => number;
    /** How many evaluations should be asked for at once. */
    atOnce: number;
    /** Into how many shares the sequences are divided, each of which only one device can evaluate. */
    shares: number;
    /** How many sequences an evaluation should be of, at least: fewer would hardly take less time. */
    together: number;
    /** Is told how many moves are decided; a move that has been looked at counts in part. */
    onProgress: (decided: number) => void;
}

/** A move that was evaluated on every sequence. */
export interface Winner {
    move: Move;
    /** The NLL of each token without it: one array of values for each sequence. */
    nll: Float32Array[];
}

export interface Outcome extends Winner {
    /** What was found of each move, in the order of the moves. */
    candidates: Candidate[];
}

/** What was found of one candidate for a removal. */
export interface Candidate {
    move: Move;
    /**
     * Perplexity of the model without this move and all blocks removed before; null where it is no finite number. It is
     * exact if all sequences were evaluated. Of a candidate that was stopped earlier, it is what the evaluated
     * sequences let expect.
     */
    perplexity: number | null;
    /** On how many sequences it was evaluated. */
    sequences: number;
}

/** The mean of NLLs; Infinity where one is no number, since a model whose values overflow is never the best. */
export function meanOf(values: ArrayLike<number>): number {
    const found = mean(values);
    return Number.isNaN(found) ? Infinity : found;
}

/** Perplexity as the paper defines it, of one array of NLLs for each sequence; Infinity where a value is no number. */
export function perplexityOfAll(nll: readonly Float32Array[]): number {
    return Math.exp(meanOf(nll.map(meanOf)));
}

/**
 * What was found of a candidate.
 * @param nll NLL of each token of the sequences that were evaluated
 * @param all how many sequences there are
 * @param expected the mean NLL over all sequences that the evaluated ones let expect, if not all were evaluated
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
