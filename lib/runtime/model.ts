import os from 'node:os';
import { checkInteger, checkNumber, checkOneOf } from '../check.js';
import { ArgumentError, BlockprunerError, messageOf, option } from '../errors.js';
import { formatBytes } from '../format.js';
import {
    loadAddon,
    runNative,
    type NativeBlock,
    type NativeEvaluator,
    type NativeModel,
    type NativeTask,
    type TensorImportance,
    type TextPiece
} from './addon.js';
import { bare, formatBlock, SkipSet, without, type Block } from './blocks.js';
import { chooseDevice, isEndpoint, type ChosenDevice, type Device, type Gpu } from './device.js';
import { countParameters, fillerOf, parametersOf, readGguf, type Gguf } from './gguf.js';
import { KeptStreams, type KeepOptions } from './kept-streams.js';
import { checkSequences, type Sequences } from './sequences.js';

export interface LoadOptions {
    /** Where to compute. Default: `auto`, the first GPU found, else the CPU. */
    device?: Device | 'auto' | undefined;
    /** Layers on the GPU. Default: all, or as many as there is room for, which is told. */
    gpuLayers?: number | undefined;
    /**
     * Compute on these RPC servers, host:port, over which the model is spread, for one that is too large for a
     * computer. llama.cpp calls its RPC backend experimental and insecure: it is for networks that are yours alone.
     */
    rpc?: readonly string[] | undefined;
    /** Threads on the CPU, as many as there are cores at most. Default: the number of cores. */
    threads?: number | undefined;
    /**
     * How many tokens are computed at once, of several sequences if they are shorter; a longer sequence is one. Fewer
     * are, where the device has no memory for so many. Default: one sequence on the CPU, 1024 tokens where its weights
     * are repacked, 8192 tokens on a GPU.
     */
    tokensAtOnce?: number | undefined;
    /** The type of the cache of keys and values. Default: `f16`, as in llama.cpp. */
    cacheType?: 'f16' | 'f32' | undefined;
    /**
     * Attention by parts, in less memory; it rounds keys and values to F16 whatever `cacheType` is. Never llama.cpp's
     * `auto`: that depends on the graph, and so on what is left out of it. Default: true.
     */
    flashAttention?: boolean | undefined;
    /**
     * Where the model is computed on a CPU that has AVX-512 VNNI and no AMX, multiply by copies of its Q8_0 weights,
     * laid out for these instructions. They take as much memory as the weights, and aren't made where that is more than
     * a third of the computer's, which is told. Results differ from llama.cpp's by rounding. Default: false.
     */
    repack?: boolean | undefined;
    /** Read no weights: such a model shows its graph and can't be evaluated. Default: false. */
    headerOnly?: boolean | undefined;
    /** Read all weights at once, and refuse a model with some that are not finite. Default: false. */
    checkTensors?: boolean | undefined;
    /** Hears of a GPU that is there and can't be used, and of too many threads, and what is used instead. */
    onNotice?: ((notice: string) => void) | undefined;
    /** Hears what share of the weights is read: `done` of 1. */
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
    const gone = new SkipSet(removed);
    return blocks.filter((block) => gone.has(block)).reduce((sum, block) => sum + block.parameters, 0) / parameters;
}

/** What a model's compute graph consists of. */
export interface ModelGraph {
    /** In the order of the residual stream. */
    blocks: (BlockInfo & Omit<NativeBlock, 'reads'> & { reads: Block[] })[];
    /**
     * What is computed outside of the blocks: equal for models that do the same there, whatever their weights' values
     * and types.
     */
    outerSignature: string;
    /** by layer: its attention sees a sliding window of tokens */
    slidingWindow: boolean[];
    /** by layer: it is recurrent, as far as the architecture has such layers beside attention */
    recurrent: boolean[];
}

/** An ending, and what it is to follow. */
export interface Choice {
    /** at least one token */
    context: Int32Array;
    /** at least one token */
    ending: Int32Array;
}

/** Options of work on several sequences, or choices. */
export interface RunOptions {
    /** Hears how many of them are done. */
    onProgress?: ((done: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

export interface EvaluateOptions extends RunOptions {
    /** Blocks to leave out. Default: none. */
    skip?: readonly Block[] | undefined;
}

/** Which matrices of a model are fitted after blocks went. */
export interface RepairFit {
    /** A linear block in each gap: x + W·x/rms(x); or in which of them. */
    linear: boolean | readonly boolean[];
    /** The output projections of the blocks before a gap; or those of all from there on, and the input projections. */
    refit: 'none' | 'adjacent' | 'all';
    /** λ of linear blocks, in shares of the mean square of what goes in. Default: 0.03. */
    linearRidge?: number | undefined;
    /**
     * Which share of the error that removals before a gap left in the stream its linear block is to take back, beside
     * doing what the gap's blocks did, 0 … 1. Default: 0.5.
     */
    correction?: number | undefined;
    /** λ of projections. Default: 0.3. */
    refitRidge?: number | undefined;
}

export interface FittedRepair {
    /** W of each gap that has one, [n_embd × n_embd], row after row. */
    linear: Float32Array[];
    /**
     * By how much projections change, row after row, and how much each value of a row matters: the mean square of what
     * it multiplies, but for a factor.
     */
    refits: { tensor: string; change: Float32Array; importance: Float32Array }[];
}

/** What a fit finds at one of its places, row after row, and for projections how much each value of a row matters. */
export interface FittedMatrix {
    values: Float32Array;
    importance: Float32Array;
}

/** Keeps what a fit finds, by the number of its place, so that a later fit of the same need not find it again. */
export interface KeptMatrices {
    find(place: number): Promise<FittedMatrix | undefined>;
    keep(place: number, found: FittedMatrix): Promise<void>;
}

/** What blocks do to the residual stream: means over all tokens. */
export interface Influence {
    /** the cosine between the stream before the blocks and behind them */
    cosine: number;
    /** |after − before| / |after| */
    change: number;
}

/** How predictions differ; of each predicted token, [sequences × (length − 1)] each. */
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

/** What the keys, values and states of sequences that a model writes may take. */
const GENERATION_BYTES = 2 ** 30;

/** What is kept for a search by default: on the CPU, and as a share of what is free on a GPU. */
const DEFAULT_KEEP_BYTES = 2 * 2 ** 30;
const DEFAULT_KEEP_SHARE = 0.75;

/** What a GPU needs beside that for its computation, as far as there is so much. */
const COMPUTE_HEADROOM = 2 * 2 ** 30;

/**
 * Tokens that are computed at once by default: on a GPU, and on a CPU whose products take so little that starting
 * operations is a tenth of a pass.
 */
const GPU_TOKENS_AT_ONCE = 8192;
const REPACKED_TOKENS_AT_ONCE = 1024;

/**
 * A GPU is busy with so many operations (two for each token and parameter) for as long as it takes to start those of a
 * graph. With fewer, or so many tokens, more sequences cost little more.
 */
const FULL_OPERATIONS = 4e12;
const FULL_TOKENS = 2048;

/** How many endings are computed at once, at most. */
const ENDINGS_AT_ONCE = 64;

/** A context of llama.cpp for so many tokens, and the blocks that were found in its graph. */
interface Context {
    size: number;
    /** sequences that are computed at once, at most, and how many were wanted when memory was sought for them */
    atOnce: number;
    wanted: number;
    evaluator: NativeEvaluator;
    blocks: ModelGraph['blocks'];
}

/** A loaded model whose blocks can be left out of any evaluation. Frees its memory when disposed or collected. */
export class Model {
    readonly path: string;
    readonly gguf: Gguf;
    readonly device: Device;
    /** Whether the device's backend is the prebuilt one, which the stock runtime has too. */
    readonly prebuilt: boolean;
    readonly gpuLayers: number | undefined;
    readonly rpc: readonly string[] | undefined;
    readonly threads: number;
    readonly flashAttention: boolean;
    /** Whether products use repacked copies of the model's Q8_0 weights. */
    readonly repacked: boolean;

    readonly #native: NativeModel;
    readonly #gpus: readonly Gpu[];
    readonly #tokensAtOnce: number;
    readonly #cacheType: 'f16' | 'f32';
    readonly #onNotice: LoadOptions['onNotice'];
    /** The longest that was needed so far, for sequences one after the other and for many endings at once. */
    readonly #contexts: { sequences?: Context; endings?: Context } = {};
    readonly #streams = new Set<KeptStreams>();

    private constructor(
        native: NativeModel,
        path: string,
        gguf: Gguf,
        { device, gpus, prebuilt }: ChosenDevice,
        options: LoadOptions
    ) {
        this.#native = native;
        this.#gpus = gpus;
        this.prebuilt = prebuilt;
        const onCpu = options.repack ? REPACKED_TOKENS_AT_ONCE : 1;
        this.#tokensAtOnce = options.tokensAtOnce ?? (device === 'cpu' ? onCpu : GPU_TOKENS_AT_ONCE);
        this.#cacheType = options.cacheType ?? 'f16';
        this.#onNotice = options.onNotice;
        this.flashAttention = options.flashAttention ?? true;
        this.repacked = options.repack ?? false;
        this.path = path;
        this.gguf = gguf;
        this.device = device;
        this.gpuLayers = options.gpuLayers;
        this.rpc = options.rpc;
        const available = os.availableParallelism();
        this.threads = Math.min(options.threads ?? available, available);
        if (options.threads !== undefined && options.threads > available) {
            // more would wait for each other
            options.onNotice?.(
                `${options.threads} threads are more than this computer runs at once: taking ${available}`
            );
        }
    }

    /**
     * Loads a GGUF causal language model.
     * @param file a path; for a URI see {@link resolveModel}
     * @throws ArgumentError for options that can't be; BlockprunerError if the file is damaged or holds no causal
     *     language model, or the device isn't there
     */
    static async load(file: string, options: LoadOptions = {}): Promise<Model> {
        checkLoadOptions(options);
        const on = await chooseDevice(options.device ?? 'auto', options.onNotice, options.rpc);
        return Model.#loadOn(file, on, options);
    }

    /**
     * Loads a copy of the model on each GPU, if there are several of a kind and each has room for it; else one, over
     * all.
     * @throws as {@link Model.load}
     */
    static async loadOnEach(file: string, options: LoadOptions = {}): Promise<Model[]> {
        checkLoadOptions(options);
        const on = await chooseDevice(options.device ?? 'auto', options.onNotice, options.rpc);
        const { gpus } = on;
        const needed = gpus.length > 1 ? (await readGguf(file, options.signal)).bytes + COPY_HEADROOM : Infinity;
        const each =
            options.gpuLayers === undefined &&
            gpus.every(({ memoryFree, description }) => memoryFree > needed && description === gpus[0]!.description);
        const copies = each && gpus.length > 1 ? gpus.map((gpu) => [gpu]) : [gpus];
        const models: Model[] = [];
        try {
            for (const copy of copies) {
                models.push(await Model.#loadOn(file, { ...on, gpus: copy }, options));
            }
        } catch (error) {
            models.forEach((model) => model.dispose());
            throw error;
        }
        return models;
    }

    static async #loadOn(file: string, on: ChosenDevice, options: LoadOptions): Promise<Model> {
        const { gpus } = on;
        const { headerOnly, checkTensors, onProgress, onNotice, signal } = options;
        const gguf = await readGguf(file, signal);
        checkKind(file, gguf);
        const gpuLayers = options.gpuLayers ?? (headerOnly ? undefined : layersWithRoom(file, gguf, gpus, onNotice));
        if (!headerOnly) {
            checkMemory(file, gguf, gpus, gpuLayers);
        }
        const repack = options.repack && !headerOnly && gpus.length === 0 && (await canRepack(gguf, onNotice));
        const addon = await loadAddon();
        const names = gpus.map(({ name }) => name);
        const embeddingType = gguf.tensors.find(({ name }) => name === 'token_embd.weight')?.type;
        const native = await runNative(signal, (cancel) =>
            addon.Model.load(file, {
                gpus: names,
                gpuLayers,
                headerOnly,
                checkTensors,
                repack,
                embeddingType,
                onProgress,
                cancel
            })
        ).catch((error: unknown) => {
            signal?.throwIfAborted();
            throw new BlockprunerError('MODEL', `llama.cpp can't load ${file}: ${reasonIn(messageOf(error))}`, {
                cause: error
            });
        });
        const { architecture, hasEncoder, hasDecoder, isDiffusion } = native.describe();
        if (isDiffusion || hasEncoder || !hasDecoder || gguf.metadata[`${architecture}.attention.causal`] === false) {
            native.dispose();
            throw new BlockprunerError(
                'UNSUPPORTED',
                `${file} is ${isDiffusion ? 'a diffusion model' : 'an encoder'} (architecture ${architecture}), not ` +
                    'a causal language model: it has no perplexity to prune by'
            );
        }
        return new Model(native, file, gguf, on, { ...options, gpuLayers, repack });
    }

    /**
     * Into how many parts a search divides its sequences. On the CPU they are two where the number of threads is even,
     * each with half of them: threads wait for each other at every operation, so that the fewer they are, the less it
     * costs if other programs need their cores.
     */
    get parts(): number {
        return this.device === 'cpu' && this.threads % 2 === 0 ? 2 : 1;
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

    /** How many tokens a sequence had in training, at most. */
    get trainedContext(): number {
        return this.#native.describe().context;
    }

    /** The BOS token, if the model wants one at the start of a text. */
    get bos(): number | null {
        return this.#native.describe().bos;
    }

    /** Token ids of a text, with BOS where the model wants it, never EOS; control tokens in the text stay text. */
    async tokenize(text: string, signal?: AbortSignal): Promise<Int32Array> {
        if (typeof text !== 'string') {
            throw new ArgumentError('text', 'a string', text);
        }
        return this.tokenizePieces([{ text, addBos: true, parseControl: false }], signal);
    }

    /** Token ids of pieces, one after the other, each tokenised by itself; never an EOS that isn't written in them. */
    async tokenizePieces(pieces: readonly TextPiece[], signal?: AbortSignal): Promise<Int32Array> {
        if (!this.#native.describe().hasVocabulary) {
            const message = `${this.path} has no vocabulary, so no text can be read for it`;
            throw new BlockprunerError('UNSUPPORTED', `${message}: convert it together with its tokenizer`);
        }
        return runNative(signal, (cancel) => this.#native.tokenize(pieces, { cancel }));
    }

    /**
     * Text that the model writes: sequences that begin with prompts, [prompts × length], the prompts included. The rest
     * is drawn from what the model expects, the likeliest tokens that together have a probability of `topP`. A token
     * that ends a text ends no sequence: another text follows. So many are written at once that their keys, values and
     * states take at most 1 GiB. The same seed gives the same text, on the same device.
     * @param seed a whole number; sequence i depends on seed + i and its prompt, not on the others. Default: 0
     * @param topP 0 … 1; with 0, each token is the likeliest one. Default: 0.95
     * @throws ArgumentError for a prompt that is empty, too long, or of tokens that there aren't
     */
    async generate(
        prompts: readonly Int32Array[],
        {
            length,
            seed = 0,
            topP = 0.95,
            onProgress,
            signal
        }: RunOptions & { length: number; seed?: number | undefined; topP?: number | undefined }
    ): Promise<Int32Array> {
        checkInteger('length', length, { least: 1 });
        checkInteger('seed', seed, { least: 0 });
        checkNumber('topP', topP, { least: 0, most: 1 });
        const { vocabulary } = this;
        const wrong = prompts.findIndex(
            (prompt) => prompt.length === 0 || prompt.length > length || prompt.some((t) => t < 0 || t >= vocabulary)
        );
        if (wrong >= 0 || prompts.length === 0) {
            const expected = `lists of 1 to ${length} tokens below ${vocabulary}`;
            throw new ArgumentError('prompts', expected, JSON.stringify([...(prompts[wrong] ?? [])].slice(0, 20)));
        }
        // Which prompts go together doesn't depend on the number of threads, and so the text doesn't.
        const half = this.device === 'cpu' ? Math.ceil(prompts.length / 2) : prompts.length;
        const starts = half < prompts.length ? [0, half] : [0];
        const atOnce = starts.length === this.parts;
        const written = starts.map(() => 0);
        const write = (start: number, index: number) =>
            runNative(signal, (cancel) =>
                this.#native.generate(prompts.slice(start, start + half), {
                    length,
                    seed: (seed + start) % 2 ** 32,
                    topP,
                    threads: atOnce ? this.threads / this.parts : this.threads,
                    cacheBytes: GENERATION_BYTES / starts.length,
                    flashAttention: this.flashAttention,
                    onProgress: (done) => {
                        written[index] = done;
                        onProgress?.(written[0]! + (written[1] ?? 0), prompts.length * length);
                    },
                    cancel
                })
            );
        let turn: Promise<unknown> = Promise.resolve();
        const texts = starts.map((start, index) => {
            const text = turn.then(() => write(start, index));
            turn = atOnce ? turn : text;
            return text;
        });
        await Promise.allSettled(texts); // nothing is at work behind an error
        const tokens = new Int32Array(prompts.length * length);
        (await Promise.all(texts)).forEach((text, index) => tokens.set(text, starts[index]! * length));
        return tokens;
    }

    /** The text of tokens, without that of control tokens. */
    detokenize(tokens: Int32Array): string {
        return this.#native.detokenize(tokens);
    }

    /** By token, its text as the vocabulary has it, such as `Ġthe`; empty for a token that is no text. */
    tokenTexts(): string[] {
        return this.#native.tokenTexts();
    }

    /** The names of BOS and EOS, empty where there is none, and of all tokens that `TextPiece.parseControl` finds. */
    specialTokens(): { bos: string; eos: string; control: string[] } {
        return this.#native.specialTokens();
    }

    /**
     * The model's blocks in the order of the residual stream, found in its compute graph. Filler that an earlier
     * pruning left is not counted.
     * @throws BlockprunerError if the graph's residual stream can't be followed
     */
    async blocks(signal?: AbortSignal): Promise<BlockInfo[]> {
        const { blocks } = await this.graph(signal);
        return blocks.map(({ kind, layer, parameters, bytes }) => ({ kind, layer, parameters, bytes }));
    }

    /** The blocks with all that their graph tells of them; errors as {@link blocks}. */
    async graph(signal?: AbortSignal): Promise<ModelGraph> {
        const { slidingWindow, recurrent } = this.#native.describe();
        const { blocks, evaluator } = await this.#graphContext(signal);
        return {
            blocks: without(blocks, fillerOf(this.gguf)),
            outerSignature: evaluator.graph().outerSignature,
            slidingWindow,
            recurrent
        };
    }

    /** What a token takes in the cache of keys and values, F16, in bytes; filler's part counts too. */
    async cacheBytes(signal?: AbortSignal): Promise<number> {
        const { blocks } = await this.#graphContext(signal);
        return blocks.reduce((sum, block) => sum + block.cacheBytes, 0);
    }

    /**
     * The negative log-likelihood (natural logarithm) of each token but the first of each sequence, given those before
     * it: [sequences × (length − 1)], sequence after sequence.
     * @throws ArgumentError unless the tokens are whole sequences; BlockprunerError for a block that the model doesn't
     *     have
     */
    async evaluate(sequences: Sequences, options: EvaluateOptions = {}): Promise<Float32Array> {
        return this.#run(sequences, options, (evaluator, skip, task) =>
            evaluator.evaluate(sequences.tokens, sequences.length, skip, task)
        );
    }

    /**
     * Evaluates the candidates of a search on calibration sequences, and keeps the residual stream for them to start
     * from. Dispose it to free that memory; {@link dispose} does so too.
     * @throws as {@link evaluate}
     */
    async keepStreams(calibration: Sequences, options: KeepOptions = {}): Promise<KeptStreams> {
        const { linear, threads, signal, onProgress } = options;
        checkSequences(calibration);
        checkNumber('keepBytes', options.keepBytes, { least: 0 });
        checkInteger('threads', threads, { least: 1, most: this.threads });
        const { KeptStreams: NativeStreams } = await loadAddon();
        const { length } = calibration;
        const context =
            threads === undefined
                ? await this.#contextFor(length, signal)
                : await this.#contextOfThreads(length, threads, signal);
        const disposeOwn = () => {
            if (threads !== undefined) {
                context.evaluator.dispose();
            }
        };
        const share = (threads ?? this.threads) / this.threads;
        const keepBytes = options.keepBytes ?? share * (await this.#freeBytesToKeep());
        const native = await runNative(signal, () =>
            Promise.resolve(new NativeStreams(context.evaluator, calibration.tokens, calibration.length, keepBytes))
        ).catch((error: unknown) => {
            disposeOwn();
            throw error;
        });
        const streams = new KeptStreams(
            native,
            calibration,
            context.atOnce,
            this.device === 'cpu' ? 1 : Math.min(FULL_TOKENS, FULL_OPERATIONS / (2 * this.parameters)),
            (blocks) => this.#indexesOf(context, blocks),
            (boundaries) => this.#noticeMemory(context, boundaries),
            disposeOwn,
            signal
        );
        this.#streams.add(streams);
        if (linear) {
            try {
                await runNative(signal, (cancel) =>
                    native.putInLinear(linear.tokens, linear.length, { cancel, ...(onProgress && { onProgress }) })
                );
            } catch (error) {
                streams.dispose();
                throw error;
            }
        }
        return streams;
    }

    /**
     * The negative log-likelihood (natural logarithm) of endings, each the sum over its tokens given its context. What
     * choices begin with alike is computed once, and as many as fit are computed at once.
     * @throws ArgumentError for a context or ending without tokens
     */
    async score(choices: readonly Choice[], options: EvaluateOptions = {}): Promise<Float64Array> {
        const { order, tokens, lengths, longest } = packChoices(choices);
        const size = Math.max(longest - 1, this.device === 'cpu' ? 512 : 2048);
        const context = await this.#contextFor(size, options.signal, 'endings');
        const sorted = await this.#runOn(context, options, (evaluator, skip, task) =>
            evaluator.score(tokens, lengths, skip, task)
        );
        const nll = new Float64Array(choices.length);
        order.forEach((index, i) => (nll[index] = sorted[i]!));
        return nll;
    }

    /**
     * What neighbouring blocks do to the residual stream, of each of several runs of them.
     * @param runs none of them empty
     */
    async influence(
        sequences: Sequences,
        runs: readonly (readonly Block[])[],
        options: RunOptions = {}
    ): Promise<Influence[]> {
        if (runs.some((run) => run.length === 0)) {
            throw new ArgumentError('runs', 'of at least one block each', '[]');
        }
        checkSequences(sequences);
        const context = await this.#contextFor(sequences.length, options.signal);
        const pairs = Uint32Array.from(runs.flatMap((run) => this.#boundariesAround(context, run)));
        const means = await this.#runOn(context, options, (evaluator, _, task) =>
            evaluator.influence(sequences.tokens, sequences.length, pairs, task)
        );
        return runs.map((_, i) => ({ cosine: means[2 * i]!, change: means[2 * i + 1]! }));
    }

    /**
     * What the logits are computed from, of each token but the last of each sequence:
     * [sequences × (length − 1) × embedding].
     */
    async hidden(sequences: Sequences, options: EvaluateOptions = {}): Promise<Float32Array> {
        return this.#run(sequences, options, (evaluator, skip, task) =>
            evaluator.hidden(sequences.tokens, sequences.length, skip, task)
        );
    }

    /**
     * How this model's predictions differ from those of a dense one, of each token but the first of each sequence. The
     * dense model may be this one: then `skip` is what makes the difference. Memory: vocabulary × length floats three
     * times.
     * @throws BlockprunerError if their vocabularies differ in size
     */
    async diverge(sequences: Sequences, dense: Model, options: EvaluateOptions = {}): Promise<Divergence> {
        checkSequences(sequences);
        const { evaluator: other } = await dense.#contextFor(sequences.length, options.signal);
        const values = await this.#run(sequences, options, (evaluator, skip, task) =>
            evaluator.diverge(sequences.tokens, sequences.length, skip, other, task)
        );
        const column = (first: number) => values.filter((_, i) => i % 4 === first);
        return { denseNll: column(0), nll: column(1), divergence: column(2), sameTop: column(3) };
    }

    /**
     * Fits what makes up for blocks that go, so that the residual stream without them follows the model's own: by ridge
     * regression, walking through the blocks that stay. Memory on the host: 8 bytes for each token and value of the
     * stream, and what is found: where input projections are fitted, 4 bytes for each of their values too.
     * @param gaps the neighbouring blocks of each gap, in the order of the residual stream
     * @param options.kept by default, nothing is kept
     * @throws ArgumentError unless the tokens are whole sequences
     * @throws BlockprunerError if the stream has values that are not finite, or memory runs out
     */
    async fitRepair(
        sequences: Sequences,
        gaps: readonly (readonly Block[])[],
        fit: RepairFit,
        { kept, onProgress, signal }: RunOptions & { kept?: KeptMatrices | undefined } = {}
    ): Promise<FittedRepair> {
        checkSequences(sequences);
        const { Repair } = await loadAddon();
        const context = await this.#contextFor(sequences.length, signal);
        const pairs = Uint32Array.from(gaps.flatMap((gap) => this.#boundariesAround(context, gap)));
        const linear = gaps.map((_, i) => (typeof fit.linear === 'boolean' ? fit.linear : fit.linear[i]!));
        const { evaluator } = context;
        const found: FittedRepair = { linear: [], refits: [] };
        const walk = await runNative(signal, () =>
            Promise.resolve(new Repair(evaluator, sequences.tokens, sequences.length, pairs, { ...fit, linear }))
        );
        try {
            for (let place = 0; ; place++) {
                const known = await kept?.find(place);
                const matrix = await runNative(signal, (cancel) => walk.next(known, { onProgress, cancel }));
                this.#noticeMemory(context);
                if (!matrix) {
                    return found;
                }
                if (!known) {
                    await kept?.keep(place, matrix);
                }
                if (matrix.linear) {
                    found.linear.push(matrix.values);
                }
                found.refits.push(...matrix.changes.map((one) => ({ ...one, importance: matrix.importance })));
            }
        } finally {
            walk.dispose();
        }
    }

    /**
     * The importance matrix of the model, which tells a quantizer how much the columns of each matrix matter: of all
     * tensors of the layers that are multiplied, as llama-imatrix gathers it. Memory: 8 bytes for each column, and a
     * context of its own.
     * @throws ArgumentError unless the tokens are whole sequences; BlockprunerError where values are not finite
     */
    async importance(sequences: Sequences, options: EvaluateOptions = {}): Promise<TensorImportance[]> {
        return this.#run(sequences, options, (evaluator, skip, task) =>
            evaluator.importance(sequences.tokens, sequences.length, skip, task)
        );
    }

    /** Frees the weights and all memory of evaluations, kept streams included. */
    dispose(): void {
        this.#streams.forEach((streams) => streams.dispose());
        this.#streams.clear();
        this.#contexts.sequences?.evaluator.dispose();
        this.#contexts.endings?.evaluator.dispose();
        delete this.#contexts.sequences;
        delete this.#contexts.endings;
        this.#native.dispose();
    }

    /** Runs work on sequences, without the blocks that the options leave out. */
    async #run<T>(
        sequences: Sequences,
        options: EvaluateOptions,
        work: (evaluator: NativeEvaluator, skip: number[], task: NativeTask) => Promise<T>
    ): Promise<T> {
        checkSequences(sequences);
        return this.#runOn(await this.#contextFor(sequences.length, options.signal), options, work);
    }

    async #runOn<T>(
        context: Context,
        { skip = [], onProgress, signal }: EvaluateOptions,
        work: (evaluator: NativeEvaluator, skip: number[], task: NativeTask) => Promise<T>
    ): Promise<T> {
        const indexes = this.#indexesOf(context, skip);
        const result = await runNative(signal, (cancel) => work(context.evaluator, indexes, { onProgress, cancel }));
        this.#noticeMemory(context);
        return result;
    }

    /**
     * Tells where the device turned out to have no memory for as much as was wanted.
     * @param boundaries how many a search had room for at first, and has now
     */
    #noticeMemory(context: Context, boundaries?: { before: number; now: number }): void {
        const { atOnce } = context.evaluator;
        const tell = (most: string, now: string) =>
            this.#onNotice?.(`the device (${this.device}) has no memory ${most}: ${now}`);
        if (atOnce !== undefined && atOnce < context.atOnce) {
            tell(`for ${context.atOnce} sequences at once`, `computing ${atOnce}`);
            context.atOnce = atOnce;
        }
        if (boundaries && boundaries.now < boundaries.before) {
            tell(`to keep ${boundaries.before} boundaries of a sequence`, `keeping ${boundaries.now}`);
        }
    }

    #indexesOf({ blocks }: Context, skip: readonly Block[]): number[] {
        const indexes = new Map(blocks.map((block, index) => [formatBlock(block), index]));
        return skip.map((block) => {
            const index = indexes.get(formatBlock(block));
            if (index === undefined) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `the model has no block ${formatBlock(block)}: its layers are 0 to ${this.layers - 1}`
                );
            }
            return index;
        });
    }

    /** The boundaries before and behind neighbouring blocks. */
    #boundariesAround(context: Context, run: readonly Block[]): [before: number, behind: number] {
        const indexes = this.#indexesOf(context, run);
        // the sum of parallel blocks is where both have been added
        let behind = Math.max(...indexes) + 1;
        while (context.blocks[behind]?.parallel) {
            behind++;
        }
        return [Math.min(...indexes), behind];
    }

    /** A context whose graph shows the blocks. */
    async #graphContext(signal?: AbortSignal): Promise<Context> {
        // no longer than the model was trained for: beyond, some models rotate by other factors
        const size = Math.min(512, this.trainedContext || 512);
        return this.#contexts.sequences ?? (await this.#contextFor(size, signal, 'sequences', 1));
    }

    /**
     * The context that there is or, for more tokens or sequences than it has room for, a new one in its place.
     * @param most sequences, or endings, that should be computed at once
     */
    async #contextFor(
        size: number,
        signal: AbortSignal | undefined,
        use: 'sequences' | 'endings' = 'sequences',
        most = use === 'endings' ? ENDINGS_AT_ONCE : this.#sequencesAtOnce(size)
    ): Promise<Context> {
        const wanted = this.#native.describe().oneAtATime ? 1 : most;
        const found = this.#contexts[use];
        if (found && found.size >= size && found.wanted >= wanted) {
            return found;
        }
        this.#forgetContext(use);
        return (this.#contexts[use] = await this.#createContext(size, wanted, use === 'endings', signal));
    }

    /** A context for sequences on some of the threads. It takes the memory of the one on all of them. */
    async #contextOfThreads(size: number, threads: number, signal: AbortSignal | undefined): Promise<Context> {
        this.#forgetContext('sequences');
        const wanted = this.#native.describe().oneAtATime ? 1 : this.#sequencesAtOnce(size);
        return this.#createContext(size, wanted, false, signal, threads);
    }

    /** Frees a context's memory, once nothing uses it any more. */
    #forgetContext(use: 'sequences' | 'endings'): void {
        this.#contexts[use]?.evaluator.dispose();
        delete this.#contexts[use];
    }

    #sequencesAtOnce(size: number): number {
        return Math.max(1, Math.floor(this.#tokensAtOnce / size));
    }

    /** How much a search may keep where nothing is said: most of what is free on the GPU that has the least. */
    async #freeBytesToKeep(): Promise<number> {
        if (this.#gpus.length === 0) {
            return DEFAULT_KEEP_BYTES;
        }
        const names = this.#gpus.map(({ name }) => name);
        const free = (await loadAddon())
            .devices()
            .filter(({ name }) => names.includes(name))
            .map(({ memoryFree }) => memoryFree);
        const least = Math.min(...free);
        return free.length * Math.max(least / 4, Math.min(DEFAULT_KEEP_SHARE * least, least - COMPUTE_HEADROOM));
    }

    async #createContext(
        size: number,
        sequences: number,
        sharedCache: boolean,
        signal: AbortSignal | undefined,
        threads = this.threads
    ): Promise<Context> {
        const addon = await loadAddon();
        const evaluator = await runNative(signal, (cancel) =>
            addon.Evaluator.create(this.#native, {
                context: size,
                sequences,
                sharedCache,
                threads,
                flashAttention: this.flashAttention,
                cacheType: this.#cacheType,
                cancel
            })
        ).catch((error: unknown) => {
            signal?.throwIfAborted();
            const reason = reasonIn(messageOf(error));
            const advice =
                this.#gpus.length > 0 && /failed to allocate/.test(reason)
                    ? `; ${option('gpuLayers')} N puts fewer layers on the GPU`
                    : '';
            throw new BlockprunerError(
                'UNSUPPORTED',
                `can't evaluate ${this.path} (architecture ${this.architecture}): ${reason}${advice}`,
                { cause: error }
            );
        });
        const blocks = withSizes(evaluator.blocks(), this.gguf);
        const context = { size, atOnce: sequences, wanted: sequences, evaluator, blocks };
        this.#noticeMemory(context);
        return context;
    }
}

/** @throws ArgumentError if an option is out of its range; nothing is loaded for that */
export function checkLoadOptions(options: LoadOptions): void {
    const { device, gpuLayers, threads, rpc = [], tokensAtOnce, cacheType } = options;
    checkInteger('gpuLayers', gpuLayers, { least: 0 });
    checkInteger('threads', threads, { least: 1 });
    checkInteger('tokensAtOnce', tokensAtOnce, { least: 1 });
    checkOneOf('cacheType', cacheType, ['f16', 'f32']);
    if (rpc.length > 0 && device !== undefined && device !== 'auto' && device !== 'rpc') {
        throw new BlockprunerError('ARGUMENT', `${option('rpc')} computes on servers: leave out ${option('device')}`);
    }
    const wrong = rpc.find((server) => !isEndpoint(server));
    if (wrong !== undefined) {
        throw new ArgumentError('rpc', 'servers such as host:50052', wrong);
    }
}

/**
 * Loads another file where a model is computed, or on another device, for as long as some work runs. The model itself
 * may be disposed.
 */
export async function useAlike<T>(
    { device: same, gpuLayers, threads, rpc }: Model,
    file: string,
    work: (loaded: Model) => Promise<T>,
    { device = same, signal }: Pick<LoadOptions, 'device' | 'signal'> = {}
): Promise<T> {
    const loaded = await Model.load(file, {
        device,
        gpuLayers,
        threads,
        signal,
        rpc: device === 'rpc' ? rpc : undefined
    });
    try {
        return await work(loaded);
    } finally {
        loaded.dispose();
    }
}

/** @throws BlockprunerError if the file is no model, or only the vocabulary of one */
function checkKind(file: string, gguf: Gguf): void {
    const kind = gguf.metadata['general.type'];
    if (kind !== undefined && kind !== 'model') {
        throw new BlockprunerError(
            'UNSUPPORTED',
            `${file} is no language model: its general.type is '${String(kind)}'`
        );
    }
    if (gguf.tensors.length === 0) {
        throw new BlockprunerError('UNSUPPORTED', `${file} holds only a vocabulary, no weights: nothing can be pruned`);
    }
}

/**
 * How many layers there is room for on the GPUs beside what computing takes; undefined: for all. Where it isn't
 * for all, that is told.
 */
function layersWithRoom(
    file: string,
    gguf: Gguf,
    gpus: readonly Gpu[],
    onNotice: LoadOptions['onNotice']
): number | undefined {
    const free = gpus.reduce((sum, { memoryFree }) => sum + memoryFree, 0);
    const room = roomForWeights(free);
    if (free === 0 || gguf.bytes <= room) {
        return undefined;
    }
    const layers = layersOf(gguf);
    const fit = Math.floor((room * layers) / gguf.bytes);
    const sizes = `${formatBytes(gguf.bytes)}, and ${formatBytes(room)} of the ${formatBytes(free)} that are free`;
    onNotice?.(`${file} has ${sizes} on the GPU can hold weights: computing ${fit} of ${layers} layers there`);
    return fit;
}

/** How much of a GPU's memory weights may take by default, so that there is room to compute. */
function roomForWeights(memory: number): number {
    return Math.max(0.75 * memory, memory - COMPUTE_HEADROOM);
}

function layersOf({ metadata }: Gguf): number {
    return Number(metadata[`${String(metadata['general.architecture'])}.block_count`]);
}

/** All of the memory that this process may have. */
function memoryOfComputer(): number {
    return Math.min(os.totalmem(), process.constrainedMemory() || Infinity);
}

/** Whether this CPU can use repacked weights of a model that has some in Q8_0, and there is room for them. */
export async function canRepack({ tensors }: Gguf, onNotice?: LoadOptions['onNotice']): Promise<boolean> {
    const hasHead = tensors.some(({ name }) => name === 'output.weight'); // else embeddings are multiplied too
    const packed = tensors.filter(
        ({ name, type, shape }) => type === 'q8_0' && shape.length === 2 && !(hasHead && name === 'token_embd.weight')
    );
    const bytes = packed.reduce((sum, tensor) => sum + tensor.bytes, 0);
    if (bytes === 0 || !(await loadAddon()).canRepack()) {
        return false;
    }
    // not what is free now, so that a run that goes on computes the same values
    const memory = memoryOfComputer();
    if (bytes > memory / 3) {
        const why = `they would take ${formatBytes(bytes)} more, and this computer has ${formatBytes(memory)}`;
        onNotice?.(`the weights aren't repacked for this CPU: ${why}`);
        return false;
    }
    return true;
}

/**
 * @throws BlockprunerError where the weights alone take more memory than there is, so that they would be read from the
 * disk again in each pass, or not be loaded at all
 */
function checkMemory(file: string, gguf: Gguf, gpus: readonly Gpu[], gpuLayers: number | undefined): void {
    const layers = layersOf(gguf);
    const onGpus = gpus.length === 0 ? 0 : Math.min(1, (gpuLayers ?? Infinity) / (layers + 1));
    const gpuMemory = gpus.reduce((sum, { memoryTotal }) => sum + memoryTotal, 0);
    const memory = memoryOfComputer();
    const refuse = (bytes: number, where: string, room: number, advice: string) => {
        const needed = `${formatBytes(bytes)} of memory for its weights alone`;
        throw new BlockprunerError('DEVICE', `${file} needs ${needed}, and ${where} ${formatBytes(room)}${advice}`);
    };
    if (gpuMemory > 0 && gguf.bytes * onGpus > gpuMemory) {
        const fit = Math.floor((roomForWeights(gpuMemory) * layers) / gguf.bytes);
        const advice = `: ${option('gpuLayers')} ${fit} puts so many layers there, ${option('device')} cpu none`;
        refuse(gguf.bytes * onGpus, gpus.length === 1 ? 'the GPU has' : 'the GPUs have', gpuMemory, advice);
    }
    if (gguf.bytes * (1 - onGpus) > memory) {
        refuse(gguf.bytes * (1 - onGpus), 'this computer has', memory, '');
    }
}

/** Blocks with what their weights take. */
function withSizes(blocks: readonly NativeBlock[], gguf: Gguf): ModelGraph['blocks'] {
    const tensors = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor]));
    return blocks.map((block) => {
        const own = block.tensors.flatMap((name) => tensors.get(name) ?? []);
        return {
            ...block,
            reads: bare(block.reads.map((index) => blocks[index]!)),
            parameters: own.reduce((sum, tensor) => sum + parametersOf(tensor), 0),
            bytes: own.reduce((sum, tensor) => sum + tensor.bytes, 0)
        };
    });
}

/** Choices as the addon takes them, in an order in which neighbours have much in common. */
function packChoices(choices: readonly Choice[]) {
    if (choices.some(({ context, ending }) => context.length === 0 || ending.length === 0)) {
        throw new ArgumentError('choices', 'of at least one token in each context and ending', '[]');
    }
    const sequences = choices.map(({ context, ending }) => Int32Array.from([...context, ...ending]));
    const order = [...sequences.keys()].sort((a, b) => compareTokens(sequences[a]!, sequences[b]!));
    return {
        order,
        tokens: Int32Array.from(order.flatMap((index) => [...sequences[index]!])),
        lengths: Uint32Array.from(
            order.flatMap((index) => [choices[index]!.context.length, choices[index]!.ending.length])
        ),
        longest: sequences.reduce((most, { length }) => Math.max(most, length), 0)
    };
}

/** Compares token sequences as words in a dictionary. */
function compareTokens(a: Int32Array, b: Int32Array): number {
    const differing = a.findIndex((token, i) => token !== b[i]);
    return differing < 0 ? a.length - b.length : differing >= b.length ? 1 : a[differing]! - b[differing]!;
}

/**
 * The line that tells the reason, of what llama.cpp logged before it gave up, without the places in its source: the
 * first that speaks of an error, or the first.
 */
function reasonIn(text: string): string {
    const broken = /tensor '([^']+)' has invalid data/.exec(text);
    if (broken) {
        return `tensor ${broken[1]} has values that are not finite`;
    }
    const line = text.split('\n').find((candidate) => candidate.includes('error')) ?? text.split('\n')[0]!;
    return line.replace(/^(llama_\w+: )?(error loading model: )?/, '').replace(/\S*\/(\w+\.(cpp|c|h):\d+)/, '$1');
}
