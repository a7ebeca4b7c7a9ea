import { readSamples } from '../calibration/calibration.js';
import { BlockprunerError, option } from '../errors.js';
import type { EvaluateOptions, Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';

/**
 * Two definitions of perplexity.
 * `paper`: the text is cut into sequences; exp of the mean over sequences of a sequence's mean NLL over its tokens 1 … n−1.
 * `llama.cpp`: as its perplexity tool: each chunk starts with BOS where the model wants one, and only the tokens of the
 * second half of each chunk count.
 */
export type PerplexityDefinition = 'paper' | 'llama.cpp';

export interface Perplexity {
    perplexity: number;
    /** mean negative log-likelihood of a token, natural logarithm: ln of the perplexity */
    nll: number;
    /** tokens that were predicted */
    tokens: number;
    sequences: number;
    /** if there is a model to compare with */
    dense?: {
        perplexity: number;
        /** mean Kullback–Leibler divergence from its predictions to this model's, KL(dense ‖ this), in nats */
        divergence: number;
        /** share of the tokens at which both models find the same one likeliest */
        sameTop: number;
    };
}

/** Mean over equally long sequences of a sequence's mean, such as of its NLL, each with its values at positions `first` … length−2 of [sequences × (length − 1)]. */
export function meanNll(nll: Float32Array, length: number, first = 0): number {
    const sequences = nll.length / (length - 1);
    let total = 0;
    for (let sequence = 0; sequence < sequences; sequence++) {
        let sum = 0;
        for (let i = first; i < length - 1; i++) {
            sum += nll[sequence * (length - 1) + i]!;
        }
        total += sum / (length - 1 - first);
    }
    return total / sequences;
}

/** Perplexity of the paper's definition. */
export async function perplexityOf(model: Model, sequences: Sequences, options: EvaluateOptions = {}): Promise<number> {
    return Math.exp(meanNll(await model.evaluate(sequences, options), sequences.length));
}

export interface TextOptions {
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /** Default: `paper`. */
    definition?: PerplexityDefinition | undefined;
    /** Field of a JSON Lines file, see CalibrationOptions. */
    field?: string | undefined;
    /** The first so many sequences. Default: all. */
    samples?: number | undefined;
    signal?: AbortSignal | undefined;
}

/**
 * A text file cut into sequences; the tokens after the last full one are dropped.
 * @throws BlockprunerError if the text is shorter than one sequence (`llama.cpp`: two)
 */
export async function textSequences(
    model: Model,
    file: string,
    { context = 512, definition = 'paper', field, samples = Infinity, signal }: TextOptions = {}
): Promise<Sequences> {
    const all = await model.tokenize(await readSamples(file, field, { signal }), signal);
    const available = Math.floor(all.length / context);
    const needed = definition === 'llama.cpp' ? 2 : 1; // its tool refuses less than two chunks
    if (available < needed) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${all.length} tokens, and ${needed * context} are needed; give a longer text or a smaller ${option('context')}`
        );
    }
    const tokens = all.slice(0, Math.min(available, samples) * context);
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
    /** Compare with this model, which has the same vocabulary; it may be the same model, with all its blocks. */
    dense?: Model | undefined;
}

/** Perplexity of a model on sequences, cut for the same definition. */
export async function measurePerplexity(
    model: Model,
    sequences: Sequences,
    { definition = 'paper', dense, ...evaluation }: PerplexityOptions = {}
): Promise<Perplexity> {
    const { tokens, length } = sequences;
    const first = definition === 'llama.cpp' ? Math.floor(length / 2) : 0;
    const mean = (values: Float32Array) => meanNll(values, length, first);
    const compared = dense && (await model.diverge(sequences, dense, evaluation));
    const nll = mean(compared?.nll ?? (await model.evaluate(sequences, evaluation)));
    return {
        perplexity: Math.exp(nll),
        nll,
        tokens: (tokens.length / length) * (length - 1 - first),
        sequences: tokens.length / length,
        ...(compared && {
            dense: {
                perplexity: Math.exp(mean(compared.denseNll)),
                divergence: mean(compared.divergence),
                sameTop: mean(compared.sameTop)
            }
        })
    };
}

/** Perplexity of a model on a text file; errors as {@link textSequences}. */
export async function textPerplexity(
    model: Model,
    file: string,
    options: TextOptions & PerplexityOptions = {}
): Promise<Perplexity> {
    return measurePerplexity(model, await textSequences(model, file, options), options);
}
