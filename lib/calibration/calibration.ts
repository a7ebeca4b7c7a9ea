import crypto from 'node:crypto';
import path from 'node:path';
import { checkInteger } from '../check.js';
import { ArgumentError, BlockprunerError, option } from '../errors.js';
import { randomNumbers } from '../random.js';
import type { Model, RunOptions } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import { applyTemplate, readConversation, type Conversation } from './chat.js';
import type { DownloadOptions } from './download.js';
import { parquetRows } from './parquet.js';
import { selfCalibration, writtenByItself } from './self.js';
import { formatOf, jsonLines, jsonList, nameOf, readText, valueAt, type PlacedRecord } from './text.js';

export interface CalibrationOptions {
    /**
     * A text file, JSON Lines (by its ending .jsonl or .ndjson), a JSON list (.json), each also compressed (.gz), a
     * parquet file (.parquet), or a URI of one. `self`: text that the model writes itself. `embedded`: prose and
     * speeches, {@link embeddedText}. Default: `self`.
     */
    file?: string | undefined;
    /**
     * The fields of a sample of JSON, or columns of a parquet file, separated by commas; their texts are joined by a
     * new line. `a.0.b` goes into objects and lists. A single field may hold a conversation, which is written by the
     * model's chat template: a list of `{role, content}` or `{from, value}`. Default: `messages` or `conversations`, if
     * there is a list, else `text`, or Alpaca's fields.
     */
    field?: string | undefined;
    /** How many sequences are used. Default: 16, or as many as the text has. */
    samples?: number | undefined;
    /** Tokens in a sequence. Default: 512. */
    context?: number | undefined;
    /**
     * Picks the sequences at random, the same ones for the same number. Default: the first ones. Of `self`: another
     * number gives another text; default: 0.
     */
    seed?: number | undefined;
}

export interface Calibration extends Sequences {
    /** The file that the text came from, or its URI. */
    file: string;
    /** The name of that file. */
    name: string;
    /** The text's other sequences, which were not chosen: whole ones, one after the other. */
    rest: Int32Array;
    /** Of a text without end: gives so many other sequences. */
    more?: (count: number, options: RunOptions) => Promise<Int32Array>;
}

/** The file of the embedded text, on which the embedded model was not trained; see models/README.md. */
export const embeddedText = path.resolve(__dirname, '..', '..', 'models', 'calibration.txt');

/** The embedded instructions with answers, which a repair is fitted to beside the embedded text. */
export const embeddedInstructions = path.resolve(__dirname, '..', '..', 'models', 'instructions.jsonl');

/** The fields of conversations that are tried in turn where none is named: the usual one, and ShareGPT's. */
const chatFields = ['messages', 'conversations'];

/** Then these: those of plain corpora, of Alpaca, and of Alpaca's seed tasks. */
const textFields = ['text', 'instruction,input,output', 'instruction,instances.0.input,instances.0.output'];

/**
 * Makes a model's calibration set as BlockPruner's own code does: the samples are joined by a blank line, tokenised
 * once (so that there is a BOS only at the very start) and cut into sequences of equal length; the remainder is
 * dropped. Conversations are written by the model's chat template, and follow each other with nothing in between, each
 * tokenised by itself with the BOS that the template or the model wants.
 * @throws ArgumentError if an option is out of its range
 * @throws BlockprunerError if the file can't be read, is too short for the sequences, or has conversations that the
 *     model's chat template can't write
 */
export async function loadCalibration(
    model: Model,
    options: CalibrationOptions = {},
    signal?: AbortSignal,
    onProgress?: RunOptions['onProgress']
): Promise<Calibration> {
    checkCalibration(options);
    const { samples = 16, context = 512, seed } = options;
    if (isSelf(options)) {
        return selfWritten(model, { samples, context, seed }, { signal, onProgress });
    }
    const file = options.file === 'embedded' ? embeddedText : options.file!;
    const tokens = await tokenizeFile(model, file, options.field, signal);
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

function isSelf({ file = selfCalibration }: CalibrationOptions): boolean {
    return file === selfCalibration;
}

async function selfWritten(
    model: Model,
    { samples, context, seed = 0 }: { samples: number; context: number; seed?: number | undefined },
    options: RunOptions
): Promise<Calibration> {
    const write = (first: number, count: number, how: RunOptions) =>
        writtenByItself(model, { first, count, length: context, seed }, how);
    let last: { count: number; tokens: Int32Array } | undefined; // one comparison fits many repairs to the same text
    return {
        file: selfCalibration,
        name: selfCalibration,
        tokens: await write(0, samples, options),
        length: context,
        rest: new Int32Array(0),
        more: async (count, how) => {
            if (last?.count !== count) {
                last = { count, tokens: await write(samples, count, how) };
            }
            return last.tokens;
        }
    };
}

/** Some sequences of a text's tokens, by their numbers. */
function gather(tokens: Int32Array, numbers: readonly number[], length: number): Int32Array {
    const result = new Int32Array(numbers.length * length);
    numbers.forEach((number, i) => result.set(tokens.subarray(number * length, (number + 1) * length), i * length));
    return result;
}

/** @throws ArgumentError if an option is out of its range; nothing is read for that */
export function checkCalibration(options: CalibrationOptions): void {
    const { field, samples, context, seed } = options;
    if (isSelf(options) && field !== undefined) {
        const hint = `text that the model writes itself has no fields; name a file by ${option('calibration')}`;
        throw new ArgumentError('field', 'left out', field, hint);
    }
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
 * The tokens of all text of a file: of {@link readSamples}, conversations written by the model's chat template.
 * @throws as readSamples, and BlockprunerError if the chat template can't write the conversations
 */
export async function tokenizeFile(
    model: Model,
    file: string,
    field?: string,
    signal?: AbortSignal
): Promise<Int32Array> {
    const samples = await readSamples(file, field, { signal });
    return typeof samples === 'string'
        ? model.tokenize(samples, signal)
        : model.tokenizePieces(await applyTemplate(model, samples, signal), signal);
}

/**
 * Reads a text file whole, or the samples of JSON Lines, a JSON list or a parquet file, joined by a blank line; see
 * {@link formatOf}. Samples that are conversations stay apart.
 * @throws ArgumentError if a field is named, and the file is a text without fields
 * @throws BlockprunerError that names the file, and the line, sample or row that is wrong
 */
export async function readSamples(
    file: string,
    field?: string,
    options?: DownloadOptions
): Promise<string | Conversation[]> {
    const format = formatOf(file);
    if (format === 'text' && field !== undefined) {
        const hint = `${file} is read as a plain text; fields are those of .jsonl, .ndjson, .json and .parquet files`;
        throw new ArgumentError('field', 'left out', field, hint);
    }
    const samples =
        format === 'text'
            ? await readText(file, options)
            : samplesOf(file, await readRecords(file, format, field, options), field);
    if (typeof samples === 'string' && samples.trim() === '') {
        throw new BlockprunerError('INPUT', `the text ${file} is empty`);
    }
    return samples;
}

async function readRecords(
    file: string,
    format: 'lines' | 'list' | 'parquet',
    field?: string,
    options?: DownloadOptions
): Promise<PlacedRecord[]> {
    if (format === 'parquet') {
        const names = field?.split(',') ?? [...chatFields, ...textFields].flatMap((list) => list.split(','));
        const columns = names.map((name) => name.trim().split('.')[0]!);
        return parquetRows(file, [...new Set(columns)], options);
    }
    const text = await readText(file, options);
    return format === 'lines' ? jsonLines(file, text) : jsonList(file, text);
}

/** The first record decides which fields are read where none is named, and whether they are conversations. */
function samplesOf(file: string, records: readonly PlacedRecord[], field?: string): string | Conversation[] {
    const first = records[0]?.record;
    const fields =
        field?.trim() ??
        chatFields.find((name) => Array.isArray(valueAt(first, name))) ??
        textFields.find((list) => valueAt(first, list.split(',').at(-1)!) !== undefined) ??
        'text';
    const wrong = (place: string, what: string, name: string) =>
        new BlockprunerError(
            'INPUT',
            `${file}, ${place}: it has no ${what} in field '${name}'; name the field with ${option('field')}`
        );
    if (Array.isArray(valueAt(first, fields))) {
        return records.map(({ record, place }) => {
            const list = valueAt(record, fields);
            if (!Array.isArray(list)) {
                throw wrong(place, 'conversation', fields);
            }
            return readConversation(list, `${file}, ${place}`);
        });
    }
    const names = fields.split(',').map((name) => name.trim());
    const texts = records.map(({ record, place }) => {
        const parts = names.map((name) => {
            const value = valueAt(record, name);
            if (typeof value !== 'string') {
                throw wrong(place, 'text', name);
            }
            return value;
        });
        return parts.filter((part) => part !== '').join('\n');
    });
    return texts.join('\n\n');
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
