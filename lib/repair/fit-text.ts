import { embeddedText, embeddedInstructions, tokenizeFile, type Calibration } from '../calibration/calibration.js';
import { BlockprunerError } from '../errors.js';
import type { Model, RunOptions } from '../runtime/model.js';
import { countSequences, type Sequences } from '../runtime/sequences.js';

/** So many tokens a value of the residual stream are fitted to by default. */
const USUAL_TOKENS_A_VALUE = 64;

/** With few more tokens than values of the residual stream, a fit would follow the tokens that it has too closely. */
const LEAST_TOKENS_A_VALUE = 8;

/**
 * A search keeps the dense model's stream of what it fits linear blocks to, at all boundaries, in so many bytes, or
 * those of the fewest tokens that can be fitted to.
 */
const SEARCH_BYTES = 2 ** 30;

/** By default, no more are fitted to: the streams of that many take 2 GiB in a model with 4096 values. */
const MOST_USUAL_TOKENS = 65_536;

/**
 * The sequences that a repair is fitted to. The search has not seen them, so that what the search was measured on is
 * held out from the fit: the rest of the calibration text, or more of it where the model writes it itself; beside the
 * embedded one, also the embedded instructions, as many of each as there are.
 * @param tokens how many tokens; default: 64 for each value of the residual stream, at most 65,536, or as many as there
 *     are
 * @throws BlockprunerError if the text is too short, saying how much is needed
 */
export async function fitText(
    model: Model,
    calibration: Calibration,
    tokens: number | undefined,
    { signal, onProgress }: RunOptions = {}
): Promise<Sequences> {
    const { length } = calibration;
    const wanted = Math.ceil((tokens ?? Math.min(USUAL_TOKENS_A_VALUE * model.embedding, MOST_USUAL_TOKENS)) / length);
    const least = Math.ceil((LEAST_TOKENS_A_VALUE * model.embedding) / length);
    if (calibration.more) {
        return { tokens: await calibration.more(wanted, { signal, onProgress }), length };
    }
    const rests = [calibration.rest];
    if (calibration.file === embeddedText) {
        const instructions = await tokenizeFile(model, embeddedInstructions, undefined, signal);
        rests.push(instructions.subarray(0, instructions.length - (instructions.length % length)));
    }
    const chosen = sharedOut(
        rests.map((rest) => rest.length / length),
        wanted
    ).map((count, i) => spread({ tokens: rests[i]!, length }, count));
    const found = chosen.reduce((sum, part) => sum + part.length, 0) / length;
    if (found < least || (tokens !== undefined && found < wanted)) {
        const needed = tokens === undefined ? least : Math.max(least, wanted);
        throw new BlockprunerError(
            'INPUT',
            `${calibration.name} is too short to fit a repair to: beside what the search is measured on, it has ` +
                `${found * length} tokens in whole sequences of ${length}, and ${needed * length} are needed`
        );
    }
    return { tokens: Int32Array.from(chosen.flatMap((part) => [...part])), length };
}

/** Those of a repair's sequences that a search fits linear blocks to: as many as its memory has room for. */
export function searchText(model: Model, text: Sequences): Sequences {
    const ofToken = 2 * model.embedding * (2 * model.layers + 1);
    const tokens = Math.max(SEARCH_BYTES / ofToken, LEAST_TOKENS_A_VALUE * model.embedding);
    const count = Math.min(Math.ceil(tokens / text.length), countSequences(text));
    return { tokens: spread(text, count), length: text.length };
}

/** How many of each source are taken, as evenly as they have so many. */
function sharedOut(available: readonly number[], wanted: number): number[] {
    const taken = available.map(() => 0);
    for (let i = 0, left = wanted, idle = 0; left > 0 && idle < available.length; i = (i + 1) % available.length) {
        if (taken[i]! < available[i]!) {
            taken[i]!++;
            left--;
            idle = 0;
        } else {
            idle++;
        }
    }
    return taken;
}

/** The tokens of so many sequences, evenly spread over all. */
function spread(sequences: Sequences, count: number): Int32Array {
    const { tokens, length } = sequences;
    const available = countSequences(sequences);
    const chosen = new Int32Array(count * length);
    for (let i = 0; i < count; i++) {
        const from = Math.floor((i * available) / count) * length;
        chosen.set(tokens.subarray(from, from + length), i * length);
    }
    return chosen;
}
