import path from 'node:path';
import type { DownloadOptions } from './download.js';
import { BlockprunerError, option } from '../errors.js';
import type { Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import { randomNumbers } from '../random.js';
import { jsonLines, nameOf, readText, valueAt } from './text.js';

export interface CalibrationOptions {
    /** A text file, or JSON Lines (by its ending .jsonl), or a URI of one. Default: the embedded text, {@link defaultCalibration}. */
    file?: string | undefined;
    /**
     * The fields of a JSON Lines sample, comma-separated, joined by a new line; `a.0.b` goes into objects and arrays.
     * Default: `text`, or Alpaca's fields.
     */
    field?: string | undefined;
    /** Sequences used. Default: 16. */
    samples?: number | undefined;
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /** Picks the sequences at random, reproducibly. Default: the first ones. */
    seed?: number | undefined;
}

export interface Calibration extends Sequences {
    /** Where the text came from: the file's name. */
    name: string;
}

/** Text that the embedded model was not trained on; see models/README.md. */
export const defaultCalibration = path.resolve(__dirname, '..', '..', 'models', 'calibration.txt');

/** Fields tried in turn where none is named: plain corpora, Alpaca, Alpaca's seed tasks. */
const usualFields = ['text', 'instruction,input,output', 'instruction,instances.0.input,instances.0.output'];

/**
 * The calibration set of a model, as in BlockPruner's own code: the samples joined by a blank line, tokenised once (a BOS
 * only at the very start), cut into sequences of equal length, the remainder dropped.
 * @throws BlockprunerError if the file can't be read, or is too short for one sequence
 */
export async function loadCalibration(
    model: Model,
    options: CalibrationOptions = {},
    signal?: AbortSignal
): Promise<Calibration> {
    const { file = defaultCalibration, samples = 16, context = 512, seed } = options;
    const text = await readSamples(file, options.field, { signal });
    const tokens = await model.tokenize(text, signal);
    const available = Math.floor(tokens.length / context);
    if (available === 0) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${tokens.length} tokens and one sequence needs ${context}; give a longer text or a smaller ${option('context')}`
        );
    }
    if (options.samples !== undefined && samples > available) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${tokens.length} tokens, enough for ${available} sequences of ${context}, not for ${samples}; give a longer text, fewer ${option('samples')} or a smaller ${option('context')}`
        );
    }
    const chosen = pick(available, Math.min(samples, available), seed);
    const result = new Int32Array(chosen.length * context);
    chosen.forEach((sequence, index) =>
        result.set(tokens.subarray(sequence * context, (sequence + 1) * context), index * context)
    );
    return { name: nameOf(file), tokens: result, length: context };
}

/**
 * Reads a UTF-8 text file whole, or the samples of a JSON Lines file joined by a blank line.
 * @throws BlockprunerError naming the file, and the line where one is wrong
 */
export async function readSamples(file: string, field?: string, options?: DownloadOptions): Promise<string> {
    const text = await readText(file, options);
    const samples = nameOf(file).endsWith('.jsonl') ? samplesOf(file, text, field).join('\n\n') : text;
    if (samples.trim() === '') {
        throw new BlockprunerError('INPUT', `the text ${file} is empty`);
    }
    return samples;
}

function samplesOf(file: string, text: string, field?: string): string[] {
    let fields = field;
    return jsonLines(file, text).map(({ record, line }) => {
        fields ??= usualFields.find((list) => valueAt(record, list.split(',').at(-1)!) !== undefined) ?? 'text';
        const parts = fields.split(',').map((name) => {
            const value = valueAt(record, name.trim());
            if (typeof value !== 'string') {
                throw new BlockprunerError(
                    'INPUT',
                    `${file}, line ${line}: it has no text in field '${name.trim()}'; name the field with ${option('field')}`
                );
            }
            return value;
        });
        return parts.filter((part) => part !== '').join('\n');
    });
}

/** `count` of the numbers 0 … available−1: the first, or with a seed a random choice, in ascending order. */
function pick(available: number, count: number, seed?: number): number[] {
    const numbers = Array.from({ length: available }, (_, index) => index);
    if (seed === undefined) {
        return numbers.slice(0, count);
    }
    const random = randomNumbers(seed);
    for (let i = 0; i < count; i++) {
        const j = i + Math.floor(random() * (available - i));
        [numbers[i], numbers[j]] = [numbers[j]!, numbers[i]!];
    }
    return numbers.slice(0, count).sort((a, b) => a - b);
}
