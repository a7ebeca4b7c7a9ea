import cacache from 'cacache';
import envPaths from 'env-paths';
import { BlockprunerError, messageOf } from '../errors.js';
import { decodeText, LARGEST_TEXT } from './decode.js';

export interface DownloadOptions {
    signal?: AbortSignal | undefined;
    /** Is told the bytes that have come and that will; it isn't called for what is in the cache. */
    onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Whether a name is that of something to download: `https://…`, `http://…`, or
 * `hf://datasets/user/repo[@revision]/path` on Hugging Face.
 */
export function isUri(file: string): boolean {
    return /^(https?|hf):\/\//i.test(file);
}

/**
 * The folder of downloaded texts: the one that BLOCKPRUNER_CACHE names, else the system's place for the user's caches.
 */
export function cacheFolder(): string {
    return process.env.BLOCKPRUNER_CACHE || envPaths('blockpruner', { suffix: '' }).cache;
}

/**
 * Gives the text behind a URI, as {@link downloadFile} does.
 * @throws BlockprunerError that names the URI and what is wrong with it
 */
export async function downloadText(uri: string, options?: DownloadOptions): Promise<string> {
    const bytes = await downloadFile(uri, options, async (raw) => {
        const text = await decodeText(raw);
        return Buffer.from(text.trim() === '' ? '' : text); // the reader of the text refuses an empty one
    });
    return bytes.toString();
}

/**
 * Gives what is behind a URI. It is downloaded once: what is in the cache, whole and undamaged, needs no network. Only
 * a whole file that isn't empty gets into the cache.
 * @param prepare makes of what came what is kept; it throws if that isn't what was wanted
 * @throws BlockprunerError that names the URI and what is wrong with it
 */
export async function downloadFile(
    uri: string,
    options: DownloadOptions = {},
    prepare: (bytes: Buffer) => Promise<Buffer>
): Promise<Buffer> {
    const { signal } = options;
    signal?.throwIfAborted();
    const cached = await cacache.get(cacheFolder(), uri).catch(() => undefined); // it isn't there, or is damaged
    if (cached) {
        return cached.data;
    }
    let bytes: Buffer;
    try {
        bytes = await download(uri, options);
    } catch (error) {
        signal?.throwIfAborted();
        throw new BlockprunerError('DOWNLOAD', `can't download ${uri}: ${reasonOf(error)}`, { cause: error });
    }
    try {
        bytes = await prepare(bytes);
    } catch (error) {
        throw new BlockprunerError(
            'DOWNLOAD',
            `can't use ${uri}: ${messageOf(error)}; unpack or convert it, and give the file`
        );
    }
    if (bytes.length === 0) {
        return bytes;
    }
    try {
        await cacache.put(cacheFolder(), uri, bytes); // it appears in the cache once it is written
    } catch (error) {
        throw new BlockprunerError(
            'DOWNLOAD',
            `can't keep ${uri} in ${cacheFolder()}: ${messageOf(error)}; BLOCKPRUNER_CACHE may name another folder`,
            { cause: error }
        );
    }
    return bytes;
}

async function download(uri: string, { signal, onProgress }: DownloadOptions): Promise<Buffer> {
    const response = await fetch(addressOf(uri), { ...(signal && { signal }) });
    try {
        if (!response.ok) {
            throw new BlockprunerError(
                'DOWNLOAD',
                {
                    401: 'it takes a login (401); download it yourself, and give the file',
                    403: 'access is denied (403); download it yourself, and give the file',
                    404: 'there is no such file (404)'
                }[response.status] ?? `the server answers ${response.status} ${response.statusText}`.trimEnd()
            );
        }
        if (/^text\/html\b/i.test(response.headers.get('content-type') ?? '')) {
            throw new BlockprunerError('DOWNLOAD', 'it is a web page; give the address of the file itself');
        }
        const total = Number(
            response.headers.get('content-encoding') === null && response.headers.get('content-length')
        );
        const chunks: Uint8Array[] = [];
        let done = 0;
        // Node's streams can be iterated. By the types of the DOM, which Vega's types bring along, they can't.
        for await (const chunk of (response.body ?? []) as unknown as AsyncIterable<Uint8Array>) {
            // fails where the connection ends before content-length
            chunks.push(chunk);
            done += chunk.length;
            if (Math.max(done, total) > LARGEST_TEXT) {
                throw new BlockprunerError(
                    'DOWNLOAD',
                    `it is larger than ${LARGEST_TEXT / 2 ** 20} MiB; download it yourself, and give a part of it`
                );
            }
            if (total > 0) {
                onProgress?.(done, total);
            }
        }
        return Buffer.concat(chunks);
    } finally {
        await response.body?.cancel().catch(() => {}); // the rest of it isn't read
    }
}

/** The web address of a URI. HF_ENDPOINT names another server for `hf://`, as it does for Hugging Face's own tools. */
function addressOf(uri: string): string {
    if (!/^hf:/i.test(uri)) {
        return uri;
    }
    const [, repository, revision = 'main', file] =
        /^hf:\/\/(datasets\/[^/]+\/[^/@]+)(?:@([^/]+))?\/(.+)$/i.exec(uri) ?? [];
    if (repository === undefined || file === undefined) {
        throw new BlockprunerError('DOWNLOAD', 'write hf://datasets/user/repo/path');
    }
    return `${process.env.HF_ENDPOINT ?? 'https://huggingface.co'}/${repository}/resolve/${revision}/${file}`;
}

function reasonOf(error: unknown): string {
    if (error instanceof BlockprunerError) {
        return error.message;
    }
    const { cause } = error as Error; // the message of fetch itself says nothing
    switch ((cause as NodeJS.ErrnoException | undefined)?.code) {
        case 'ENOTFOUND':
        case 'EAI_AGAIN':
            return 'its host is not found: is there a network?';
        case 'ECONNREFUSED':
            return 'its host refuses the connection';
        case 'UND_ERR_SOCKET':
        case 'ECONNRESET':
            return 'the connection broke off; try again';
        default:
            return messageOf(cause ?? error);
    }
}
