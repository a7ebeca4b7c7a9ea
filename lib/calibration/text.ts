import fs from 'node:fs/promises';
import path from 'node:path';
import { BlockprunerError, messageOf } from '../errors.js';
import { decodeText } from './decode.js';
import { downloadText, isUri, type DownloadOptions } from './download.js';

/**
 * Reads a text file, or what a URI names, whole; it may be compressed by gzip.
 * @throws BlockprunerError that names the file, if it can't be read, is empty, or isn't UTF-8
 */
export async function readText(file: string, options?: DownloadOptions): Promise<string> {
    const text = isUri(file) ? await downloadText(file, options) : await readLocal(file);
    if (text.trim() === '') {
        throw new BlockprunerError('INPUT', `the text ${file} is empty`);
    }
    return text;
}

async function readLocal(file: string): Promise<string> {
    try {
        return await decodeText(await fs.readFile(file));
    } catch (error) {
        throw unreadable(file, error);
    }
}

/** The error for a file of text that can't be read, or not as what its name says. */
export function unreadable(file: string, error: unknown): BlockprunerError {
    const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    const why = isMissing ? 'there is no such file' : messageOf(error).split('\n')[0];
    return new BlockprunerError('INPUT', `can't read the text ${file}: ${why}`, { cause: error });
}

/** The name of a file without its folder; of a URI, that of the file which it names. */
export function nameOf(file: string): string {
    return path.basename(isUri(file) ? file.replace(/[?#].*/s, '') : file);
}

/**
 * How a file's name says that its text is to be read: as it is, as JSON Lines (`.jsonl`, `.ndjson`), as one JSON list
 * (`.json`), or as a parquet file (`.parquet`), in capitals or small letters; `.gz` may follow, but for parquet.
 */
export function formatOf(file: string): 'text' | 'lines' | 'list' | 'parquet' {
    const name = nameOf(file).toLowerCase();
    if (name.endsWith('.parquet')) {
        return 'parquet';
    }
    const [, ending = ''] = /\.(\w+)$/.exec(name.replace(/\.gz$/, '')) ?? [];
    const formats: Record<string, 'lines' | 'list'> = { jsonl: 'lines', ndjson: 'lines', json: 'list' };
    return formats[ending] ?? 'text';
}

/** A record of a file, and where it stands there, for messages: `line 3`, `sample 3`, `row 3`. */
export interface PlacedRecord {
    record: unknown;
    place: string;
}

/**
 * Reads the records of a JSON list, with their numbers, counted from 1. A text in it is a record with the field `text`.
 * @param file the file's name, for messages
 * @throws BlockprunerError that names the file, if it isn't a JSON list
 */
export function jsonList(file: string, text: string): PlacedRecord[] {
    let list: unknown;
    try {
        list = JSON.parse(text);
    } catch (error) {
        throw new BlockprunerError('INPUT', `${file}: not JSON (${messageOf(error)})`);
    }
    if (!Array.isArray(list)) {
        throw new BlockprunerError('INPUT', `${file}: it must be a JSON list of samples`);
    }
    return list.map((item: unknown, i) => ({
        record: typeof item === 'string' ? { text: item } : item,
        place: `sample ${i + 1}`
    }));
}

/**
 * Reads the records of JSON Lines, with the numbers of their lines, counted from 1. Empty lines are passed over.
 * @param file the file's name, for messages
 * @throws BlockprunerError that names the file and the line which isn't JSON
 */
export function jsonLines(file: string, text: string): PlacedRecord[] {
    return text.split('\n').flatMap((content, index) => {
        if (content.trim() === '') {
            return [];
        }
        const place = `line ${index + 1}`;
        try {
            return [{ record: JSON.parse(content) as unknown, place }];
        } catch {
            throw new BlockprunerError('INPUT', `${file}, ${place}: not JSON`);
        }
    });
}

/** The value that a record has at a path such as `a.0.b`, which goes through objects and lists. */
export function valueAt(record: unknown, dotted: string): unknown {
    return dotted
        .split('.')
        .reduce<unknown>(
            (value, key) =>
                typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined,
            record
        );
}
