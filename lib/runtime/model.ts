import fs from 'node:fs';
import os from 'node:os';
import {
    chooseDevice,
    loadAddon,
    runNative,
    type Device,
    type NativeBlock,
    type NativeEvaluator,
    type NativeModel
} from './addon.js';
import { bare, formatBlock, sameBlock, without, type Block } from './blocks.js';
import { BlockprunerError, messageOf } from '../errors.js';
import { countParameters, fillerOf, parametersOf, readGguf, type Gguf } from './gguf.js';

export interface LoadOptions {
    /** Where to compute. Default: `auto`, the first GPU found, else the CPU. */
    device?: Device | 'auto' | undefined;
    /** Layers on the GPU. Default: all. */
    gpuLayers?: number | undefined;
    /** Default: the number of cores. */
    threads?: number | undefined;
    /** The type of the KV cache. Default: `f16`, as in llama.cpp. */
    cacheType?: 'f16' | 'f32' | undefined;
    /** Read no weights: such a model shows its graph and can't be evaluated. Default: false. */
    headerOnly?: boolean | undefined;
    onProgress?: ((done: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/** A block of a loaded model, with what its weights take. */
export interface BlockInfo extends Block {
    parameters: number;
    bytes: number;
}

/** The share of a model's parameters that some of its blocks have. */
export function shareOf(blocks: readonly BlockInfo[], removed: readonly Block[], parameters: number): number {
    return (
        blocks
            .filter((block) => removed.some((gone) => sameBlock(gone, block)))
            .reduce((sum, block) => sum + block.parameters, 0) / parameters
    );
}

/** What a model's compute graph consists of. */
export interface ModelGraph {
    /** In the order of the residual stream. */
    blocks: (BlockInfo & Omit<NativeBlock, 'reads'> & { reads: Block[] })[];
    /** What is computed outside of the blocks: equal for models that do the same there, but for their weights' values and types. */
    outerSignature: string;
    /** by layer: its attention sees a sliding window of tokens */
    slidingWindow: boolean[];
    /** by layer: it is recurrent, as far as the architecture has such layers beside attention */
    recurrent: boolean[];
}

/** Token sequences of equal length, one after the other. */
export interface Sequences {
    tokens: Int32Array;
    /** tokens in a sequence */
    length: number;
}

/** An ending, and what it is to follow. */
export interface Choice {
    /** at least one token */
    context: Int32Array;
    /** at least one token */
    ending: Int32Array;
}

export interface EvaluateOptions {
    /** Blocks to leave out. Default: none. */
    skip?: readonly Block[] | undefined;
    /**
     * Keep the residual stream at so many boundaries of each sequence, counting those kept before; each takes
     * 4 × length × {@link Model.embedding} bytes. Evaluations of a sequence start at the last kept boundary before which
     * their skip set is the same, and give the same values as from the start. Default: 0.
     */
    keep?: number | undefined;
    onProgress?: ((sequences: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/**
 * Gives the local file of a model: a path as it is; a URI (`hf:user/repo:Q4_K_M`, `https://…`) is resolved and, once,
 * downloaded by node-llama-cpp into its models folder.
 */
export async function resolveModel(
    model: string,
    options: {
        signal?: AbortSignal | undefined;
        onProgress?: ((bytes: number, total: number) => void) | undefined;
    } = {}
): Promise<string> {
    if (fs.existsSync(model) || !/^[a-z]+:/i.test(model) || /^[a-z]:[\\/]/i.test(model)) {
        return model;
    }
    const { resolveModelFile } = await import('node-llama-cpp');
    try {
        const { signal, onProgress } = options;
        return await resolveModelFile(model, {
            cli: false, // it would draw on stdout
            ...(signal && { signal }),
            ...(onProgress && { onProgress: ({ downloadedSize, totalSize }) => onProgress(downloadedSize, totalSize) })
        });
    } catch (error) {
        options.signal?.throwIfAborted();
        throw new BlockprunerError('DOWNLOAD', `can't get the model ${model}: ${messageOf(error)}`, { cause: error });
    }
}

/** Of each predicted token: [sequences × (length − 1)] each. */
export interface Divergence {
    /** its NLL in the dense model */
    denseNll: Float32Array;
    nll: Float32Array;
    /** Kullback–Leibler divergence from the dense model's distribution to this one's, KL(dense ‖ this), in nats */
    divergence: Float32Array;
    /** 1 where both models find the same token likeliest, else 0 */
    sameTop: Float32Array;
}

/** What a copy of a model needs on a GPU beside its weights: the residual stream that is kept, and its computation. */
const COPY_HEADROOM = 4 * 2 ** 30;

/** One for sequences of up to so many tokens; it finds the blocks. */
interface Evaluator {
    context: number;
    native: NativeEvaluator;
    blocks: ModelGraph['blocks'];
}

/** How many endings are computed at once, at most. */
const SEQUENCES = 64;

/** A loaded model whose blocks can be left out of any evaluation. Frees its memory when disposed or collected. */
export class Model {
    readonly path: string;
    readonly gguf: Gguf;
    readonly device: Device;
    readonly gpuLayers: number | undefined;
    readonly threads: number;
    /** Never llama.cpp's `auto`: that depends on the graph, and so on what is left out of it. */
    readonly flashAttention: boolean;

    readonly #native: NativeModel;
    readonly #cacheType: 'f16' | 'f32';
    /** for sequences one after the other */
    #evaluator: Evaluator | undefined;
    /** for many endings at once */
    #scorer: Evaluator | undefined;

    private constructor(native: NativeModel, path: string, gguf: Gguf, device: Device, options: LoadOptions) {
        this.#native = native;
        this.#cacheType = options.cacheType ?? 'f16';
        this.path = path;
        this.gguf = gguf;
        this.device = device;
        this.gpuLayers = options.gpuLayers;
        this.threads = options.threads ?? os.availableParallelism();
        this.flashAttention = true;
    }

    /**
     * Loads a GGUF causal language model.
     * @param file a path; for a URI see {@link resolveModel}
     * @throws BlockprunerError if the file is damaged or holds no causal language model, or the device isn't there
     */
    static async load(file: string, options: LoadOptions = {}): Promise<Model> {
        const { device, gpus } = await chooseDevice(options.device ?? 'auto');
        return Model.#loadOn(
            file,
            device,
            gpus.map(({ name }) => name),
            options
        );
    }

    /**
     * Loads a copy of the model on each GPU, if there are several of a kind and each has room for it; else one, over all.
     * @throws BlockprunerError as {@link Model.load}
     */
    static async loadOnEach(file: string, options: LoadOptions = {}): Promise<Model[]> {
        const { device, gpus } = await chooseDevice(options.device ?? 'auto');
        const needed = gpus.length > 1 ? (await readGguf(file, options.signal)).bytes + COPY_HEADROOM : Infinity;
        const each =
            options.gpuLayers === undefined &&
            gpus.every(({ memoryFree, description }) => memoryFree > needed && description === gpus[0]!.description);
        const copies = each && gpus.length > 1 ? gpus.map((gpu) => [gpu]) : [gpus];
        const models: Model[] = [];
        try {
            for (const on of copies) {
                models.push(
                    await Model.#loadOn(
                        file,
                        device,
                        on.map(({ name }) => name),
                        options
                    )
                );
            }
        } catch (error) {
            models.forEach((model) => model.dispose());
            throw error;
        }
        return models;
    }

    static async #loadOn(file: string, device: Device, gpus: string[], options: LoadOptions): Promise<Model> {
        const gguf = await readGguf(file, options.signal);
        const kind = gguf.metadata['general.type'];
        if (kind !== undefined && kind !== 'model') {
            throw new BlockprunerError(
                'UNSUPPORTED',
                `${file} is no language model: its general.type is '${String(kind)}'`
            );
        }
        if (gguf.tensors.length === 0) {
            throw new BlockprunerError(
                'UNSUPPORTED',
                `${file} holds only a vocabulary, no weights: nothing can be pruned`
            );
        }
        const addon = await loadAddon();
        const native = await runNative(options.signal, (cancel) =>
            addon.Model.load(file, {
                gpus,
                cancel,
                ...(options.gpuLayers !== undefined && { gpuLayers: options.gpuLayers }),
                ...(options.headerOnly && { headerOnly: true }),
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        ).catch((error: unknown) => {
            options.signal?.throwIfAborted();
            throw new BlockprunerError('MODEL', `llama.cpp can't load ${file}: ${lastLine(messageOf(error))}`, {
                cause: error
            });
        });
        const info = native.describe();
        const causal = gguf.metadata[`${info.architecture}.attention.causal`];
        if (info.hasEncoder || !info.hasDecoder || causal === false) {
            native.dispose();
            throw new BlockprunerError(
                'UNSUPPORTED',
                `${file} is an encoder (architecture ${info.architecture}), not a causal language model: it has no perplexity to prune by`
            );
        }
        return new Model(native, file, gguf, device, options);
    }

    get architecture(): string {
        return this.#native.describe().architecture;
    }

    get layers(): number {
        return this.#native.describe().layers;
    }

    /** The size of the residual stream: values for a token. */
    get embedding(): number {
        return this.#native.describe().embedding;
    }

    /** The number of tokens there are. */
    get vocabulary(): number {
        return this.#native.describe().vocabulary;
    }

    /** Parameters of the whole model, embeddings included. */
    get parameters(): number {
        return countParameters(this.gguf);
    }

    /** The BOS token, if the model wants one at the start of a text. */
    get bos(): number | null {
        return this.#native.describe().bos;
    }

    /** Token ids of a text, with BOS where the model wants it, never EOS; control tokens in the text stay text. */
    async tokenize(text: string, signal?: AbortSignal): Promise<Int32Array> {
        return runNative(signal, (cancel) => this.#native.tokenize(text, { cancel }));
    }

    /**
     * The model's blocks in the order of the residual stream, found in its compute graph. Filler that an earlier pruning left
     * is not counted.
     * @throws BlockprunerError if the graph's residual stream can't be followed
     */
    async blocks(signal?: AbortSignal): Promise<BlockInfo[]> {
        const { blocks } = await this.graph(signal);
        return blocks.map(({ kind, layer, parameters, bytes }) => ({ kind, layer, parameters, bytes }));
    }

    /** The blocks with all that their graph tells of them; errors as {@link blocks}. */
    async graph(signal?: AbortSignal): Promise<ModelGraph> {
        const { slidingWindow, recurrent, context } = this.#native.describe();
        // no longer than the model was trained for: beyond, some models rotate by other factors
        const { blocks, native } = await this.#evaluatorFor(this.#evaluator?.context ?? Math.min(512, context), signal);
        return {
            blocks: without(blocks, fillerOf(this.gguf)),
            outerSignature: native.graph().outerSignature,
            slidingWindow,
            recurrent
        };
    }

    /**
     * The negative log-likelihood (natural logarithm) of each token but the first of each sequence:
     * [sequences × (length − 1)], sequence after sequence.
     */
    async evaluate(sequences: Sequences, options: EvaluateOptions = {}): Promise<Float32Array> {
        const evaluator = await this.#evaluatorFor(sequences.length, options.signal);
        const skip = this.#indexes(evaluator.blocks, options.skip ?? []);
        return runNative(options.signal, (cancel) =>
            evaluator.native.evaluate(sequences.tokens, sequences.length, skip, {
                cancel,
                ...(options.keep !== undefined && { keep: options.keep }),
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        );
    }

    /**
     * The negative log-likelihood (natural logarithm) of endings, each the sum over its tokens given its context. What choices
     * begin with alike is computed once, and as many as fit are computed at once.
     */
    async score(choices: readonly Choice[], options: Omit<EvaluateOptions, 'keep'> = {}): Promise<Float64Array> {
        const sequences = choices.map(({ context, ending }) => Int32Array.from([...context, ...ending]));
        // neighbours are to have much in common
        const order = [...sequences.keys()].sort((a, b) => compareTokens(sequences[a]!, sequences[b]!));
        const needed = sequences.reduce(
            (most, { length }) => Math.max(most, length - 1),
            this.device === 'cpu' ? 512 : 2048
        );
        const scorer = await this.#scorerFor(needed, this.#native.describe().hasState ? 1 : SEQUENCES, options.signal);
        const tokens = Int32Array.from(order.flatMap((index) => [...sequences[index]!]));
        const lengths = Uint32Array.from(
            order.flatMap((index) => [choices[index]!.context.length, choices[index]!.ending.length])
        );
        const skip = this.#indexes(scorer.blocks, options.skip ?? []);
        const sorted = await runNative(options.signal, (cancel) =>
            scorer.native.score(tokens, lengths, skip, {
                cancel,
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        );
        const nll = new Float64Array(choices.length);
        order.forEach((index, i) => (nll[index] = sorted[i]!));
        return nll;
    }

    /**
     * What neighbouring blocks do to the residual stream, of each of several runs of them: `cosine`, the mean over all tokens
     * of the cosine between the stream before and after, and `change`, that of |after − before| / |after|.
     */
    async compare(
        sequences: Sequences,
        runs: readonly (readonly Block[])[],
        options: Omit<EvaluateOptions, 'keep' | 'skip'> = {}
    ): Promise<{ cosine: number; change: number }[]> {
        const evaluator = await this.#evaluatorFor(sequences.length, options.signal);
        const { blocks } = evaluator;
        const pairs = runs.flatMap((run) => {
            const indexes = this.#indexes(blocks, run);
            // the sum of parallel blocks is where both have been added
            let end = Math.max(...indexes) + 1;
            while (blocks[end]?.parallel) {
                end++;
            }
            return [Math.min(...indexes), end];
        });
        const means = await runNative(options.signal, (cancel) =>
            evaluator.native.compare(sequences.tokens, sequences.length, Uint32Array.from(pairs), {
                cancel,
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        );
        return runs.map((_, i) => ({ cosine: means[2 * i]!, change: means[2 * i + 1]! }));
    }

    /** What the logits are computed from, of each token but the last of each sequence: [sequences × (length − 1) × embedding]. */
    async hidden(sequences: Sequences, options: Omit<EvaluateOptions, 'keep'> = {}): Promise<Float32Array> {
        const evaluator = await this.#evaluatorFor(sequences.length, options.signal);
        const skip = this.#indexes(evaluator.blocks, options.skip ?? []);
        return runNative(options.signal, (cancel) =>
            evaluator.native.hidden(sequences.tokens, sequences.length, skip, {
                cancel,
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        );
    }

    /**
     * How this model's predictions differ from those of a dense one, of each token but the first of each sequence. The dense
     * model may be this one: then `skip` is what makes the difference. Memory: vocabulary × length floats three times.
     * @throws BlockprunerError if their vocabularies differ in size
     */
    async diverge(
        sequences: Sequences,
        dense: Model,
        options: Omit<EvaluateOptions, 'keep'> = {}
    ): Promise<Divergence> {
        const evaluator = await this.#evaluatorFor(sequences.length, options.signal);
        const other = await dense.#evaluatorFor(sequences.length, options.signal);
        const skip = this.#indexes(evaluator.blocks, options.skip ?? []);
        const values = await runNative(options.signal, (cancel) =>
            evaluator.native.diverge(sequences.tokens, sequences.length, skip, other.native, {
                cancel,
                ...(options.onProgress && { onProgress: options.onProgress })
            })
        );
        const [denseNll, nll, divergence, sameTop] = [0, 1, 2, 3].map((first) =>
            values.filter((_, i) => i % 4 === first)
        ) as [Float32Array, Float32Array, Float32Array, Float32Array];
        return { denseNll, nll, divergence, sameTop };
    }

    /**
     * Gives back, for others to use, the memory of the kept boundaries at which no evaluation can start that leaves out these
     * blocks, and more behind them.
     */
    forget(skip: readonly Block[]): void {
        this.#evaluator?.native.forget(this.#indexes(this.#evaluator.blocks, skip));
    }

    /** Blocks computed so far, over all sequences, and the bytes of the residual stream that are kept now. */
    get work(): { blocks: number; keptBytes: number } {
        const { computed, kept } = this.#evaluator?.native.graph() ?? { computed: 0, kept: 0 };
        return { blocks: computed, keptBytes: kept };
    }

    #indexes(blocks: readonly BlockInfo[], skip: readonly Block[]): number[] {
        return skip.map((block) => {
            const index = blocks.findIndex((other) => sameBlock(block, other));
            if (index < 0) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `the model has no block ${formatBlock(block)}: its layers are 0 to ${this.layers - 1}`
                );
            }
            return index;
        });
    }

    /** Frees the weights and all memory of evaluations. */
    dispose(): void {
        this.#evaluator?.native.dispose();
        this.#evaluator = undefined;
        this.#scorer?.native.dispose();
        this.#scorer = undefined;
        this.#native.dispose();
    }

    /** One is kept, for the longest sequences seen. */
    async #evaluatorFor(context: number, signal?: AbortSignal): Promise<Evaluator> {
        if (!this.#evaluator || this.#evaluator.context < context) {
            this.#evaluator?.native.dispose();
            this.#evaluator = undefined;
            this.#evaluator = await this.#createEvaluator(context, 1, signal);
        }
        return this.#evaluator;
    }

    /** One is kept, for the longest questions seen. */
    async #scorerFor(context: number, sequences: number, signal?: AbortSignal): Promise<Evaluator> {
        if (!this.#scorer || this.#scorer.context < context) {
            this.#scorer?.native.dispose();
            this.#scorer = undefined;
            this.#scorer = await this.#createEvaluator(context, sequences, signal);
        }
        return this.#scorer;
    }

    async #createEvaluator(context: number, sequences: number, signal?: AbortSignal): Promise<Evaluator> {
        const addon = await loadAddon();
        const native = await runNative(signal, (cancel) =>
            addon.Evaluator.create(this.#native, {
                context,
                sequences,
                cancel,
                threads: this.threads,
                flashAttention: this.flashAttention,
                cacheType: this.#cacheType
            })
        ).catch((error: unknown) => {
            signal?.throwIfAborted();
            throw new BlockprunerError(
                'UNSUPPORTED',
                `can't evaluate ${this.path} (architecture ${this.architecture}): ${lastLine(messageOf(error))}`,
                { cause: error }
            );
        });
        const tensors = new Map(this.gguf.tensors.map((tensor) => [tensor.name, tensor]));
        const found = native.blocks();
        const blocks = found.map((block) => {
            const own = block.tensors.flatMap((name) => tensors.get(name) ?? []);
            return {
                ...block,
                reads: bare(block.reads.map((index) => found[index]!)),
                parameters: own.reduce((sum, tensor) => sum + parametersOf(tensor), 0),
                bytes: own.reduce((sum, tensor) => sum + tensor.bytes, 0)
            };
        });
        return { context, native, blocks };
    }
}

/** As words in a dictionary. */
function compareTokens(a: Int32Array, b: Int32Array): number {
    const differing = a.findIndex((token, i) => token !== b[i]);
    return differing < 0 ? a.length - b.length : differing >= b.length ? 1 : a[differing]! - b[differing]!;
}

/** llama.cpp's logs end in what it gave up for, or begin with it; one line, without the places in its source, is enough. */
function lastLine(text: string): string {
    const line = text.split('\n').find((candidate) => candidate.includes('error')) ?? text.split('\n')[0]!;
    return line.replace(/^(llama_\w+: )?(error loading model: )?/, '').replace(/\S*\/(\w+\.(cpp|c|h):\d+)/, '$1');
}
