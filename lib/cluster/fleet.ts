import crypto from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Queue, Worker } from 'bullmq';
import { checkInteger } from '../check.js';
import { BlockprunerError, messageOf, option } from '../errors.js';
import { bare, type Block } from '../runtime/blocks.js';
import { hashGguf } from '../runtime/gguf.js';
import type { Choice, EvaluateOptions, Model } from '../runtime/model.js';
import { countSequences, type Sequences } from '../runtime/sequences.js';
import type { SearchEvaluator } from '../search/greedy.js';
import { version } from '../version.js';
import { connect, parseAddress, within, type Connection } from './connection.js';
import {
    applicantSchema,
    joinQueueOf,
    keyOfRun,
    keyOfWorker,
    LOCK_DURATION,
    MOST_CHARACTERS,
    MOST_QUEUES,
    pack,
    packSequences,
    printable,
    queueOf,
    resultSchema,
    RUN_EXPIRES,
    RUN_IS_OVER,
    unpackFloats,
    type Answer,
    type Applicant,
    type Run,
    type Unit
} from './protocol.js';

/** How a search is shared among workers. */
export interface ClusterOptions {
    /** Where they meet: redis://host:6379, or with TLS rediss://user:password@host:6379. */
    redis: string;
    /** How keys in Redis begin: only workers with the same one take part. Default: `blockpruner`. */
    namespace?: string | undefined;
    /** How many workers the search waits for before it begins; more may join later. Default: 1. */
    workers?: number | undefined;
    /** Take workers whose devices round otherwise than the first one's too. Default: false. */
    mixed?: boolean | undefined;
    /** After so many milliseconds without a sign of life, a worker's unit goes to another one. Default: 15,000. */
    lockDuration?: number | undefined;
}

/** Who hears of a fleet, and what ends it. */
interface Listeners {
    /** Hears of all workers whenever one comes or goes, after each removal, and at the end. */
    onWorkers?: ((workers: readonly WorkerShare[]) => void) | undefined;
    /** Hears what happens to the fleet, such as that a worker is refused, and why. */
    onNotice?: ((notice: string) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/** A worker, and its part in a search. */
export interface WorkerShare {
    id: string;
    /** What it computes on. */
    device: string;
    /** Whether it has been heard of lately. */
    alive: boolean;
    units: number;
    /** How many sequences it has evaluated, over all candidates, and how long that took, in seconds. */
    sequences: number;
    seconds: number;
    /**
     * By how much its NLLs of the first sequence differ from those of the first worker, at most: 0 for all, but in a
     * mixed fleet.
     */
    difference: number;
}

/** @throws BlockprunerError if Redis can't be used, which is to be found before any long work */
export async function tryCluster({ redis, namespace }: ClusterOptions): Promise<void> {
    await (await connect(redis, namespace)).close();
}

/** @throws BlockprunerError if an option can't be */
export function checkCluster({ redis, workers, lockDuration }: ClusterOptions): void {
    parseAddress(redis);
    checkInteger('workers', workers, { least: 1, most: 10_000 });
    checkInteger('lockDuration', lockDuration, { least: 100, most: 3_600_000 });
}

interface FleetWorker {
    share: WorkerShare;
    together: number;
    boundaries: number;
    keptBytes: number;
}

/** A unit that was asked for and has no result yet. */
interface OpenUnit {
    unit: Unit;
    queue: number;
    /** When it was last sent, by performance.now(). */
    sent: number;
    /** The bytes of its result. */
    bytes: number;
    resolve: (nll: ArrayBuffer) => void;
    reject: (reason: Error) => void;
}

/** What was sent so many milliseconds ago and isn't there yet is looked after. */
const PATIENCE = 3000;

/** How often it is looked after, and how many units at once. */
const CHECK_INTERVAL = 2000;
const CHECKED_AT_ONCE = 32;

/** Endings of a unit: so many are computed at once, and neighbours have much in common. */
const CHOICES_AT_ONCE = 64;

/** Where a unit fails, it is tried so often, by whichever worker. */
const ATTEMPTS = 5;

const MOST_WORKERS = 1000;

/** Workers that are there already join within so many milliseconds; after that, it is told that some are missing. */
const WAITING_TIME = 2000;

/** A run that is over is cleared away in so many milliseconds, or left to expire. */
const CLEANING_TIME = 1500;

/**
 * Evaluates candidates on other machines: the coordinator of a run. Units wait in a few queues, by their sequences, and
 * workers take from the one that was named to them, or else from others, so that what they keep of the residual stream
 * is of use and none is idle (work stealing, Blumofe and Leiserson 1999). BullMQ gives the unit of a worker that is
 * silent to another one. What Redis forgets is sent again: the units without a result are known here.
 *
 * What the search asks for doesn't depend on how many workers there are now: `devices` is the number of those that were
 * there when it began.
 */
export class Fleet implements SearchEvaluator {
    readonly linear: boolean;
    readonly terms = { ask: () => this.#ask(), give: (terms: readonly number[]) => this.#give(terms) };

    readonly #id = crypto.randomUUID();
    readonly #queues: Queue[];
    readonly #admission: Worker;
    readonly #workers = new Map<string, FleetWorker>();
    readonly #refused = new Set<string>();
    readonly #open = new Map<string, OpenUnit>();
    readonly #timers: NodeJS.Timeout[] = [];
    #terms: { workers: number; together: number; probe: Float32Array } | undefined;
    #removed: readonly Block[] = [];
    #sent = 0;
    #failure: Error | undefined;
    #isLooking = false;
    /** What Redis last refused. */
    #problem = '';
    readonly #stop = () => this.#fail(this.listeners.signal!.reason as Error);

    private constructor(
        private readonly connection: Connection,
        private readonly run: Run,
        readonly sequences: number,
        private readonly options: ClusterOptions,
        private readonly listeners: Listeners
    ) {
        this.linear = run.linear !== null;
        this.#queues = Array.from({ length: run.queues }, (_, index) => {
            const events = connection.events(queueOf(this.#id, index));
            events.on('completed', ({ jobId, returnvalue }) => this.#received(jobId, returnvalue));
            events.on('failed', ({ jobId, failedReason }) => this.#failed(jobId, failedReason));
            return connection.queue(queueOf(this.#id, index));
        });
        const admit = ({ data }: { data: unknown }) => Promise.resolve(this.#admit(applicantSchema.parse(data)));
        const keep = { age: 60 };
        this.#admission = connection.worker(joinQueueOf(this.#id), admit, {
            removeOnComplete: keep,
            removeOnFail: keep
        });
    }

    /**
     * Begins a run: workers may join from now on.
     * @param model SHA-256 of the model's files
     * @throws BlockprunerError if Redis can't be used
     */
    static async create(
        model: string,
        calibration: Sequences,
        linear: Sequences | undefined,
        options: ClusterOptions,
        listeners: Listeners = {}
    ): Promise<Fleet> {
        checkCluster(options);
        const run: Run = {
            version,
            model,
            sequences: packSequences(calibration),
            linear: linear ? packSequences(linear) : null,
            queues: Math.min(MOST_QUEUES, countSequences(calibration)),
            lockDuration: options.lockDuration ?? LOCK_DURATION
        };
        if (Math.max(run.sequences.tokens.length, run.linear?.tokens.length ?? 0) > MOST_CHARACTERS) {
            const most = Math.floor((MOST_CHARACTERS * 3) / 16);
            throw new BlockprunerError('ARGUMENT', `a text of more than ${most} tokens can't be shared`);
        }
        const connection = await connect(options.redis, options.namespace);
        const fleet = new Fleet(connection, run, countSequences(calibration), options, listeners);
        try {
            await fleet.#begin();
            return fleet;
        } catch (error) {
            await connection.close();
            throw new BlockprunerError('REDIS', `can't begin a run: ${messageOf(error)}`, { cause: error });
        }
    }

    async #begin(): Promise<void> {
        const { signal } = this.listeners;
        await this.#announce();
        signal?.addEventListener('abort', this.#stop, { once: true });
        this.#timers.push(setInterval(() => void this.#lookAfter(), CHECK_INTERVAL).unref());
    }

    get devices(): number {
        return this.#terms?.workers ?? 1;
    }

    get together(): number {
        return this.#terms?.together ?? 1;
    }

    get kept(): { boundaries: number; bytes: number } {
        const workers = [...this.#workers.values()];
        return {
            boundaries: Math.min(...workers.map(({ boundaries }) => boundaries)),
            bytes: workers.reduce((sum, { keptBytes }) => sum + keptBytes, 0)
        };
    }

    /** All workers that took part. */
    get workers(): WorkerShare[] {
        return [...this.#workers.values()].map(({ share }) => ({ ...share }));
    }

    async evaluate(skip: readonly Block[], sequences: readonly number[], mayWin = false): Promise<Float32Array[]> {
        const units: number[][] = [];
        for (let start = 0; start < sequences.length; start += this.together) {
            units.push(sequences.slice(start, start + this.together));
        }
        const states = { skip: bare(skip), removed: bare(this.#removed), mayWin };
        const predicted = this.run.sequences.length - 1;
        const nll = await Promise.all(
            units.map(async (unit) => {
                const bytes = 4 * predicted * unit.length;
                const values = await this.#compute({ ...states, sequences: unit }, unit[0]!, bytes);
                return unit.map((_, i) => new Float32Array(values, 4 * i * predicted, predicted));
            })
        );
        return nll.flat();
    }

    /** The NLLs of endings, as {@link Model.score} gives them. */
    async score(choices: readonly Choice[], { skip = [], onProgress }: EvaluateOptions = {}): Promise<Float64Array> {
        const nll = new Float64Array(choices.length);
        const starts = Array.from(
            { length: Math.ceil(choices.length / CHOICES_AT_ONCE) },
            (_, i) => i * CHOICES_AT_ONCE
        );
        let done = 0;
        await Promise.all(
            starts.map(async (start, index) => {
                const some = choices.slice(start, start + CHOICES_AT_ONCE);
                const packed = some.map(({ context, ending }) => ({ context: pack(context), ending: pack(ending) }));
                const values = await this.#compute({ skip: bare(skip), choices: packed }, index, 8 * some.length);
                nll.set(new Float64Array(values), start);
                onProgress?.((done += some.length), choices.length);
            })
        );
        return nll;
    }

    remove(removed: readonly Block[]): void {
        this.#removed = removed;
        this.listeners.onWorkers?.(this.workers);
    }

    /** Ends the run, and leaves nothing of it in Redis, where that is there. */
    async dispose(): Promise<void> {
        this.#fail(new BlockprunerError('REDIS', 'the run is over'));
        this.#timers.forEach(clearInterval);
        this.listeners.signal?.removeEventListener('abort', this.#stop);
        this.listeners.onWorkers?.(this.workers);
        if (this.connection.redis.status === 'ready') {
            const cleaned = this.#clean().catch(() => undefined);
            await within(CLEANING_TIME, cleaned);
        }
        await this.connection.close();
    }

    async #clean(): Promise<void> {
        const { redis, prefix } = this.connection;
        await redis.set(keyOfRun(prefix, this.#id), RUN_IS_OVER, 'EX', RUN_EXPIRES);
        void this.#admission.close(true).catch(() => undefined);
        await this.connection.obliterate([joinQueueOf(this.#id), ...this.#queues.map(({ name }) => name)]);
    }

    /**
     * Waits for the first workers. They are what the search is laid out for, and by the first one's NLLs the others are
     * measured.
     */
    async #ask(): Promise<number[]> {
        const { workers: wanted = 1 } = this.options;
        await this.#waitFor(wanted);
        if (wanted === 1) {
            await sleep(300); // those who come at the same time are to count as well
            this.#throwIfFailed();
        }
        const workers = [...this.#workers.values()];
        const together = Math.max(1, Math.min(...workers.map((worker) => worker.together)));
        return [workers.length, together, ...this.#terms!.probe];
    }

    async #give([workers, together, ...probe]: readonly number[]): Promise<void> {
        this.#terms = { workers: workers!, together: together!, probe: Float32Array.from(probe) };
        await this.#waitFor(1);
    }

    /** Lets workers in, and waits until so many are there. */
    async #waitFor(wanted: number): Promise<void> {
        if (!this.#admission.isRunning()) {
            this.#admission.run().catch((error: unknown) => this.#fail(error as Error));
        }
        const missing = wanted === 1 ? 'a worker' : `${wanted} workers`;
        const start = "'blockpruner worker MODEL --redis URL' starts one, on this or another computer";
        for (let waited = 0; this.#workers.size < wanted; waited += 50) {
            this.#throwIfFailed();
            if (waited === WAITING_TIME) {
                this.listeners.onNotice?.(`waiting for ${missing}: ${start}`);
            }
            await sleep(50);
        }
    }

    #throwIfFailed(): void {
        this.listeners.signal?.throwIfAborted();
        if (this.#failure) {
            throw this.#failure;
        }
    }

    /** Says that there is this run, and says it again before that is forgotten. */
    async #announce(): Promise<void> {
        const { redis, prefix } = this.connection;
        const key = keyOfRun(prefix, this.#id);
        const say = () => redis.set(key, JSON.stringify(this.run), 'EX', RUN_EXPIRES);
        await say();
        const again = async () => ((await redis.expire(key, RUN_EXPIRES)) === 0 ? say() : undefined);
        const ignore = () => undefined; // Redis is away; the next time will come
        this.#timers.push(setInterval(() => void again().catch(ignore), (1000 * RUN_EXPIRES) / 6).unref());
    }

    #admit(applicant: Applicant): Answer {
        const { id, device } = applicant;
        const reason = this.#reasonAgainst(applicant);
        if (reason !== undefined) {
            if (!this.#refused.has(id)) {
                this.#refused.add(id);
                this.listeners.onNotice?.(`the worker ${id} (${device}) can't take part: ${reason}`);
            }
            return { refused: reason };
        }
        if (!this.#workers.has(id)) {
            const probe = unpackFloats(applicant.probe!);
            this.#terms ??= { workers: 1, together: 1, probe };
            this.#workers.set(id, {
                share: {
                    ...{ id, device, alive: true, units: 0, sequences: 0, seconds: 0 },
                    difference: differenceOf(probe, this.#terms.probe)
                },
                together: applicant.together ?? 1,
                boundaries: applicant.boundaries ?? 0,
                keptBytes: 0
            });
            this.listeners.onWorkers?.(this.workers);
        }
        return { home: homeOf([...this.#workers.keys()].indexOf(id), this.run.queues) };
    }

    #reasonAgainst({ version: its, model, probe, device }: Applicant): string | undefined {
        if (its !== this.run.version) {
            return `it has version ${its} of blockpruner, and the search ${this.run.version}`;
        }
        if (model !== this.run.model) {
            return `it has another model (SHA-256 ${model.slice(0, 12)}…, not ${this.run.model.slice(0, 12)}…)`;
        }
        const found = probe === undefined ? new Float32Array() : unpackFloats(probe);
        if (found.length !== this.run.sequences.length - 1 || !found.every(Number.isFinite)) {
            return 'it has not computed the first sequence, or not to finite numbers';
        }
        if (this.#workers.size >= MOST_WORKERS) {
            return `there are ${MOST_WORKERS} workers already`;
        }
        const difference = this.#terms ? differenceOf(found, this.#terms.probe) : 0;
        return difference === 0 || this.options.mixed
            ? undefined
            : `on ${device}, NLLs of the first sequence differ by up to ${difference.toPrecision(2)} from the first ` +
                  `worker's, so that candidates can't be compared; ${option('mixed', true)} takes it all the same`;
    }

    /** @param bytes of its result */
    #compute(unit: Unit, place: number, bytes: number): Promise<ArrayBuffer> {
        return new Promise((resolve, reject) => {
            if (this.#failure) {
                reject(this.#failure);
                return;
            }
            const id = `unit-${this.#sent++}`;
            this.#open.set(id, { unit, queue: place % this.#queues.length, sent: 0, bytes, resolve, reject });
            void this.#send(id);
        });
    }

    /** Sends a unit. Where Redis refuses it, it is late after a while, and sent again. */
    async #send(id: string): Promise<void> {
        const open = this.#open.get(id)!;
        open.sent = performance.now();
        try {
            await this.#queues[open.queue]!.add('unit', open.unit, {
                jobId: id, // sent twice, it is there once
                attempts: ATTEMPTS,
                removeOnComplete: { age: 600 },
                removeOnFail: { age: 600 }
            });
        } catch (error) {
            this.#notice(error);
        }
    }

    /** Tells what Redis refuses, once. */
    #notice(error: unknown): void {
        const problem = printable(messageOf(error));
        if (problem !== this.#problem && this.#failure === undefined) {
            this.#problem = problem;
            this.listeners.onNotice?.(`Redis refuses what it is asked, and is asked again: ${problem}`);
        }
    }

    #received(id: string, returned: unknown): void {
        const open = this.#open.get(id);
        if (!open) {
            return; // it came twice, or is none of ours
        }
        const { data } = resultSchema.safeParse(returned);
        const nll = data && Buffer.from(data.nll, 'base64');
        if (nll?.byteLength !== open.bytes) {
            this.#fail(new BlockprunerError('REDIS', `the result of a unit (${id}) isn't what it should be`));
            return;
        }
        this.#open.delete(id);
        const worker = this.#workers.get(data!.worker);
        if (worker) {
            worker.share.units++;
            worker.share.sequences += 'choices' in open.unit ? open.unit.choices.length : open.unit.sequences.length;
            worker.share.seconds += data!.milliseconds / 1000;
            worker.keptBytes = data!.keptBytes;
        }
        open.resolve(new Uint8Array(nll).buffer);
    }

    #failed(id: string, reason: string): void {
        if (this.#open.has(id)) {
            this.#fail(new BlockprunerError('REDIS', `no worker could compute a unit (${id}): ${printable(reason)}`));
        }
    }

    /** Ends all that is waited for. */
    #fail(reason: Error): void {
        this.#failure ??= reason;
        this.#open.forEach(({ reject }) => reject(this.#failure!));
        this.#open.clear();
    }

    /** Sends again what Redis has forgotten, takes results that were not heard of, and notices who has gone or come. */
    async #lookAfter(): Promise<void> {
        if (this.connection.redis.status !== 'ready' || this.#isLooking) {
            return;
        }
        this.#isLooking = true;
        try {
            const late = [...this.#open].filter(([, { sent }]) => performance.now() - sent > PATIENCE);
            await Promise.all(late.slice(0, CHECKED_AT_ONCE).map(([id, { queue }]) => this.#lookFor(id, queue)));
            await this.#lookForWorkers();
        } catch (error) {
            this.#notice(error);
        } finally {
            this.#isLooking = false;
        }
    }

    async #lookFor(id: string, index: number): Promise<void> {
        const job = await this.#queues[index]!.getJob(id);
        const state = await job?.getState();
        if (!this.#open.has(id)) {
            return; // it has come meanwhile
        }
        if (!job || state === 'unknown') {
            await this.#send(id);
        } else if (state === 'completed') {
            this.#received(id, job.returnvalue);
        } else if (state === 'failed') {
            this.#failed(id, job.failedReason);
        }
    }

    async #lookForWorkers(): Promise<void> {
        const { redis, prefix } = this.connection;
        const workers = [...this.#workers.values()].map(({ share }) => share);
        if (workers.length === 0) {
            return;
        }
        const signs = await redis.mget(workers.map(({ id }) => keyOfWorker(prefix, this.#id, id)));
        const changed = workers.filter((worker, i) => worker.alive !== (signs[i] !== null));
        for (const worker of changed) {
            worker.alive = !worker.alive;
            this.listeners.onNotice?.(`the worker ${worker.id} ${worker.alive ? 'is there again' : 'is gone'}`);
        }
        if (changed.length > 0) {
            this.listeners.onWorkers?.(this.workers);
            if (!workers.some(({ alive }) => alive)) {
                this.listeners.onNotice?.('no worker is left: the search waits for one');
            }
        }
    }
}

/** By how much values differ at most; Infinity where there are more of one kind, or one is no number. */
function differenceOf(a: Float32Array, b: Float32Array): number {
    const largest = a.reduce(
        (most, value, i) => Math.max(most, Object.is(value, b[i]) ? 0 : Math.abs(value - b[i]!)),
        0
    );
    return a.length === b.length && !Number.isNaN(largest) ? largest : Infinity;
}

/** Where the n-th worker looks first: as far from where the others do as can be. */
function homeOf(n: number, queues: number): number {
    let [position, step] = [0, 0.5];
    for (let rest = n; rest > 0; rest = Math.floor(rest / 2), step /= 2) {
        position += (rest % 2) * step; // the van der Corput sequence
    }
    return Math.floor(position * queues);
}

/** A model that workers evaluate in the place of this process, which only reads texts by it. */
export class SharedModel implements Pick<Model, 'evaluate' | 'score' | 'tokenize'> {
    constructor(
        private readonly model: Model,
        private readonly cluster: ClusterOptions,
        private readonly listeners: Listeners = {}
    ) {}

    tokenize(text: string, signal?: AbortSignal): Promise<Int32Array> {
        return this.model.tokenize(text, signal);
    }

    /** As {@link Model.evaluate}. */
    async evaluate(sequences: Sequences, { skip = [], onProgress }: EvaluateOptions = {}): Promise<Float32Array> {
        return this.#share(sequences, async (fleet) => {
            const predicted = sequences.length - 1;
            const nll = new Float32Array(fleet.sequences * predicted);
            const all = Array.from({ length: fleet.sequences }, (_, sequence) => sequence);
            const starts = all.filter((sequence) => sequence % fleet.together === 0);
            let done = 0;
            await Promise.all(
                starts.map(async (start) => {
                    const values = await fleet.evaluate(skip, all.slice(start, start + fleet.together));
                    values.forEach((one, i) => nll.set(one, (start + i) * predicted));
                    onProgress?.((done += values.length), fleet.sequences);
                })
            );
            return nll;
        });
    }

    /** As {@link Model.score}. */
    async score(choices: readonly Choice[], options: EvaluateOptions = {}): Promise<Float64Array> {
        const [first] = choices;
        if (!first) {
            return new Float64Array();
        }
        const tokens = Int32Array.from([...first.context, ...first.ending]); // which the workers are compared by
        return this.#share({ tokens, length: tokens.length }, (fleet) => fleet.score(choices, options));
    }

    async #share<T>(sequences: Sequences, work: (fleet: Fleet) => Promise<T>): Promise<T> {
        const sha256 = await hashGguf(this.model.gguf, this.listeners.signal);
        const fleet = await Fleet.create(sha256, sequences, undefined, this.cluster, this.listeners);
        try {
            await fleet.terms.give(await fleet.terms.ask());
            return await work(fleet);
        } finally {
            await fleet.dispose();
        }
    }
}
