import crypto from 'node:crypto';
import path from 'node:path';
import { checkInteger } from '../check.js';
import { ArgumentError, BlockprunerError, option } from '../errors.js';
import { randomNumbers } from '../random.js';
import type { Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import type { DownloadOptions } from './download.js';
import { formatOf, jsonLines, jsonList, nameOf, readText, valueAt, type PlacedRecord } from './text.js';

export interface CalibrationOptions {
    /**
     * A text file, JSON Lines (by its ending .jsonl or .ndjson), or a JSON list (.json), each also compressed (.gz), or
     * a URI of one. Default: the embedded text, {@link defaultCalibration}.
     */
    file?: string | undefined;
    /**
     * The fields of a sample of JSON, separated by commas; their texts are joined by a new line. `a.0.b` goes into
     * objects and lists. Default: `text`, or Alpaca's fields.
     */
    field?: string | undefined;
    /** How many sequences are used. Default: 16, or as many as the text has. */
    samples?: number | undefined;
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /** Picks the sequences at random, the same ones for the same number. Default: the first ones. */
    seed?: number | undefined;
}

export interface Calibration extends Sequences {
    /** The file that the text came from, or its URI. */
    file: string;
    /** The name of that file. */
    name: string;
    /** The text's other sequences, which were not chosen: whole ones, one after the other. */
    rest: Int32Array;
}

/** The embedded text, on which the embedded model was not trained; see models/README.md. */
export const defaultCalibration = path.resolve(__dirname, '..', '..', 'models', 'calibration.txt');

/** The embedded instructions with answers, which a repair is fitted to beside the embedded text. */
export const defaultInstructions = path.resolve(__dirname, '..', '..', 'models', 'instructions.jsonl');

/**
 * The fields that are tried in turn where none is named: those of plain corpora, of Alpaca, and of Alpaca's seed tasks.
 */
const usualFields = ['text', 'instruction,input,output', 'instruction,instances.0.input,instances.0.output'];

/**
 * Makes a model's calibration set as BlockPruner's own code does: the samples are joined by a blank line, tokenised
 * once (so that there is a BOS only at the very start) and cut into sequences of equal length; the remainder is
 * dropped.
 * @throws ArgumentError if an option is out of its range
 * @throws BlockprunerError if the file can't be read, or is too short for the sequences
 */
export async function loadCalibration(
    model: Model,
    options: CalibrationOptions = {},
    signal?: AbortSignal
): Promise<Calibration> {
    checkCalibration(options);
    const { file = defaultCalibration, samples = 16, context = 512, seed } = options;
    const text = await readSamples(file, options.field, { signal });
    const tokens = await model.tokenize(text, signal);
    const available = Math.floor(tokens.length / context);
    if (available === 0) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${tokens.length} tokens and one sequence needs ${context}; ` +
                `give a longer text or a smaller ${option('context')}`
        );
    }
    if (options.samples !== undefined && samples > available) {
        throw new BlockprunerError(
            'INPUT',
            `${file} is too short: it has ${tokens.length} tokens, enough for ${available} sequences of ${context}, ` +
                `not for ${samples}; give a longer text, fewer ${option('samples')} or a smaller ${option('context')}`
        );
    }
    const chosen = pick(available, Math.min(samples, available), seed);
    const used = new Set(chosen);
    const others = Array.from({ length: available }, (_, index) => index).filter((index) => !used.has(index));
    return {
        file,
        name: nameOf(file),
        tokens: gather(tokens, chosen, context),
        length: context,
        rest: gather(tokens, others, context)
    };
}

/** Some sequences of a text's tokens, by their numbers. */
function gather(tokens: Int32Array, numbers: readonly number[], length: number): Int32Array {
    const result = new Int32Array(numbers.length * length);
    numbers.forEach((number, i) => result.set(tokens.subarray(number * length, (number + 1) * length), i * length));
    return result;
}

/** @throws ArgumentError if an option is out of its range; nothing is read for that */
export function checkCalibration({ samples, context, seed }: CalibrationOptions): void {
    checkInteger('samples', samples, { least: 1 });
    checkInteger('context', context, { least: 2 });
    checkInteger('seed', seed, { least: 0 });
}

/** Says which sequences these are: `16 × 512 tokens, SHA-256 …`. */
export function describeSequences({ tokens, length }: Sequences): string {
    const hash = crypto.createHash('sha256').update(tokens).digest('hex');
    return `${tokens.length / length} × ${length} tokens, SHA-256 ${hash}`;
}

/**
 * Reads a text file whole, or the samples of JSON Lines or of a JSON list, joined by a blank line; see {@link
 * formatOf}.
 * @throws ArgumentError if a field is named, and the file is a text without fields
 * @throws BlockprunerError that names the file, and the line or sample that is wrong
 */
export async function readSamples(file: string, field?: string, options?: DownloadOptions): Promise<string> {
    const format = formatOf(file);
    if (format === 'text' && field !== undefined) {
        const hint = `${file} is read as a plain text; fields are those of .jsonl, .ndjson and .json files`;
        throw new ArgumentError('field', 'left out', field, hint);
    }
    const text = await readText(file, options);
    const read = { text: undefined, lines: jsonLines, list: jsonList }[format];
    const samples = read ? samplesOf(file, read(file, text), field).join('\n\n') : text;
    if (samples.trim() === '') {
        throw new BlockprunerError('INPUT', `the text ${file} is empty`);
    }
    return samples;
}

function samplesOf(file: string, records: readonly PlacedRecord[], field?: string): string[] {
    let fields = field;
    return records.map(({ record, place }) => {
        fields ??= usualFields.find((list) => valueAt(record, list.split(',').at(-1)!) !== undefined) ?? 'text';
        const parts = fields.split(',').map((name) => {
            const value = valueAt(record, name.trim());
            if (typeof value !== 'string') {
                throw new BlockprunerError(
                    'INPUT',
                    `${file}, ${place}: it has no text in field '${name.trim()}'; ` +
                        `name the field with ${option('field')}`
                );
            }
            return value;
        });
        return parts.filter((part) => part !== '').join('\n');
    });
}

/** Picks `count` of the numbers 0 … available−1: the first ones, or with a seed a random choice in ascending order. */
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
