import { BlockprunerError, messageOf, option } from '../errors.js';
import { decodeUtf8, LARGEST_TEXT } from './decode.js';
import { downloadFile, isUri, type DownloadOptions } from './download.js';
import { unreadable, type PlacedRecord } from './text.js';

/**
 * Reads the rows of a parquet file, or of what a URI names, with their numbers, counted from 1. Only the columns that
 * are wanted are read, one group of rows after the other.
 * @param wanted the columns' names; those that the file doesn't have are left out
 * @throws BlockprunerError that names the file, if it can't be read, is no parquet file or a damaged one, has none of
 *     the columns, more than {@link LARGEST_TEXT} bytes in them, or text that isn't UTF-8
 */
export async function parquetRows(
    file: string,
    wanted: readonly string[],
    options: DownloadOptions = {}
): Promise<PlacedRecord[]> {
    // they are ES modules, which require() can't load everywhere
    const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, parquetSchema } = await import('hyparquet');
    const { compressors } = await import('hyparquet-compressors');
    const source = isUri(file)
        ? sliceable(await downloadFile(file, options, checkEnds))
        : await asyncBufferFromFile(file).catch((error: unknown) => {
              throw unreadable(file, error);
          });
    const decode = (text: Uint8Array | undefined) => {
        try {
            return text && decodeUtf8(text);
        } catch (error) {
            throw unreadable(file, error);
        }
    };
    try {
        const metadata = await parquetMetadataAsync(source);
        const names = parquetSchema(metadata).children.map(({ element }) => element.name);
        const columns = names.filter((name) => wanted.includes(name));
        if (columns.length === 0) {
            throw new BlockprunerError(
                'INPUT',
                `${file} has no column ${wanted.join(' or ')}, but ${names.join(', ')}; ` +
                    `name one of them by ${option('field')}`
            );
        }
        const bytes = metadata.row_groups
            .flatMap((group) => group.columns.map((column) => column.meta_data))
            .filter((column) => column && columns.includes(column.path_in_schema[0]!))
            .reduce((sum, column) => sum + Number(column!.total_uncompressed_size), 0);
        if (bytes > LARGEST_TEXT) {
            throw new BlockprunerError(
                'INPUT',
                `${file} has more than ${LARGEST_TEXT / 2 ** 20} MiB in ${columns.join(', ')}; give a part of its rows`
            );
        }
        const records: PlacedRecord[] = [];
        for (const group of metadata.row_groups) {
            options.signal?.throwIfAborted();
            const rowStart = records.length;
            const rows = await parquetReadObjects({
                file: source,
                metadata,
                columns,
                rowStart,
                rowEnd: rowStart + Number(group.num_rows),
                compressors,
                parsers: { stringFromBytes: decode }
            });
            rows.forEach((record) => records.push({ record, place: `row ${records.length + 1}` }));
        }
        return records;
    } catch (error) {
        options.signal?.throwIfAborted();
        if (error instanceof BlockprunerError) {
            throw error;
        }
        const why = `it is damaged, or no parquet file (${messageOf(error)})`;
        throw unreadable(file, new Error(why, { cause: error }));
    }
}

/** Bytes of which parts can be read as of a file. */
function sliceable(bytes: Buffer) {
    return {
        byteLength: bytes.length,
        slice: (start: number, end?: number) => new Uint8Array(bytes.subarray(start, end)).buffer
    };
}

/** @throws Error unless the bytes begin and end as a parquet file does */
function checkEnds(bytes: Buffer): Promise<Buffer> {
    const isParquet = [bytes.subarray(0, 4), bytes.subarray(-4)].every((end) => end.toString('latin1') === 'PAR1');
    return isParquet ? Promise.resolve(bytes) : Promise.reject(new Error('it is no parquet file, or a part of one'));
}
