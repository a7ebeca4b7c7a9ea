import fs from 'node:fs/promises';
import path from 'node:path';
import { downloadText, isUri, type DownloadOptions } from './download.js';
import { BlockprunerError, messageOf } from '../errors.js';

/**
 * Reads a UTF-8 text file whole, or what a URI names.
 * @throws BlockprunerError naming the file
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
        throw new BlockprunerError(
            'INPUT',
            `can't read the text ${file}: ${code === 'ENOENT' ? 'there is no such file' : code === 'ERR_ENCODING_INVALID_ENCODED_DATA' ? 'it is not UTF-8' : messageOf(error)}`
        );
    }
}

/** A file's name without its folder, or that of the file which a URI names. */
export function nameOf(file: string): string {
    return path.basename(isUri(file) ? file.replace(/[?#].*/s, '') : file);
}

/**
 * The records of JSON Lines, with their lines' numbers from 1; empty lines are passed over.
 * @param file for messages
 * @throws BlockprunerError naming the file and the line
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

/** What a record has at `a.0.b`, through objects and lists. */
export function valueAt(record: unknown, dotted: string): unknown {
    return dotted
        .split('.')
        .reduce<unknown>(
            (value, key) =>
                typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined,
            record
        );
}
