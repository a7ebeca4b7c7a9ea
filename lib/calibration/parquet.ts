import fs from 'node:fs/promises';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { BlockprunerError, messageOf } from '../errors.js';
import { downloadFile, isUri, type DownloadOptions } from './download.js';
import { unreadable, type PlacedRecord } from './text.js';

/** What the thread is asked for; see parquet-worker.ts. */
export interface ParquetRequest {
    file: string;
    /** of the whole file, if it isn't to be read from the disk */
    bytes: Uint8Array | undefined;
    wanted: readonly string[];
}
export type ParquetReply = { rows: unknown[] } | { done: true } | { wrong: string } | { unreadable: string };

/** How long a group of rows may take, of which hundreds of MiB take seconds. Some damage keeps the reader for ever. */
const GROUP_SECONDS = 120;

/**
 * Reads the rows of a parquet file, or of what a URI names, with their numbers, counted from 1. Only the columns that
 * are wanted are read, one group of rows after the other. It takes place on a thread of its own: a damaged file can
 * have the reader fail in ways that would end the process, and a large one would hold up this thread.
 * @param wanted the columns' names; those that the file doesn't have are left out
 * @throws BlockprunerError that names the file, if it can't be read, is no parquet file or a damaged one, has none of
 *     the columns, more than LARGEST_TEXT bytes in them, or text that isn't UTF-8
 */
export async function parquetRows(
    file: string,
    wanted: readonly string[],
    options: DownloadOptions = {}
): Promise<PlacedRecord[]> {
    const bytes = isUri(file) ? await downloadFile(file, options, checkEnds) : undefined;
    if (!bytes) {
        await fs.access(file, fs.constants.R_OK).catch((error: unknown) => {
            throw unreadable(file, error);
        });
    }
    const { signal } = options;
    signal?.throwIfAborted();
    const request: ParquetRequest = { file, bytes, wanted };
    const worker = new Worker(path.join(__dirname, 'parquet-worker.js'), { workerData: request });
    const stop = () => void worker.terminate();
    signal?.addEventListener('abort', stop, { once: true });
    const records: PlacedRecord[] = [];
    let timer: NodeJS.Timeout | undefined;
    try {
        await new Promise<void>((resolve, reject) => {
            const damaged = (why: string) => reject(unreadable(file, new Error(`it is damaged, ${why}`)));
            timer = setTimeout(
                () => damaged(`since ${GROUP_SECONDS} seconds don't suffice to read it`),
                GROUP_SECONDS * 1000
            );
            worker.on('message', (reply: ParquetReply) => {
                timer!.refresh();
                if ('rows' in reply) {
                    reply.rows.forEach((record) => records.push({ record, place: `row ${records.length + 1}` }));
                } else if ('done' in reply) {
                    resolve();
                } else {
                    reject(
                        'wrong' in reply
                            ? new BlockprunerError('INPUT', `${file} ${reply.wrong}`)
                            : unreadable(file, new Error(reply.unreadable))
                    );
                }
            });
            worker.on('error', (error) => damaged(`or no parquet file (${messageOf(error)})`));
            worker.on('exit', () => damaged('since its reader ended early'));
        });
    } catch (error) {
        signal?.throwIfAborted();
        throw error;
    } finally {
        clearTimeout(timer);
        signal?.removeEventListener('abort', stop);
        await worker.terminate();
    }
    return records;
}

/** @throws Error unless the bytes begin and end as a parquet file does */
function checkEnds(bytes: Buffer): Promise<Buffer> {
    const isParquet = [bytes.subarray(0, 4), bytes.subarray(-4)].every((end) => end.toString('latin1') === 'PAR1');
    return isParquet ? Promise.resolve(bytes) : Promise.reject(new Error('it is no parquet file, or a part of one'));
}
