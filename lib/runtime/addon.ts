import fs from 'node:fs';
import path from 'node:path';
import { BlockprunerError, messageOf } from '../errors.js';

/** Where a model is computed. */
export type Device = 'cpu' | 'cuda' | 'metal' | 'vulkan';
export const devices: readonly Device[] = ['cpu', 'cuda', 'metal', 'vulkan'];

/** Options of every call that works on the addon's own thread. `cancel[0] = 1` stops it. */
interface NativeTask {
    onProgress?: (done: number, total: number) => void;
    cancel?: Int32Array;
}

export interface NativeModel {
    tokenize(text: string, task?: NativeTask): Promise<Int32Array>;
    describe(): {
        architecture: string;
        layers: number;
        /** values of the residual stream for a token */
        embedding: number;
        vocabulary: number;
        /** context length that the model was trained with */
        context: number;
        /** the BOS token, where the model wants one at the start of a text */
        bos: number | null;
        hasEncoder: boolean;
        hasDecoder: boolean;
        bytes: number;
        parameters: number;
        /** by layer: its attention sees a sliding window of tokens */
        slidingWindow: boolean[];
        /** by layer: it is recurrent, as far as the architecture has such layers beside attention */
        recurrent: boolean[];
        /** it has recurrent layers: a state, which sequences can't share */
        hasState: boolean;
    };
    dispose(): void;
}

/** A block as the compute graph shows it. */
export interface NativeBlock {
    kind: 'attn' | 'ffn';
    layer: number;
    /** the weights that only this block reads */
    tensors: string[];
    /** it reads the same boundary as the block before it */
    parallel: boolean;
    /** its output is added to the residual stream as it is at the boundary, not scaled or normalized */
    direct: boolean;
    /** indexes of the blocks of which it reads inner values, or the stream before them, beside its own boundary */
    reads: number[];
    /** what it computes, but for its weights' values and types, its layer and its rope */
    signature: string;
    /** which values it rotates together: neighbours, or halves of a head */
    rope: 'norm' | 'neox' | 'other' | 'none';
}

export interface NativeEvaluator {
    /** In the order of the residual stream. */
    blocks(): NativeBlock[];
    /**
     * Of the last evaluation: how many operations it had, and writes to the KV cache. `kept`: bytes of the residual stream
     * that are kept. `computed`: blocks that were computed since create(), over all sequences. `outerSignature`: what the
     * model computes outside of its blocks.
     */
    graph(): { nodes: number; cacheWrites: number; kept: number; computed: number; outerSignature: string };
    /**
     * The NLL of the tokens 1 … length−1 of each sequence. `skip`: indexes into blocks(). `keep`: keep the residual stream,
     * for later evaluations to start from, at so many boundaries of each sequence in all.
     */
    evaluate(
        tokens: Int32Array,
        length: number,
        skip: number[],
        task: NativeTask & { keep?: number }
    ): Promise<Float32Array>;
    /**
     * The NLL of endings after contexts, the sum over an ending's tokens. `tokens`: of each choice the context's, then the ending's.
     * `lengths`: of each choice the context's and the ending's. What a choice begins with like the one before it is computed once.
     */
    score(tokens: Int32Array, lengths: Uint32Array, skip: number[], task: NativeTask): Promise<Float64Array>;
    /**
     * The means over all positions of cos(a, b) and of |b − a|/|b|, of pairs of boundaries: two numbers of blocks, the
     * boundaries before them; the number of blocks is the stream's end.
     */
    compare(tokens: Int32Array, length: number, pairs: Uint32Array, task: NativeTask): Promise<Float64Array>;
    /** What the logits are computed from, of the tokens 0 … length−2 of each sequence: [sequences × (length − 1) × embedding]. */
    hidden(tokens: Int32Array, length: number, skip: number[], task: NativeTask): Promise<Float32Array>;
    /**
     * Of each of the tokens 1 … length−1 of each sequence: its NLL in the other model and in this, the Kullback–Leibler
     * divergence of this one's distribution from the other's (nats), and 1 where both find the same token likeliest. The
     * other, which may be this one, leaves out nothing.
     */
    diverge(
        tokens: Int32Array,
        length: number,
        skip: number[],
        dense: NativeEvaluator,
        task: NativeTask
    ): Promise<Float32Array>;
    /** Gives back, for others to use, what no evaluation that leaves out these blocks, and more behind them, can start from. */
    forget(skip: number[]): void;
    dispose(): void;
}

export interface NativeGguf {
    /** Arrays of strings and arrays of more than 4096 values are undefined. */
    metadata: Record<string, string | number | boolean | (number | boolean)[] | undefined>;
    tensors: { name: string; type: string; shape: number[]; bytes: number }[];
    /** Bytes that the file must have at least. */
    end: number;
}

export type GgufValue =
    | { key: string; type: 'string'; value: string }
    | { key: string; type: 'u16' | 'i32' | 'u32' | 'f32' | 'f64'; value: number }
    | { key: string; type: 'bool'; value: boolean }
    | { key: string; type: 'u32[]' | 'bool[]'; value: number[] }
    | { key: string; type: 'string[]'; value: string[] };

/** A tensor of a source file; `sum`: in its type, the sum of these tensors' values times their weights instead of its own. */
export interface GgufSource {
    file: number;
    name: string;
    sum?: { file: number; name: string; weight: number }[];
}

/**
 * A copy of a tensor of a source file (`ropeHead`: with the rows of each head of this size in NORM rope order), of several
 * with their rows one after the other, or a new one.
 */
export type GgufTensor =
    | { name: string; from: GgufSource[]; ropeHead?: number }
    | { name: string; type: string; shape: number[]; data?: Float32Array };

export interface GgufPlan {
    output: string;
    sources: string[];
    /** Keys of the first source that are dropped; then key prefixes that are renamed; then arrays that keep some values; then keys that are set. */
    remove: string[];
    rename: [from: string, to: string][];
    select: [key: string, indexes: number[]][];
    set: GgufValue[];
    tensors: GgufTensor[];
    /** Leave a hole for the tensors' bytes: for a file that is only looked at. */
    headerOnly?: boolean;
}

interface Addon {
    /** The best CPU backend for this computer and the folder's GPU backends. */
    loadBackends(folder: string): void;
    /** One backend; without effect where it can't be loaded, for instance without its driver. */
    loadBackend(file: string): void;
    devices(): {
        name: string;
        description: string;
        backend: string;
        gpu: boolean;
        memoryFree: number;
        memoryTotal: number;
    }[];
    readGguf(path: string, task: NativeTask): Promise<NativeGguf>;
    writeGguf(plan: GgufPlan, task: NativeTask): Promise<void>;
    quantize(input: string, output: string, ftype: number): Promise<void>;
    Model: {
        load(
            path: string,
            options: NativeTask & { gpus: string[]; gpuLayers?: number; headerOnly?: boolean }
        ): Promise<NativeModel>;
    };
    Evaluator: {
        create(
            model: NativeModel,
            options: NativeTask & {
                context: number;
                threads: number;
                flashAttention: boolean;
                cacheType: 'f16' | 'f32';
                sequences?: number;
                logitsBytes?: number;
            }
        ): Promise<NativeEvaluator>;
    };
}

const root = path.resolve(__dirname, '..', '..');

/* eslint-disable @typescript-eslint/no-require-imports -- plain JavaScript, shared with the build */
const build = require(path.join(root, 'install', 'build.js')) as typeof import('../../install/build.js');
export const { backendFolders } = require(path.join(root, 'install', 'packages.js')) as {
    backendFolders: Record<Device, string>;
};

let loading: Promise<Addon> | undefined;

/** The addon, built at its first use if the installation did not. CPU backends are loaded. */
export function loadAddon(): Promise<Addon> {
    loading ??= (async () => {
        await build.ensureBuilt().catch((error: unknown) => {
            throw error instanceof build.BuildError
                ? new BlockprunerError('ADDON', error.message, { cause: error })
                : error;
        });
        const addon = require(build.addonPath) as Addon;
        if (backendFolders.cpu !== '') {
            addon.loadBackends(backendFolders.cpu);
        }
        return addon;
    })();
    loading.catch(() => {
        loading = undefined; // the next call may find the toolchain installed
    });
    return loading;
}
/* eslint-enable @typescript-eslint/no-require-imports */

/** ggml's names of the backends */
const backendNames: Record<Device, RegExp> = {
    cpu: /^cpu/i,
    cuda: /^cuda/i,
    metal: /^(metal|mtl)/i,
    vulkan: /^vulkan/i
};

/**
 * Finds the device to compute on: `auto` takes the first GPU there is, else the CPU.
 * @returns the device, and its GPUs by ggml's names
 * @throws BlockprunerError if there is no such device
 */
export async function chooseDevice(
    wanted: Device | 'auto'
): Promise<{ device: Device; gpus: { name: string; description: string; memoryFree: number }[] }> {
    const addon = await loadAddon();
    const tried: Device[] = wanted === 'auto' ? ['cuda', 'metal', 'vulkan', 'cpu'] : [wanted];
    for (const device of tried) {
        if (device === 'cpu') {
            return { device, gpus: [] };
        }
        // alone: the folder has another CPU backend too
        const file =
            backendFolders[device] &&
            fs
                .readdirSync(backendFolders[device])
                .find((name) => /^(lib)?ggml-(cuda|vulkan|metal)\.(so|dll|dylib)$/.test(name));
        if (file) {
            addon.loadBackend(path.join(backendFolders[device], file));
        }
        const gpus = addon.devices().filter((found) => found.gpu && backendNames[device].test(found.backend));
        if (gpus.length > 0) {
            return { device, gpus };
        }
    }
    const found = [...new Set(addon.devices().map((device) => `${device.backend} (${device.description})`))];
    throw new BlockprunerError(
        'DEVICE',
        `no ${wanted} device was found on this computer; there is ${found.join(', ')}`
    );
}

/**
 * Runs work of the addon that an AbortSignal stops.
 * @throws the signal's reason once it is aborted
 */
export async function runNative<T>(
    signal: AbortSignal | undefined,
    work: (cancel: Int32Array) => Promise<T>
): Promise<T> {
    signal?.throwIfAborted();
    const cancel = new Int32Array(1);
    const stop = () => {
        cancel[0] = 1;
    };
    signal?.addEventListener('abort', stop, { once: true });
    try {
        return await work(cancel);
    } catch (error) {
        signal?.throwIfAborted();
        throw new BlockprunerError('RUNTIME', messageOf(error), { cause: error });
    } finally {
        signal?.removeEventListener('abort', stop);
    }
}
