import fs from 'node:fs/promises';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { BlockprunerError, messageOf } from '../errors.js';
import { draftOf, partialIn, type Draft } from '../output.js';
import { loadAddon, runNative, type GgufPlan, type NativeGguf } from './addon.js';
import { parseBlocks, type Block } from './blocks.js';

export interface GgufTensorInfo {
    name: string;
    /** ggml's name of the type: `f16`, `q4_K`, … */
    type: string;
    /** ggml's order: the length of a row first */
    shape: number[];
    bytes: number;
    /** index into `files` */
    file: number;
}

/** What a GGUF model consists of, from its header or, where it is split, its headers. */
export interface Gguf {
    /** The model's files, all parts of a split model in order. */
    files: string[];
    /** of the first file; arrays of strings and long arrays are undefined */
    metadata: NativeGguf['metadata'];
    tensors: GgufTensorInfo[];
    /** size of all files */
    bytes: number;
}

/** The number of values of a tensor. */
export function parametersOf(tensor: { shape: number[] }): number {
    return tensor.shape.reduce((product, length) => product * length, 1);
}

/** Of a whole model, embeddings included. */
export function countParameters(gguf: Gguf): number {
    return gguf.tensors.reduce((total, tensor) => total + parametersOf(tensor), 0);
}

/**
 * Reads the header of a GGUF model; of all parts where it is split.
 * @throws BlockprunerError if a part is missing, is no GGUF file or is truncated
 */
export async function readGguf(file: string, signal?: AbortSignal): Promise<Gguf> {
    const first = await readPart(file, signal);
    const count = first.metadata['split.count'];
    const files = [file];
    const parts = [first];
    if (typeof count === 'number' && count > 1) {
        const [, prefix] = /^(.*)-00001-of-\d{5}\.gguf$/.exec(path.basename(file)) ?? [];
        if (prefix === undefined) {
            throw new BlockprunerError(
                'MODEL',
                `${file} is a part of a model split into ${count} files: give the first, ` +
                    `…-00001-of-${String(count).padStart(5, '0')}.gguf`
            );
        }
        for (let part = 2; part <= count; part++) {
            const name = `${prefix}-${String(part).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.gguf`;
            files.push(path.join(path.dirname(file), name));
            parts.push(await readPart(files.at(-1)!, signal));
        }
    }
    return {
        files,
        metadata: first.metadata,
        tensors: parts.flatMap((part, index) => part.tensors.map((tensor) => ({ ...tensor, file: index }))),
        bytes: parts.reduce((sum, part) => sum + part.size, 0)
    };
}

async function readPart(file: string, signal?: AbortSignal): Promise<NativeGguf & { size: number }> {
    let size: number;
    try {
        const stat = await fs.stat(file);
        if (!stat.isFile()) {
            throw new Error('it is not a file');
        }
        size = stat.size;
        const handle = await fs.open(file);
        const { buffer } = await handle.read(Buffer.alloc(4), 0, 4, 0).finally(() => handle.close());
        if (buffer.toString('latin1') !== 'GGUF') {
            throw new Error('it is not a GGUF file');
        }
    } catch (error) {
        const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
        throw new BlockprunerError(
            'MODEL',
            `can't read the model ${file}: ${isMissing ? 'there is no such file' : messageOf(error)}`
        );
    }
    const addon = await loadAddon();
    const part = await runNative(signal, (cancel) => addon.readGguf(file, { cancel })).catch((error: unknown) => {
        signal?.throwIfAborted();
        throw new BlockprunerError(
            'MODEL',
            `can't read the model ${file}: its GGUF header is damaged or truncated (${messageOf(error).split('\n')[0]})`
        );
    });
    if (size < part.end) {
        throw new BlockprunerError(
            'MODEL',
            `the model ${file} is truncated: it has ${size} bytes and needs ${part.end}; download it again`
        );
    }
    return { ...part, size };
}

/**
 * Writes a GGUF file, complete but for its name.
 * @param what what the file is, for messages
 * @throws BlockprunerError if it can't be written; nothing is left behind then
 */
export async function draftGguf(
    output: string,
    plan: Pick<GgufPlan, 'sources' | 'set' | 'tensors'>,
    { force, what, signal }: { force?: boolean | undefined; what?: string; signal?: AbortSignal | undefined }
): Promise<Draft> {
    const addon = await loadAddon();
    const file = partialIn(path.dirname(path.resolve(output)), '.gguf');
    try {
        const whole = { output: file, remove: [], rename: [], select: [], ...plan };
        await runNative(signal, (cancel) => addon.writeGguf(whole, { cancel }));
        return await draftOf(file, output, { force, what });
    } catch (error) {
        await fs.rm(file, { force: true });
        throw error;
    }
}

/**
 * Writes a GGUF file, which gets its name when it is complete.
 * @throws BlockprunerError if it can't be written, or exists and `force` is not set
 */
export async function writeGguf(...args: Parameters<typeof draftGguf>): Promise<void> {
    const draft = await draftGguf(...args);
    try {
        await draft.publish();
    } finally {
        await draft.discard();
    }
}

/** Metadata key: the blocks of a written model that add nothing. */
export const fillerKey = 'blockpruner.filler';

/** The blocks of a model that are filler of ours: they add nothing, so they are no blocks to a search. */
export function fillerOf(gguf: Gguf): Block[] {
    return parseBlocks(String(gguf.metadata[fillerKey] ?? ''));
}

const hashes = new WeakMap<Gguf, { worker: Worker; hash: Promise<string> }>();

/**
 * SHA-256 of a model's files, one after the other, as hexadecimal digits. It is computed once, also for those who ask
 * meanwhile; where the signal stops it, the next who asks begins anew.
 */
export async function hashGguf(gguf: Gguf, signal?: AbortSignal): Promise<string> {
    signal?.throwIfAborted();
    const { worker, hash } = hashing(gguf, signal);
    worker.ref();
    return hash;
}

/** Begins to compute what {@link hashGguf} gives. A process that is done with all else doesn't wait for it. */
export function hashEarly(gguf: Gguf, signal?: AbortSignal): void {
    const { worker, hash } = hashing(gguf, signal);
    worker.unref();
    hash.catch(() => undefined); // who needs it will hear of it
}

function hashing(gguf: Gguf, signal?: AbortSignal) {
    let found = hashes.get(gguf);
    if (!found) {
        found = sha256(gguf.files, signal);
        hashes.set(gguf, found);
        found.hash.catch(() => hashes.delete(gguf));
    }
    return found;
}

/** On a thread of its own: gigabytes would hold up this one. */
function sha256(files: string[], signal?: AbortSignal): { worker: Worker; hash: Promise<string> } {
    const worker = new Worker(
        `
        const { parentPort, workerData } = require('node:worker_threads');
        const fs = require('node:fs');
        const hash = require('node:crypto').createHash('sha256');
        const buffer = Buffer.alloc(8 * 2 ** 20);
        for (const file of workerData) {
            const fd = fs.openSync(file);
            for (let n; (n = fs.readSync(fd, buffer)) > 0;) hash.update(buffer.subarray(0, n));
            fs.closeSync(fd);
        }
        parentPort.postMessage(hash.digest('hex'));
    `,
        { eval: true, workerData: files }
    );
    const stop = () => void worker.terminate();
    signal?.addEventListener('abort', stop, { once: true });
    const hash = new Promise<string>((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
        worker.once('exit', () =>
            reject(signal?.aborted ? (signal.reason as Error) : new Error('hashing was stopped'))
        );
    });
    return { worker, hash: hash.finally(() => signal?.removeEventListener('abort', stop)) };
}
