import path from 'node:path';
import {
    checkCalibration,
    describeSequences,
    loadCalibration,
    type Calibration,
    type CalibrationOptions
} from '../calibration/calibration.js';
import { checkNumber, checkOneOf } from '../check.js';
import { option } from '../errors.js';
import { chooseHost } from '../export/choose-host.js';
import type { Host } from '../export/host.js';
import { MergedFiles } from '../export/merged.js';
import type { Decision, MethodContext } from '../methods/method.js';
import type { Device } from '../runtime/device.js';
import type { Block } from '../runtime/blocks.js';
import { countParameters, hashEarly, hashGguf, readGguf, type Gguf } from '../runtime/gguf.js';
import type { KeepOptions } from '../runtime/kept-streams.js';
import { checkLoadOptions, Model, shareOf, type BlockInfo } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import { searchModes, type SearchMode } from '../search/greedy.js';
import type { JournalInputs } from '../search/journal.js';
import { PrefixEvaluator } from '../search/prefix.js';
import { checkConfidence, DEFAULT_CONFIDENCE } from '../search/race.js';
import { version } from '../version.js';
import { checkCluster, Fleet, type ClusterOptions, type WorkerShare } from '../cluster/fleet.js';

/** What is being worked on, for progress bars. `done` and `total` are in the unit of the phase. */
export type Phase =
    'download' | 'load' | 'calibrate' | 'score' | 'search' | 'repair' | 'write' | 'verify' | 'quantize' | 'speed';

export type PhaseProgress = (phase: Phase, done: number, total: number) => void;

/** A model that has been found, of which nothing but the header has been read. */
export interface Source {
    /** The path or URI that was given. */
    model: string;
    gguf: Gguf;
}

/**
 * Finds a model, downloads it if need be, and reads its header.
 * @param model a path, or a URI that node-llama-cpp's resolver takes
 * @throws BlockprunerError if it can't be had, is no GGUF file, or is incomplete
 */
export async function findModel(
    model: string,
    { signal, onProgress }: { signal?: AbortSignal | undefined; onProgress?: PhaseProgress | undefined }
): Promise<Source> {
    const file = await resolveModel(model, {
        signal,
        onProgress: (done, total) => onProgress?.('download', done, total)
    });
    return { model, gguf: await readGguf(file, signal) };
}

export interface SessionOptions {
    calibration?: CalibrationOptions | undefined;
    /** Where to compute. Default: `auto`, the first GPU found, else the CPU. */
    device?: Device | 'auto' | undefined;
    /** Layers on the GPU. Default: all. */
    gpuLayers?: number | undefined;
    /** Compute on these RPC servers, host:port, over which the model is spread; see {@link LoadOptions}. */
    rpc?: readonly string[] | undefined;
    /** CPU threads. Default: the number of cores. */
    threads?: number | undefined;
    onProgress?: PhaseProgress | undefined;
    /** Hears of a GPU that is there and can't be used, and what is used instead. */
    onNotice?: ((notice: string) => void) | undefined;
    /**
     * Do the work in a process of its own, so that this one goes on where llama.cpp or the system end a process: when a
     * GPU fails or memory runs out. Default: false.
     */
    isolate?: boolean | undefined;
    /** Stops the work within about a second; the promise is then rejected with the signal's reason. */
    signal?: AbortSignal | undefined;
}

/** @throws ArgumentError if an option is out of its range; no model is looked for before that is clear */
export function checkSessionOptions({
    calibration = {},
    gpuLayers,
    threads,
    device,
    rpc
}: Omit<SessionOptions, 'onProgress'>): void {
    checkLoadOptions({ device, gpuLayers, threads, rpc });
    checkCalibration(calibration);
}

/** What prune and compare let choose of a search. */
export interface SearchChoice {
    /** How candidates are compared: `race` (the default) or `exact`; `full` is for measuring these two. */
    search?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
    /**
     * Memory on each device for the residual stream that candidates start from, in bytes. Default: 2 GiB; three
     * quarters of what is free on a GPU.
     */
    keepBytes?: number | undefined;
    /**
     * Whether the linear blocks of a repair are in the model already while candidates are compared. They are fitted to
     * the dense model then, and once more by the repair. Default: false.
     */
    repairSearch?: boolean | undefined;
    /** Share the search among workers, on other computers as a rule. Default: all is computed here. */
    cluster?: ClusterOptions | undefined;
    /** Hears of all workers whenever one comes or goes, after each removal, and at the end of the search. */
    onWorkers?: ((workers: readonly WorkerShare[]) => void) | undefined;
}

type Sharing = Pick<SearchChoice, 'cluster' | 'onWorkers'> & Pick<SessionOptions, 'onNotice'>;

/** @throws ArgumentError if a choice is none that there is */
export function checkSearchChoice({ search, confidence, keepBytes, cluster }: SearchChoice): void {
    checkOneOf('search', search, searchModes);
    checkConfidence(confidence);
    checkNumber('keepBytes', keepBytes, { least: 0 });
    if (cluster) {
        checkCluster(cluster);
    }
}

/**
 * A model that is worked on: loaded, with its calibration, its blocks, and the host that it will be written as. What
 * was read of it stays known after dispose().
 */
export class Session {
    readonly gguf: Gguf;
    /** All parameters of the model, embeddings included. */
    readonly parameters: number;
    /** The number of tokens that there are. */
    readonly vocabulary: number;
    /** The workers of the last search, where it was shared; undefined where none was. */
    workers: readonly WorkerShare[] | undefined;

    private constructor(
        source: Source,
        readonly host: Host,
        /** Copies of the model, one on each device. */
        readonly models: readonly Model[],
        /** All blocks of the model, in the order of the residual stream. */
        readonly blocks: readonly BlockInfo[],
        readonly calibration: Calibration,
        /** Layers on the GPU that were asked for. */
        readonly gpuLayers: number | undefined
    ) {
        this.gguf = source.gguf;
        this.parameters = countParameters(source.gguf);
        this.vocabulary = this.model.vocabulary;
    }

    /**
     * Chooses the host, loads the model, finds its blocks and reads the calibration.
     * @param copies load a copy of the model on each of several equal GPUs. Default: true
     * @throws BlockprunerError if the model can't be pruned, or something can't be read
     */
    static async open(source: Source, options: SessionOptions, { copies = true } = {}): Promise<Session> {
        const { device, gpuLayers, threads, rpc, signal, onProgress, onNotice } = options;
        const [file] = source.gguf.files as [string];
        const host = await chooseHost(source.gguf, signal);
        hashEarly(source.gguf, signal); // it is computed while the model is loaded
        const loading = {
            device,
            gpuLayers,
            threads,
            rpc,
            signal,
            onNotice,
            checkTensors: true,
            onProgress: (done: number, total: number) => onProgress?.('load', done, total)
        };
        let models: Model[] = [];
        try {
            models = copies ? await Model.loadOnEach(file, loading) : [await Model.load(file, loading)];
            onProgress?.('calibrate', 0, 1);
            const blocks = await models[0]!.blocks(signal);
            const calibration = await loadCalibration(models[0]!, options.calibration, signal, (done, total) =>
                onProgress?.('calibrate', done, total)
            );
            const { trainedContext } = models[0]!;
            if (calibration.length > trainedContext) {
                onNotice?.(
                    `sequences of ${calibration.length} tokens are longer than the ${trainedContext} that the model ` +
                        `was trained for: ${option('context')} takes fewer`
                );
            }
            return new Session(source, host, models, blocks, calibration, gpuLayers);
        } catch (error) {
            models.forEach((model) => model.dispose());
            throw error;
        }
    }

    get model(): Model {
        return this.models[0]!;
    }

    /** The share of the parameters that some blocks have, 0 … 1. */
    share(removed: readonly Block[]): number {
        return shareOf(this.blocks, removed, this.parameters);
    }

    /** The calibration's name and size, as results and files tell it. */
    get calibrationInfo(): { name: string; sequences: number; context: number } {
        const { name, tokens, length } = this.calibration;
        return { name, sequences: tokens.length / length, context: length };
    }

    /**
     * Runs some work on the model that a decision makes of this one: this one without some blocks, or, where layers are
     * merged or it is repaired, a model of its own.
     * @param folder where the file of such a model is for the time of the work
     */
    async useDecided<T>(
        decision: Decision,
        folder: string,
        work: (model: Model, skip: readonly Block[]) => Promise<T>,
        signal?: AbortSignal
    ): Promise<T> {
        return decision.merges || decision.linear || decision.changes
            ? this.files(folder, signal).use(decision, (merged) => work(merged, []))
            : work(this.model, decision.removed);
    }

    /**
     * What a method works with on this model.
     * @param folder where the files of models with merged layers are for the time of their use
     * @param sharing with whom a search is shared, and who hears of them
     */
    methodContext(
        folder: string,
        sharing: Sharing,
        options: Omit<MethodContext, 'host' | 'blocks' | 'model' | 'calibration' | 'merged' | 'evaluator'>
    ): MethodContext {
        const { host, blocks, model, models, calibration } = this;
        const merged = this.files(folder, options.signal);
        const evaluator = (keeping: KeepOptions) =>
            sharing.cluster
                ? this.#fleet(sharing.cluster, sharing, keeping)
                : PrefixEvaluator.create(models, calibration, keeping);
        return { host, blocks, model, calibration, merged, evaluator, ...options };
    }

    async #fleet(
        cluster: ClusterOptions,
        { onWorkers, onNotice }: Sharing,
        { linear, signal }: KeepOptions
    ): Promise<Fleet> {
        return Fleet.create(await hashGguf(this.gguf, signal), this.calibration, linear, cluster, {
            signal,
            onNotice,
            onWorkers: (workers) => {
                this.workers = workers;
                onWorkers?.(workers);
            }
        });
    }

    /** @param folder where the files of models that are made of this one are for the time of their use */
    files(folder: string, signal?: AbortSignal): MergedFiles {
        return new MergedFiles(this, this.model, path.resolve(folder), signal);
    }

    /** What the evaluations of any search on this model depend on, beside its method: by their names in messages. */
    async searchInputs(
        { search = 'race', confidence = DEFAULT_CONFIDENCE, cluster }: SearchChoice,
        signal?: AbortSignal
    ): Promise<JournalInputs> {
        const { device, ...inputs } = await this.modelInputs(signal);
        return {
            ...inputs,
            calibration: describeSequences(this.calibration),
            search: search === 'race' ? `race, confidence ${confidence}` : search,
            device: cluster ? 'workers' : device
        };
    }

    /** What all that is computed with the model depends on. */
    async modelInputs(signal?: AbortSignal) {
        const model = `SHA-256 ${await hashGguf(this.gguf, signal)}`;
        // not the layers there is room for at the moment
        return { model, device: `${this.model.device}, ${this.gpuLayers ?? 'all'} layers`, version };
    }

    /** Frees the models. */
    dispose(): void {
        this.models.forEach((model) => model.dispose());
    }
}
