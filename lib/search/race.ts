import { Matrix, solve } from 'ml-matrix';
import { probit, sampleVariance } from 'simple-statistics';
import { formatMove, type Move } from '../runtime/blocks.js';
import { checkNumber } from '../check.js';
import { ArgumentError } from '../errors.js';
import { candidateOf, meanOf, type Contest, type Outcome } from './contest.js';

/**
 * Tokens of one text are alike, so a sequence tells less than as many independent tokens would: its mean varies more,
 * by a design effect of 1 + ρ·(tokens − 1) (Kish 1965, section 5.4). In what regression leaves of costs, SmolLM2-135M
 * has a ρ of 0 to 0.002 for blocks that may win, and up to 0.008 for others, by sequences of 256 tokens.
 */
const INTRACLASS_CORRELATION = 0.002;

/**
 * The variance of sequences' means is known badly from a few of them, and well, but under the assumption above, from
 * their tokens. The two are averaged as a moderated variance is (Smyth 2004, section 4), the tokens' one counting as
 * this many degrees of freedom.
 */
const PRIOR_FREEDOM = 4;

/** The probability that a removal is the one that `exact` makes, where none is asked for. */
export const DEFAULT_CONFIDENCE = 0.999;

/** @throws ArgumentError unless a race can have this confidence */
export function checkConfidence(confidence: number | undefined): void {
    checkNumber('confidence', confidence);
    if (confidence !== undefined && !(confidence >= 0.5 && confidence < 1)) {
        const hint = confidence === 1 ? "what is certain is the search 'exact'" : undefined;
        throw new ArgumentError('confidence', 'from 0.5 to below 1', confidence, hint);
    }
}

/** With fewer degrees of freedom, a variance is too uncertain for the normal approximation. */
const LEAST_FREEDOM = 30;

/**
 * The costs at the first removal are what all later costs are compared with. They are therefore measured more exactly
 * than this removal needs, by these factors: the first for the best 40 %, which will soon be compared, the second for
 * the rest.
 */
const FIRST_REMOVAL_CARE = [3, 1.4] as const;

/** A mean over all sequences, estimated from some of them. */
interface Estimate {
    mean: number;
    variance: number;
}

/** The costs of a move at one removal: how much its NLL exceeds that of the current model. */
interface Measured extends Estimate {
    /** By sequence, the cost of each token; undefined for a sequence that wasn't evaluated. */
    costs: (Float32Array | undefined)[];
    /** The NLL of each token in the model that was current then. */
    current: Covariate;
}

interface Racer extends Measured {
    move: Move;
    /** What its costs are divided by. */
    worth: number;
    /** The order in which its sequences are evaluated. */
    order: number[];
    /** By sequence, the NLL of each token. */
    nll: Float32Array[];
    /** How many sequences were evaluated. */
    done: number;
}

/** Something that is known of each token and that costs may depend on, with its mean over all sequences. */
interface Covariate {
    values: readonly (Float32Array | undefined)[];
    whole: Estimate;
}

/**
 * Finds the move with the lowest rise of the NLL for its worth, and is wrong about it at most with a chosen
 * probability.
 *
 * It is a race (Maron and Moore 1994): moves are evaluated on more and more sequences, and one is dropped once its cost
 * is above that of the best by more than chance explains. The only error is to drop the move that would win, and it can
 * happen only after a look at that move, so all looks share the error's probability.
 *
 * How exactly is a cost known from m of the n sequences? The calibration set is all that there is to know, so chance
 * moves a mean by a variance of s²/m·(1 − m/n) (Cochran 1977, section 2.6). A removal changes costs little, so the
 * move's own costs at an earlier removal tell most of them, and so do the current model's NLL and the best move's
 * costs, which are known for all sequences. What is left after a regression on these, token by token, is s² (the
 * generalized regression estimator, Särndal, Swensson and Wretman 1992, section 6.4; pairing with the leader, as races
 * do, is the case of one covariate).
 *
 * No move is dropped unseen, since a removal can make other blocks less important too.
 */
export class Race {
    /** By move, what earlier removals told about it, less what is both older and less exact than something else. */
    readonly #memory = new Map<string, Measured[]>();

    /**
     * @param confidence the probability that a removal is the one that `exact` makes, under the normal approximation
     */
    constructor(private readonly confidence: number) {}

    async choose({ current, moves, worth, evaluate, onProgress, atOnce, shares, together }: Contest): Promise<Outcome> {
        const n = current.length;
        const shuffle = shuffled(n);
        // Where each device has sequences of its own, the first looks are spread over all. A block's first look is
        // always at the same ones, since it is compared with its earlier looks.
        const turn = ([block]: Move) => (shares > 1 ? (2 * block!.layer + Number(block!.kind === 'ffn')) % n : 0);
        const surely = probit(1 - (1 - this.confidence) / mostLooks(n));
        const isFirst = this.#memory.size === 0;
        const bound = (racer: Racer) => {
            const better = isFirst ? racers.filter((other) => rate(other) < rate(racer)).length : 0;
            return surely * (isFirst ? FIRST_REMOVAL_CARE[better < 0.4 * racers.length ? 0 : 1] : 1);
        };
        const model: Covariate = { values: current, whole: { mean: meanOf(current.map(meanOf)), variance: 0 } };

        const racers: Racer[] = moves.map((move) => ({
            move,
            worth: worth(move),
            current: model,
            order: [...shuffle.slice(turn(move)), ...shuffle.slice(0, turn(move))],
            nll: [],
            costs: [],
            done: 0,
            mean: this.#lastMean(move),
            variance: Infinity
        }));
        let best: Racer | undefined;
        let decided = 0;
        const measure = async (racer: Racer, wanted: number, mayWin = false) => {
            const size = Math.min(n, racer.done + Math.ceil((wanted - racer.done) / together) * together);
            const sequences = racer.order.slice(racer.done, size);
            const nll = await evaluate(racer.move, sequences, mayWin);
            sequences.forEach((sequence, i) => {
                racer.nll[sequence] = nll[i]!;
                racer.costs[sequence] = nll[i]!.map((value, token) => value - current[sequence]![token]!);
            });
            racer.done = size;
            if (size === n) {
                racer.mean = meanOf(racer.nll.map(meanOf)) - model.whole.mean;
                racer.variance = 0;
                if (
                    !best ||
                    excess(racer, best) < 0 ||
                    (excess(racer, best) === 0 && racers.indexOf(racer) < racers.indexOf(best))
                ) {
                    best = racer;
                }
            }
            report();
        };
        // This happens after all measurements of a round, so that the order in which devices finish changes nothing.
        const estimate = (measured: readonly Racer[]) => {
            for (const racer of measured.filter(({ done }) => done < n)) {
                Object.assign(racer, this.#estimate(racer, n, best));
            }
        };
        // A move that has been looked at counts as decided in part.
        const report = () =>
            onProgress(decided + 0.3 * racers.filter(({ done }) => done > 0).length * (1 - decided / racers.length));

        // The likely winner comes first, since all others are compared with it.
        const likely = lowest(racers);
        if (Number.isFinite(likely.mean)) {
            await measure(likely, n, true);
        }
        const firstLook = best ? 1 : Math.min(2, n);
        const unseen = racers.filter((racer) => racer.done < firstLook);
        await Promise.all(unseen.map((racer) => measure(racer, firstLook)));
        estimate(unseen);
        if (!best) {
            await measure(lowest(racers), n, true);
        }

        for (;;) {
            const left = racers.filter(
                (racer) => racer.done < n && !(excess(racer, best!) > bound(racer) * Math.sqrt(racer.variance))
            );
            decided = racers.length - left.length;
            report();
            if (left.length === 0) {
                break;
            }
            // The most promising come first: one that wins drops others.
            const next = left.sort((a, b) => rate(a) - rate(b)).slice(0, atOnce);
            await Promise.all(
                next.map((racer) => measure(racer, nextLook(racer, n, excess(racer, best!) / bound(racer))))
            );
            estimate(next);
        }
        racers.forEach((racer) => this.#remember(racer));
        return {
            move: best!.move,
            nll: best!.nll,
            candidates: racers.map(({ move, nll, mean }) => candidateOf(move, nll, n, model.whole.mean + mean))
        };
    }

    /** The mean cost over all sequences, as exactly as the evaluated ones tell it. */
    #estimate(racer: Racer, n: number, best: Racer | undefined): Estimate {
        const sequences = racer.order.slice(0, racer.done);
        const common: Covariate[] = [racer.current, ...(best ? [{ values: best.costs, whole: best }] : [])];
        const estimates = [estimateMean(racer.costs, sequences, n, [])];
        for (const before of this.#memory.get(formatMove(racer.move)) ?? []) {
            const both = sequences.filter((sequence) => before.costs[sequence]);
            estimates.push(
                estimateMean(racer.costs, both, n, [{ values: before.costs, whole: before }, before.current, ...common])
            );
        }
        return estimates.reduce((a, b) => (b.variance < a.variance ? b : a));
    }

    #remember({ move, costs, current, mean, variance }: Racer): void {
        const older = this.#memory.get(formatMove(move)) ?? [];
        this.#memory.set(formatMove(move), [
            { costs, current, mean, variance },
            ...older.filter((measured) => measured.variance < variance)
        ]);
    }

    #lastMean(move: Move): number {
        return this.#memory.get(formatMove(move))?.[0]!.mean ?? Infinity;
    }
}

/** Estimates the mean of costs over n sequences from the tokens of some of them, by a regression on covariates. */
function estimateMean(
    costs: readonly (Float32Array | undefined)[],
    sequences: readonly number[],
    n: number,
    covariates: readonly Covariate[]
): Estimate {
    const m = sequences.length;
    if (m === 0) {
        return { mean: Infinity, variance: Infinity };
    }
    if (!Number.isFinite(meanOf(sequences.map((sequence) => meanOf(costs[sequence]!))))) {
        return { mean: Infinity, variance: 0 };
    }
    // Plain loops over typed arrays: this runs for thousands of tokens of every candidate, and a GPU waits for it.
    const size = covariates.length + 1;
    const x = new Float64Array(size).fill(1);
    const eachToken = (sequence: number, visit: (token: number) => void) => {
        const known = covariates.map(({ values }) => values[sequence]!);
        for (let token = 0; token < costs[sequence]!.length; token++) {
            for (let i = 1; i < size; i++) {
                x[i] = known[i - 1]![token]!;
            }
            visit(token);
        }
    };
    const squares = Array.from({ length: size }, () => new Float64Array(size));
    const products = new Float64Array(size);
    let tokens = 0;
    for (const sequence of sequences) {
        const own = costs[sequence]!;
        eachToken(sequence, (token) => {
            for (let i = 0; i < size; i++) {
                products[i]! += x[i]! * own[token]!;
                for (let j = 0; j < size; j++) {
                    squares[i]![j]! += x[i]! * x[j]!;
                }
            }
        });
        tokens += own.length;
    }
    for (let i = 1; i < size; i++) {
        squares[i]![i] = squares[i]![i]! * (1 + 1e-9) + 1e-12; // two covariates may be equal
    }
    const slopes = solve(new Matrix(squares.map((row) => [...row])), Matrix.columnVector([...products])).to1DArray();
    const whole = covariates.map((covariate) => covariate.whole);
    const mean = slopes[0]! + whole.reduce((sum, covariate, i) => sum + slopes[i + 1]! * covariate.mean, 0);

    let within = 0;
    const residuals = sequences.map((sequence) => {
        const left = new Float32Array(costs[sequence]!.length);
        eachToken(sequence, (token) => {
            let expected = 0;
            for (let i = 0; i < size; i++) {
                expected += slopes[i]! * x[i]!;
            }
            left[token] = costs[sequence]![token]! - expected;
        });
        const average = meanOf(left);
        within += left.reduce((sum, value) => sum + (value - average) ** 2, 0);
        return average;
    });
    const freedom = tokens - m - covariates.length;
    if (freedom < LEAST_FREEDOM) {
        return { mean, variance: Infinity };
    }
    const designEffect = 1 + INTRACLASS_CORRELATION * (tokens / m - 1);
    const ofTokens = (designEffect * within) / freedom / (tokens / m);
    const ofSequences = m > 1 ? sampleVariance(residuals) : 0;
    const fromWhole = whole.reduce((sum, covariate, i) => sum + slopes[i + 1]! ** 2 * covariate.variance, 0);
    const ofOne = (PRIOR_FREEDOM * ofTokens + (m - 1) * ofSequences) / (PRIOR_FREEDOM + m - 1);
    return { mean, variance: (ofOne / m) * (1 - m / n) + fromWhole };
}

/** How many sequences a move should be evaluated on next: as many as make its variance needed², within bounds. */
function nextLook({ done, variance }: Racer, n: number, needed: number): number {
    const ofOne = variance / (1 / done - 1 / n);
    const enough = needed > 0 ? Math.ceil(1 / (needed ** 2 / ofOne + 1 / n)) : n;
    // A quarter more at least, so that looks are few; twice as many at most, since the variance is an estimate itself.
    return Math.min(n, Math.max(Math.ceil(1.25 * done), done + 1, Math.min(enough, 2 * done)));
}

/** How many looks at a move there can be, at most. */
function mostLooks(n: number): number {
    let looks = 0;
    for (let done = 1; done < n; done = Math.max(Math.ceil(1.25 * done), done + 1)) {
        looks++;
    }
    return Math.max(looks, 1);
}

function rate({ mean, worth }: Racer): number {
    return mean / worth;
}

/** By how much a move's cost exceeds what would be as good as the best. */
function excess(racer: Racer, best: Racer): number {
    return racer.mean - best.mean * (racer.worth / best.worth);
}

function lowest(racers: readonly Racer[]): Racer {
    return racers.reduce((a, b) => (rate(b) < rate(a) ? b : a));
}

/** The numbers 0 … n−1 in an order that is always the same and has nothing to do with the text. */
function shuffled(n: number): number[] {
    // The multiples of the golden ratio, modulo 1, are spread evenly and never in order.
    return Array.from({ length: n }, (_, i) => i).sort(
        (a, b) => ((a * 0.6180339887498949) % 1) - ((b * 0.6180339887498949) % 1)
    );
}
