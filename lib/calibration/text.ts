import fs from 'node:fs/promises';
import path from 'node:path';
import { BlockprunerError, messageOf } from '../errors.js';
import { downloadText, isUri, type DownloadOptions } from './download.js';

/**
 * Reads a UTF-8 text file, or what a URI names, whole.
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
        return new TextDecoder('utf-8', { fatal: true }).decode(await fs.readFile(file));
    } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const reasons: Record<string, string> = {
            ENOENT: 'there is no such file',
            ERR_ENCODING_INVALID_ENCODED_DATA: 'it is not UTF-8'
        };
        throw new BlockprunerError('INPUT', `can't read the text ${file}: ${reasons[code ?? ''] ?? messageOf(error)}`);
    }
}

/** The name of a file without its folder; of a URI, that of the file which it names. */
export function nameOf(file: string): string {
    return path.basename(isUri(file) ? file.replace(/[?#].*/s, '') : file);
}

/**
 * Reads the records of JSON Lines, with the numbers of their lines, counted from 1. Empty lines are passed over.
 * @param file the file's name, for messages
 * @throws BlockprunerError that names the file and the line which isn't JSON
 */
export function jsonLines(file: string, text: string): { record: unknown; line: number }[] {
    return text.split('\n').flatMap((content, index) => {
        if (content.trim() === '') {
            return [];
        }
        try {
            return [{ record: JSON.parse(content) as unknown, line: index + 1 }];
        } catch {
            throw new BlockprunerError('INPUT', `${file}, line ${index + 1}: not JSON`);
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
