import { tokenizeFile } from '../calibration/calibration.js';
import { checkInteger, checkOneOf } from '../check.js';
import { BlockprunerError, option } from '../errors.js';
import type { EvaluateOptions, Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';

/**
 * Two definitions of perplexity.
 *
 * - `paper`: the text is cut into sequences. The perplexity is exp of the mean over sequences of a sequence's mean NLL
 *   over its tokens 1 … n−1.
 * - `llama.cpp`: that of llama.cpp's perplexity tool. Each chunk starts with BOS where the model wants one, and only
 *   the tokens of the second half of each chunk count.
 */
export type PerplexityDefinition = 'paper' | 'llama.cpp';

const definitions: readonly PerplexityDefinition[] = ['paper', 'llama.cpp'];

export interface Perplexity {
    perplexity: number;
    /** The mean negative log-likelihood of a token, by the natural logarithm: ln of the perplexity. */
    nll: number;
    /** How many tokens were predicted. */
    tokens: number;
    sequences: number;
    /** The model that this one was compared with, if there is one. */
    dense?: {
        perplexity: number;
        /**
         * The mean Kullback–Leibler divergence of this model's predictions from the dense one's, KL(dense ‖ this), in
         * nats.
         */
        divergence: number;
        /** The share of the tokens at which both models find the same one likeliest. */
        sameTop: number;
    };
}

/**
 * The mean of some values, summed one after the other, so that the search and an evaluation get the very same number.
 */
export function mean(values: ArrayLike<number>): number {
    let sum = 0;
    for (let i = 0; i < values.length; i++) {
        sum += values[i]!;
    }
    return sum / values.length;
}

/**
 * The mean over equally long sequences of each sequence's mean, such as of NLLs; its exp is then the perplexity.
 * @param nll [sequences × (length − 1)]
 * @param length tokens in a sequence
 * @param first the first position that counts. Default: 0
 */
export function meanNll(nll: Float32Array, length: number, first = 0): number {
    const sequences = Array.from({ length: nll.length / (length - 1) }, (_, i) => i * (length - 1));
    return mean(sequences.map((start) => mean(nll.subarray(start + first, start + length - 1))));
}

/** The perplexity of a model by the paper's definition. */
export async function perplexityOf(model: Model, sequences: Sequences, options: EvaluateOptions = {}): Promise<number> {
    return Math.exp(meanNll(await model.evaluate(sequences, options), sequences.length));
}

export interface TextOptions {
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /** Default: `paper`. */
    definition?: PerplexityDefinition | undefined;
    /** The fields of a JSON Lines sample, see {@link CalibrationOptions}. */
    field?: string | undefined;
    /** The first so many sequences. Default: all. */
    samples?: number | undefined;
    signal?: AbortSignal | undefined;
}

/** @throws ArgumentError if an option is out of its range; nothing is read for that */
export function checkTextOptions({ context, definition, samples }: TextOptions): void {
    checkInteger('context', context, { least: 2 });
    checkInteger('samples', samples, { least: 1 });
    checkOneOf('definition', definition, definitions);
}

/**
 * Cuts a text file into sequences; the tokens after the last full one are dropped.
 * @throws ArgumentError if an option is out of its range
 * @throws BlockprunerError if the text can't be read, or is shorter than one sequence (`llama.cpp`: two)
 */
export async function textSequences(
    model: Model,
    file: string,
    { context = 512, definition = 'paper', field, samples, signal }: TextOptions = {}
): Promise<Sequences> {
    checkTextOptions({ context, definition, samples });
    const all = await tokenizeFile(model, file, field, signal);
    const available = Math.floor(all.length / context);
    const needed = definition === 'llama.cpp' ? 2 : 1; // llama.cpp's tool refuses less than two chunks
    if (available < needed) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${all.length} tokens, and ${needed * context} are needed; ` +
                `give a longer text or a smaller ${option('context')}`
        );
    }
    const tokens = all.slice(0, Math.min(available, samples ?? Infinity) * context);
    if (definition === 'llama.cpp' && model.bos !== null) {
        for (let start = 0; start < tokens.length; start += context) {
            tokens[start] = model.bos;
        }
    }
    return { tokens, length: context };
}

export interface PerplexityOptions extends EvaluateOptions {
    /** Default: `paper`. */
    definition?: PerplexityDefinition | undefined;
    /**
     * Compare with this model, which must have the same vocabulary. It may be the same model: then all its blocks
     * count.
     */
    dense?: Model | undefined;
    /** What computes the NLLs in the place of the model; with `dense`, the model does. Default: the model. */
    evaluator?: Pick<Model, 'evaluate'> | undefined;
}

/** Measures the perplexity of a model on sequences that {@link textSequences} has cut for the same definition. */
export async function measurePerplexity(
    model: Model,
    sequences: Sequences,
    { definition = 'paper', dense, evaluator = model, ...evaluation }: PerplexityOptions = {}
): Promise<Perplexity> {
    const { tokens, length } = sequences;
    const first = definition === 'llama.cpp' ? Math.floor(length / 2) : 0;
    const meanOf = (values: Float32Array) => meanNll(values, length, first);
    const compared = dense && (await model.diverge(sequences, dense, evaluation));
    const nll = meanOf(compared?.nll ?? (await evaluator.evaluate(sequences, evaluation)));
    return {
        perplexity: Math.exp(nll),
        nll,
        tokens: (tokens.length / length) * (length - 1 - first),
        sequences: tokens.length / length,
        ...(compared && {
            dense: {
                perplexity: Math.exp(meanOf(compared.denseNll)),
                divergence: meanOf(compared.divergence),
                sameTop: meanOf(compared.sameTop)
            }
        })
    };
}

/** Measures the perplexity of a model on a text file; errors are those of {@link textSequences}. */
export async function textPerplexity(
    model: Model,
    file: string,
    options: TextOptions & PerplexityOptions = {}
): Promise<Perplexity> {
    return measurePerplexity(model, await textSequences(model, file, options), options);
}
