// The thread of parquet.ts sends its rows, group after group, or what is wrong with the file.
import { parentPort, workerData } from 'node:worker_threads';
import { messageOf, option } from '../errors.js';
import { decodeUtf8, LARGEST_TEXT } from './decode.js';
import type { ParquetReply, ParquetRequest } from './parquet.js';

const reply = (message: ParquetReply) => parentPort!.postMessage(message);
read(workerData as ParquetRequest).catch((error: unknown) =>
    reply({ unreadable: `it is damaged, or no parquet file (${messageOf(error)})` })
);

async function read({ file, bytes, wanted }: ParquetRequest): Promise<void> {
    // they are ES modules, which require() can't load in all versions of Node.js
    const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, parquetSchema } = await import('hyparquet');
    const { compressors } = await import('hyparquet-compressors');
    const source = bytes
        ? {
              byteLength: bytes.length,
              slice: (start: number, end?: number) => bytes.slice(start, end).buffer
          }
        : await asyncBufferFromFile(file);
    const metadata = await parquetMetadataAsync(source);
    const names = parquetSchema(metadata).children.map(({ element }) => element.name);
    const columns = names.filter((name) => wanted.includes(name));
    if (columns.length === 0) {
        const instead = `name one of them by ${option('field')}`;
        return reply({ wrong: `has no column ${wanted.join(' or ')}, but ${names.join(', ')}; ${instead}` });
    }
    const size = metadata.row_groups
        .flatMap((group) => group.columns.map((column) => column.meta_data))
        .filter((column) => column && columns.includes(column.path_in_schema[0]!))
        .reduce((sum, column) => sum + Number(column!.total_uncompressed_size), 0);
    if (size > LARGEST_TEXT) {
        const limit = `${LARGEST_TEXT / 2 ** 20} MiB`;
        return reply({ wrong: `has more than ${limit} in ${columns.join(', ')}; give a part of its rows` });
    }
    let undecodable: string | undefined;
    const stringFromBytes = (text: Uint8Array | undefined) => {
        try {
            return text && decodeUtf8(text);
        } catch (error) {
            undecodable ??= messageOf(error);
            return undefined;
        }
    };
    let rowStart = 0;
    for (const group of metadata.row_groups) {
        const rowEnd = rowStart + Number(group.num_rows);
        const parsers = { stringFromBytes };
        const rows = await parquetReadObjects({
            file: source,
            metadata,
            columns,
            rowStart,
            rowEnd,
            compressors,
            parsers
        });
        if (undecodable !== undefined) {
            return reply({ unreadable: undecodable });
        }
        reply({ rows });
        rowStart = rowEnd;
    }
    reply({ done: true });
}
