import { formatMove, type Move } from '../runtime/blocks.js';
import { candidateOf, meanOf, type Candidate, type Contest, type Outcome, type Winner } from './contest.js';

/** The best move so far, and its NLLs' total of the means of sequences. */
interface Best extends Winner {
    total: number;
}

/**
 * Finds the move with the lowest rise of the NLL for its worth, with certainty; where all are worth the same, that is
 * the one with the lowest perplexity.
 *
 * No NLL is negative, so a move whose NLL so far exceeds what it must stay below can't win and is stopped. The
 * sequences on which the current model does worst come first, so that the sum gets there soonest. A removal changes the
 * costs of most moves little, so moves are tried in the order of their last costs, which makes the best total known
 * early: that is the idea of lazy greedy selection (Minoux 1978), without its trust that old costs are bounds.
 */
export class ExactSearch {
    /** By move: how much its mean NLL exceeded that of the model of that time, on the sequences that were evaluated. */
    readonly #lastCost = new Map<string, number>();

    /** @param full evaluate every move on every sequence, in the order given, as the paper's code does */
    constructor(private readonly full: boolean) {}

    async choose({ current, moves, worth, evaluate, onProgress, atOnce, together }: Contest): Promise<Outcome> {
        const cost = (move: Move) => (this.#lastCost.get(formatMove(move)) ?? 0) / worth(move);
        const order = this.full ? [...moves] : [...moves].sort((a, b) => cost(a) - cost(b));
        const currentMeans = current.map(meanOf);
        const currentTotal = currentMeans.reduce((sum, value) => sum + value, 0);
        const sequences = [...currentMeans.keys()];
        if (!this.full) {
            sequences.sort((a, b) => currentMeans[b]! - currentMeans[a]!);
        }
        // several devices need work for each, and more than one sequence at once is the better the more there are
        const most = Math.max(atOnce, together);
        const batch = this.full ? sequences.length : most > 1 ? 4 * most : 1;

        let best: Best | undefined;
        // The total of a move of some worth that would be as good as the best one.
        const totalAt = ({ move, total }: Best, itsWorth: number) => {
            const share = itsWorth / worth(move);
            return share === 1 ? total : currentTotal + (total - currentTotal) * share;
        };
        const found = new Map<Move, Candidate>();
        for (const [index, move] of order.entries()) {
            const nll: Float32Array[] = [];
            const most = best ? totalAt(best, worth(move)) : Infinity;
            let [sum, increase, done] = [0, 0, 0];
            // The margin is for rounding: sums that are taken in another order differ in their last digits.
            while (done < sequences.length && !(sum > most * (1 + 1e-9))) {
                const next = sequences.slice(done, done + batch);
                for (const [i, values] of (await evaluate(move, next, index === 0 && !this.full)).entries()) {
                    nll[next[i]!] = values;
                    sum += meanOf(values);
                    increase += meanOf(values) - currentMeans[next[i]!]!;
                }
                done += next.length;
            }
            this.#lastCost.set(formatMove(move), increase / done);
            found.set(move, candidateOf(move, nll, sequences.length, meanOf(currentMeans) + increase / done));
            if (done === sequences.length) {
                const total = nll.reduce((before, values) => before + meanOf(values), 0);
                const earlier = best && moves.indexOf(move) < moves.indexOf(best.move);
                if (!best || total < most || (total === most && earlier)) {
                    best = { move, nll, total };
                }
            }
            onProgress(index + 1);
        }
        return { move: best!.move, nll: best!.nll, candidates: moves.map((move) => found.get(move)!) };
    }
}
