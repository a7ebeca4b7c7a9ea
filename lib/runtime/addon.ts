// The native addon: loading it, and the types of what it exports. What a call that model.ts or kept-streams.ts passes
// on means is said there.
import type { ExtraBackend } from '../../install/build.js';
import path from 'node:path';
import { BlockprunerError } from '../errors.js';
import type { BlockKind } from './blocks.js';

/** Stops the calls of the addon that it is given to. */
export interface Cancellation {
    cancel(): void;
}

/** Options of every call that works on a thread of the addon. */
export interface NativeTask {
    onProgress?: ((done: number, total: number) => void) | undefined;
    cancel?: Cancellation;
}

/** A piece of a text, and how it is tokenised. */
export interface TextPiece {
    text: string;
    /** BOS comes before it, where the model wants one. */
    addBos: boolean;
    /** The name of a control token in it, such as `<|im_start|>`, is that token; otherwise, text like any other. */
    parseControl: boolean;
}

export interface NativeModel {
    /** The tokens of all pieces, one after the other. */
    tokenize(pieces: readonly TextPiece[], task: NativeTask): Promise<Int32Array>;
    /** [prompts × length], the prompts included; sequence i draws its random numbers from seed + i */
    generate(
        prompts: readonly Int32Array[],
        options: NativeTask & {
            length: number;
            seed: number;
            topP: number;
            threads: number;
            flashAttention: boolean;
            /** what the keys, values and states of those computed at once may take, in bytes */
            cacheBytes: number;
        }
    ): Promise<Int32Array>;
    /** the text of tokens, without that of control tokens */
    detokenize(tokens: Int32Array): string;
    /** by token: its text as the vocabulary has it; empty where it is no text, as a control token */
    tokenTexts(): string[];
    /** names of tokens: of BOS and EOS, empty where there is none, and of all that `parseControl` finds */
    specialTokens(): { bos: string; eos: string; control: string[] };
    describe(): {
        architecture: string;
        layers: number;
        embedding: number;
        vocabulary: number;
        /** context length that the model was trained with */
        context: number;
        bos: number | null;
        hasEncoder: boolean;
        hasDecoder: boolean;
        isDiffusion: boolean;
        hasVocabulary: boolean;
        bytes: number;
        parameters: number;
        slidingWindow: boolean[];
        recurrent: boolean[];
        /** its sequences can't be computed at once, such as those of recurrent layers, which have a state */
        oneAtATime: boolean;
    };
    dispose(): void;
}

/** A block as the compute graph shows it. */
export interface NativeBlock {
    kind: BlockKind;
    layer: number;
    /** the weights that only this block reads */
    tensors: string[];
    /** it reads the same boundary as the block before it */
    parallel: boolean;
    /** a repair can fit its output projection */
    refittable: boolean;
    /** a repair can fit its input projections */
    inputsRefittable: boolean;
    /** what it writes to the cache of keys and values for a token */
    cacheBytes: number;
    /** its output is added to the residual stream as it is at the boundary, not scaled or normalized */
    direct: boolean;
    /** indexes of the blocks of which it reads inner values, or the stream before them, beside its own boundary */
    reads: number[];
    /** what it computes, apart from its weights' values and types, its layer and its rope */
    signature: string;
    /** which values it rotates together: neighbours, or halves of a head */
    rope: 'norm' | 'neox' | 'other' | 'none';
}

/** Evaluates a model, one call at a time. `skip`: indexes into `blocks()` of those to leave out. */
export interface NativeEvaluator {
    /**
     * How many sequences it computes at once now, at most: fewer than was said once the device had no memory for so
     * many. Undefined once it is disposed.
     */
    readonly atOnce: number | undefined;
    /** In the order of the residual stream. */
    blocks(): NativeBlock[];
    /**
     * Of the last evaluation: its operations, its writes to the cache of keys and values, and the parts of it that ran
     * on one device each, between which values are copied.
     */
    graph(): { nodes: number; cacheWrites: number; splits: number; outerSignature: string };
    evaluate(tokens: Int32Array, length: number, skip: number[], task: NativeTask): Promise<Float32Array>;
    /**
     * `tokens`: of each choice the context's, then the ending's. `lengths`: of each choice the context's and the
     * ending's. What a choice begins with like the one before it is computed once.
     */
    score(tokens: Int32Array, lengths: Uint32Array, skip: number[], task: NativeTask): Promise<Float64Array>;
    /**
     * `pairs`: two boundaries each, named by the index of the block behind it; the number of blocks is the stream's
     * end. Gives a cosine and a change of each pair.
     */
    influence(tokens: Int32Array, length: number, pairs: Uint32Array, task: NativeTask): Promise<Float64Array>;
    hidden(tokens: Int32Array, length: number, skip: number[], task: NativeTask): Promise<Float32Array>;
    /** Gives four values a token: the NLL in the dense model and in this one, the divergence, 1 for the same top. */
    diverge(
        tokens: Int32Array,
        length: number,
        skip: number[],
        dense: NativeEvaluator,
        task: NativeTask
    ): Promise<Float32Array>;
    /** How large the values are that the tensors of the layers multiply. */
    importance(tokens: Int32Array, length: number, skip: number[], task: NativeTask): Promise<TensorImportance[]>;
    dispose(): void;
}

/** A matrix that a repair finds. Matrices are row after row. */
export interface NativeFittedMatrix {
    /** it is a linear block's; else projections change */
    linear: boolean;
    values: Float32Array;
    /** of projections: how much each value of a row matters */
    importance: Float32Array;
    changes: { tensor: string; change: Float32Array }[];
}

export interface NativeRepair {
    /**
     * The next matrix, null after the last; once it failed, it must not be called again.
     * @param known what was found there before, which is taken as it is
     */
    next(
        known: Pick<NativeFittedMatrix, 'values' | 'importance'> | undefined,
        task: NativeTask
    ): Promise<NativeFittedMatrix | null>;
    /** Frees the streams, and lets go of the evaluator. */
    dispose(): void;
}

export interface NativeKeptStreams {
    readonly room: number;
    readonly work: { blocks: number; keptBytes: number };
    /**
     * From then on, linear blocks that are fitted to these sequences stand in the gaps of skip sets, but where all of a
     * gap's blocks are among the `empty` ones.
     */
    putInLinear(tokens: Int32Array, length: number, task: NativeTask): Promise<void>;
    evaluate(
        skip: number[],
        empty: number[],
        sequences: Uint32Array,
        mayWin: boolean,
        task: NativeTask
    ): Promise<Float32Array>;
    remove(removed: number[], empty: number[]): void;
    dispose(): void;
}

export interface NativeGguf {
    /** Arrays of more than 4096 values are undefined. */
    metadata: Record<string, string | number | boolean | (string | number | boolean)[] | undefined>;
    tensors: { name: string; type: string; shape: number[]; bytes: number }[];
    /** bytes that the file must have at least */
    end: number;
}

export type GgufValue =
    | { key: string; type: 'string'; value: string }
    | { key: string; type: 'u16' | 'i32' | 'u32' | 'f32' | 'f64'; value: number }
    | { key: string; type: 'bool'; value: boolean }
    | { key: string; type: 'u32[]' | 'bool[]'; value: number[] }
    | { key: string; type: 'string[]'; value: string[] };

/**
 * A tensor of a source file. `sum`: the sum of these tensors' values times their weights instead of its own, in the
 * type `sumType`, or the tensor's own. `change`: what is added to that sum, row after row. `importance`: of each value
 * of a row, how much it matters where the sum is quantized; above 0.
 */
export interface GgufSource {
    file: number;
    name: string;
    sum?: { file: number; name: string; weight: number }[];
    sumType?: string;
    change?: Float32Array;
    importance?: Float32Array;
}

/**
 * A tensor to write. `from`: a copy of a tensor of a source file, or of several with their rows one after the other;
 * `ropeHead`: with the rows of each head of this size reordered from NEOX to NORM rope order. `data`: its values, F32,
 * which are converted to the type; zeros without. They must be finite, also in that type, and a type that needs to know
 * which values matter can't be given. `shape`: ggml's order, the length of a row first.
 */
export type GgufTensor =
    | { name: string; from: GgufSource[]; ropeHead?: number }
    | { name: string; type: string; shape: number[]; data?: Float32Array };

/** How large the values are that a tensor multiplies; see {@link Model.importance}. */
export interface TensorImportance {
    /** Its name, such as `blk.3.ffn_down.weight`. */
    tensor: string;
    /** Sums of squares by column: [matrices × columns]; a tensor of experts has several matrices. */
    sums: Float32Array;
    /** How many rows were multiplied, by matrix, or once for all. */
    counts: Float32Array;
}

/** A GGUF file that is made of parts of others. */
export interface GgufPlan {
    output: string;
    sources: string[];
    /**
     * The metadata is the first source's: less these keys, then with key prefixes renamed, then with some values of
     * arrays alone, then with other values.
     */
    remove: string[];
    rename: [from: string, to: string][];
    select: [key: string, indexes: number[]][];
    set: GgufValue[];
    tensors: GgufTensor[];
    /** Leave a hole for the tensors' bytes: for a file that is only looked at. */
    headerOnly?: boolean;
}

export interface Addon {
    /** Loads the best CPU backend for this computer and the folder's GPU backends. */
    loadBackends(folder: string): void;
    /** Loads one backend. Gives the reason where it can't be loaded, for instance without its driver. */
    loadBackend(file: string): string | undefined;
    /** The devices of the backends that are loaded; memory in bytes. */
    devices(): {
        name: string;
        description: string;
        backend: string;
        gpu: boolean;
        memoryFree: number;
        memoryTotal: number;
    }[];
    /** Adds the devices of an RPC server, host:port, once the RPC backend is loaded; why that fails, if it does. */
    addRpcServer(endpoint: string): string | undefined;
    /** Serves this computer's devices to others over RPC, until the process ends; rejects where it can't. */
    serveRpc(endpoint: string, threads: number, devices: string[], task: NativeTask): Promise<void>;
    /**
     * Computes a tiny graph on a device; rejects where it gives something else than on the CPU. A backend that can't go
     * on ends the process.
     */
    tryDevice(name: string, task: NativeTask): Promise<void>;
    /** Takes an open file for this process until it is closed or the process ends; false if another process has it. */
    lockFile(fd: number): boolean;
    readGguf(path: string, task: NativeTask): Promise<NativeGguf>;
    /** Progress is told in bytes. */
    writeGguf(plan: GgufPlan, task: NativeTask): Promise<void>;
    /** Those of some names that a pattern of a tensor's type finds. Throws where it is no regular expression. */
    namesFound(pattern: string, names: readonly string[]): string[];
    /** Progress is told in tensors. */
    quantizeGguf(
        input: string,
        output: string,
        options: NativeTask & {
            type: string;
            threads: number;
            importance?: readonly TensorImportance[] | undefined;
            tensorTypes?: readonly (readonly [pattern: string, type: string])[] | undefined;
        }
    ): Promise<void>;
    Cancellation: new () => Cancellation;
    /** Whether this CPU has the instructions that repacked weights are for. */
    canRepack(): boolean;
    Model: {
        /**
         * `gpus`: names of devices; without any, the CPU computes. `embeddingType`: of the embeddings' tensor, which is
         * put on the GPU too where that can look up rows of this type. `checkTensors`: reject where weights are not
         * finite. `repack`: multiply by copies of Q8_0 weights that are laid out for this CPU; only where canRepack().
         */
        load(
            path: string,
            options: NativeTask & {
                gpus: string[];
                gpuLayers?: number | undefined;
                headerOnly?: boolean | undefined;
                checkTensors?: boolean | undefined;
                repack?: boolean | undefined;
                embeddingType?: string | undefined;
            }
        ): Promise<NativeModel>;
    };
    Evaluator: {
        /**
         * Finds the blocks; rejects where the graph isn't understood.
         * @param options.context tokens of a sequence, at most; with a shared cache, of all that is computed at once
         * @param options.sequences how many sequences, or endings of `score`, are computed at once, at most; default 1
         * @param options.sharedCache for `score`: endings share what they begin with; default false
         * @param options.keepMasks keep attention masks, as is done on a GPU, on the CPU too; default false
         * @param options.logitsBytes memory for logits, of which longer sequences compute parts; default 256 MiB
         */
        create(
            model: NativeModel,
            options: NativeTask & {
                context: number;
                threads: number;
                flashAttention: boolean;
                cacheType: 'f16' | 'f32';
                sequences?: number;
                sharedCache?: boolean;
                keepMasks?: boolean;
                logitsBytes?: number;
            }
        ): Promise<NativeEvaluator>;
    };
    KeptStreams: new (
        evaluator: NativeEvaluator,
        tokens: Int32Array,
        length: number,
        keepBytes: number
    ) => NativeKeptStreams;
    /**
     * @param gaps the boundaries before and behind each, as in `influence`
     * @param options.linear by gap
     */
    Repair: new (
        evaluator: NativeEvaluator,
        tokens: Int32Array,
        length: number,
        gaps: Uint32Array,
        options: {
            linear: boolean[];
            refit: 'none' | 'adjacent' | 'all';
            linearRidge?: number | undefined;
            correction?: number | undefined;
            refitRidge?: number | undefined;
        }
    ) => NativeRepair;
}

const root = path.resolve(__dirname, '..', '..');

/* eslint-disable @typescript-eslint/no-require-imports -- plain JavaScript, shared with the build */
const build = require(path.join(root, 'install', 'build.js')) as typeof import('../../install/build.js');
/** The folders of the prebuilt backends, by device; '' where there is none. */
export const { backendFolders } = require(path.join(root, 'install', 'packages.js')) as {
    backendFolders: Record<'cpu' | 'cuda' | 'metal' | 'vulkan', string>;
};

/**
 * Builds a backend: CUDA's for the GPUs of this computer, which is then used in the place of the prebuilt one, or
 * RPC's.
 * @throws BlockprunerError if it can't be built
 */
export async function buildBackend(kind: ExtraBackend): Promise<string> {
    return build.buildBackend(kind).catch((error: unknown) => {
        throw error instanceof build.BuildError
            ? new BlockprunerError('ADDON', error.message, { cause: error })
            : error;
    });
}

/** The library of that backend; '' where it was not built. */
export function builtBackend(kind: ExtraBackend): string {
    return build.builtBackend(kind);
}

let loaded: Addon | undefined;
let loading: Promise<Addon> | undefined;

/**
 * Loads the addon with its CPU backends. The first use builds it, where the installation did not.
 * @throws BlockprunerError if it can't be built
 */
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
        return (loaded = addon);
    })();
    loading.catch(() => {
        loading = undefined; // the next call may find the toolchain installed
    });
    return loading;
}
/* eslint-enable @typescript-eslint/no-require-imports */

/**
 * Runs work of the addon that an AbortSignal stops.
 * @throws the signal's reason once it is aborted; BlockprunerError if the work fails
 */
export async function runNative<T>(
    signal: AbortSignal | undefined,
    work: (cancel: Cancellation) => Promise<T>
): Promise<T> {
    // work must have begun when this returns: who disposes what it uses then waits for its end
    const { Cancellation } = loaded ?? (await loadAddon());
    signal?.throwIfAborted();
    const cancellation = new Cancellation();
    const stop = () => cancellation.cancel();
    signal?.addEventListener('abort', stop, { once: true });
    try {
        return await work(cancellation);
    } catch (error) {
        signal?.throwIfAborted();
        if (error instanceof BlockprunerError) {
            throw error;
        }
        const { name, message } = error as Error;
        // the addon's RangeErrors are about what it was given
        throw new BlockprunerError(name === 'RangeError' ? 'ARGUMENT' : 'RUNTIME', message, { cause: error });
    } finally {
        signal?.removeEventListener('abort', stop);
    }
}
