import { readSamples } from '../calibration/index.js';
import { BlockprunerError } from '../errors.js';
import type { EvaluateOptions, Model, Sequences } from '../model.js';

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
}

/** Mean NLL over equally long sequences, each with its values at positions `first` … length−2 of [sequences × (length − 1)]. */
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

/** Perplexity of the paper's definition, of a model without some of its blocks. */
export async function perplexityOf(model: Model, sequences: Sequences, options: EvaluateOptions = {}): Promise<number> {
    return Math.exp(meanNll(await model.evaluate(sequences, options), sequences.length));
}

export interface TextPerplexityOptions extends Omit<EvaluateOptions, 'keep'> {
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /** Default: `paper`. */
    definition?: PerplexityDefinition | undefined;
    /** Field of a JSON Lines file, see CalibrationOptions. */
    field?: string | undefined;
}

/**
 * Perplexity of a model on a whole text file; the tokens after the last full sequence are dropped.
 * @throws BlockprunerError if the text is shorter than one sequence (`llama.cpp`: two)
 */
export async function textPerplexity(model: Model, file: string, options: TextPerplexityOptions = {}): Promise<Perplexity> {
    const { context = 512, definition = 'paper' } = options;
    const all = await model.tokenize(await readSamples(file, options.field, { signal: options.signal }), options.signal);
    const sequences = Math.floor(all.length / context);
    const needed = definition === 'llama.cpp' ? 2 : 1; // its tool refuses less than two chunks
    if (sequences < needed) {
        throw new BlockprunerError(`${file} is too short: it has ${all.length} tokens, and ${needed * context} are needed; give a longer text or a smaller --context`);
    }
    const tokens = all.slice(0, sequences * context);
    if (definition === 'llama.cpp' && model.bos !== null) {
        for (let sequence = 0; sequence < sequences; sequence++) {
            tokens[sequence * context] = model.bos;
        }
    }
    const first = definition === 'llama.cpp' ? Math.floor(context / 2) : 0;
    const nll = meanNll(await model.evaluate({ tokens, length: context }, options), context, first);
    return { perplexity: Math.exp(nll), nll, tokens: sequences * (context - 1 - first), sequences };
}
