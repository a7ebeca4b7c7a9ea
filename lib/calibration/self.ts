import { BlockprunerError } from '../errors.js';
import { randomNumbers } from '../random.js';
import type { Model, RunOptions } from '../runtime/model.js';
import { openingOf } from './chat.js';

/** In the place of a calibration file: text that the model writes itself. A file of this name is `./self`. */
export const selfCalibration = 'self';

/** With fewer different words to begin with, texts would be too much alike. */
const LEAST_WORDS = 32;

/** So many sequences of one seed are there before those of the next. */
const SEQUENCES_OF_SEED = 2 ** 16;

/**
 * Sequences of text that a model writes itself, of an endless row of them that the seed decides: from the one numbered
 * `first` on, [count × length].
 *
 * Of those with even numbers, each begins with a random word, as in data-free calibration (Liu et al. 2023, arXiv
 * 2305.17888, section 3.1). The others begin as the model's chat template begins a conversation, so that a tuned model
 * writes the user's message and its answer (Magpie, Xu et al. 2024, arXiv 2406.08464, section 2); where it has no
 * template, they begin with words too. All other tokens are drawn from what the model expects: the likeliest that
 * together have a probability of 95 %.
 * @throws BlockprunerError if the model can't write, or there is no memory for it
 */
export async function writtenByItself(
    model: Model,
    { first, count, length, seed }: { first: number; count: number; length: number; seed: number },
    options: RunOptions = {}
): Promise<Int32Array> {
    const words = wordsOf(model);
    const opening = await openingTokens(model, length, options.signal);
    const from = seed * SEQUENCES_OF_SEED + first;
    const prompts = Array.from({ length: count }, (_, i) => {
        if (opening && (first + i) % 2 === 1) {
            return opening;
        }
        const random = randomNumbers(from + i);
        const word = words[Math.floor(random() * words.length)]!;
        return Int32Array.from(model.bos === null ? [word] : [model.bos, word].slice(0, length));
    });
    return model.generate(prompts, { ...options, length, seed: from });
}

/** The tokens that are a capitalised word; of a vocabulary with too few of these, all that are text. */
function wordsOf(model: Model): number[] {
    const texts = model.tokenTexts();
    const those = (pattern: RegExp) => texts.flatMap((text, token) => (pattern.test(text) ? [token] : []));
    const words = those(/^[Ġ▁]?[A-Z][a-z]+$/); // a space is Ġ or ▁
    const found = words.length >= LEAST_WORDS ? words : those(/./);
    if (found.length === 0) {
        throw new BlockprunerError('UNSUPPORTED', `${model.path} can't write a text: its vocabulary has no text`);
    }
    return found;
}

/** The start of a conversation; undefined where the model has no usable template, or no room is left for a text. */
async function openingTokens(model: Model, length: number, signal?: AbortSignal): Promise<Int32Array | undefined> {
    const opening = openingOf(model);
    const tokens = opening && (await model.tokenizePieces([opening], signal));
    return tokens && tokens.length > 0 && tokens.length <= length / 2 ? tokens : undefined;
}
