import { formatMove, type Move } from '../runtime/blocks.js';
import { candidateOf, meanOf, type Candidate, type Contest, type Outcome, type Winner } from './contest.js';

/**
 * Finds the candidate with the lowest perplexity, with certainty.
 *
 * No NLL is negative, so a candidate whose NLL so far exceeds the best total can't win: it is stopped. Sequences on which
 * the current model does worst come first, for the sum to get there soonest. A removal changes most candidates' costs
 * little, so the candidates are tried in the order of their last costs, for the best total to be known early: the idea of
 * lazy greedy selection (Minoux 1978), without its trust that old costs are bounds.
 */
export class ExactSearch {
    /** Mean NLL over that of the model then, on the sequences that were evaluated. */
    readonly #lastCost = new Map<string, number>();

    /** @param full evaluate every candidate on every sequence, in the order given, as the paper's code does */
    constructor(private readonly full: boolean) {}

    async choose({ current, candidates, evaluate, onProgress, atOnce }: Contest): Promise<Outcome> {
        const cost = (move: Move) => this.#lastCost.get(formatMove(move)) ?? 0;
        const order = this.full ? [...candidates] : [...candidates].sort((a, b) => cost(a) - cost(b));
        const currentMeans = current.map(meanOf);
        const sequences = [...currentMeans.keys()];
        if (!this.full) {
            sequences.sort((a, b) => currentMeans[b]! - currentMeans[a]!);
        }
        const batch = this.full ? sequences.length : atOnce > 1 ? 4 * atOnce : 1; // several devices need work for each

        let best: (Winner & { total: number }) | undefined;
        const found = new Map<Move, Candidate>();
        for (const [index, move] of order.entries()) {
            const nll: Float32Array[] = [];
            let sum = 0,
                increase = 0,
                done = 0;
            // a little more than the best total, since sums in another order round otherwise
            while (done < sequences.length && !(best && sum > best.total * (1 + 1e-9))) {
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
                const earlier = best && candidates.indexOf(move) < candidates.indexOf(best.move);
                if (!best || total < best.total || (total === best.total && earlier)) {
                    best = { move, nll, total };
                }
            }
            onProgress(index + 1);
        }
        return { move: best!.move, nll: best!.nll, candidates: candidates.map((move) => found.get(move)!) };
    }
}
