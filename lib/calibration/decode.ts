import { promisify } from 'node:util';
import zlib from 'node:zlib';
import { messageOf } from '../errors.js';

/** The largest text, in bytes. A JavaScript string holds not much more. */
export const LARGEST_TEXT = 256 * 2 ** 20;

const gunzip = promisify(zlib.gunzip);

/**
 * Decodes the bytes of a text: UTF-8, or UTF-8 that is compressed by gzip, which its first bytes tell.
 * @throws Error with a message that says why these bytes are no such text
 */
export async function decodeText(bytes: Buffer): Promise<string> {
    const plain = bytes[0] === 0x1f && bytes[1] === 0x8b ? await unpack(bytes) : bytes;
    return decodeUtf8(plain);
}

/** @throws Error with a message that says why these bytes are no UTF-8 text */
export function decodeUtf8(bytes: Uint8Array): string {
    const [first, second] = bytes;
    if ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff)) {
        throw new Error('it is UTF-16, and must be UTF-8');
    }
    let text: string;
    try {
        text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    } catch (error) {
        throw new Error('it is not UTF-8 text', { cause: error });
    }
    if (text.includes('\0')) {
        throw new Error('it has NUL bytes, so it is no text');
    }
    return text;
}

async function unpack(bytes: Buffer): Promise<Buffer> {
    try {
        return await gunzip(bytes, { maxOutputLength: LARGEST_TEXT });
    } catch (error) {
        const isLarge = (error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE';
        const why = isLarge
            ? `it is larger than ${LARGEST_TEXT / 2 ** 20} MiB when it is unpacked`
            : `its gzip compression is damaged (${messageOf(error)})`;
        throw new Error(why, { cause: error });
    }
}
