import crypto from 'node:crypto';
import os from 'node:os';
import type { Job, Worker } from 'bullmq';
import { messageOf } from '../errors.js';
import { formatMove } from '../runtime/blocks.js';
import { findDevices } from '../runtime/device.js';
import { hashGguf } from '../runtime/gguf.js';
import type { KeptStreams } from '../runtime/kept-streams.js';
import type { Model } from '../runtime/model.js';
import { version } from '../version.js';
import {
    answerSchema,
    connect,
    joinQueueOf,
    keyOfRun,
    keyOfWorker,
    pack,
    queueOf,
    RUN_IS_OVER,
    runSchema,
    unitSchema,
    unpackSequences,
    unpackTokens,
    type Answer,
    type Applicant,
    type Connection,
    type Result,
    type Run,
    type Unit
} from './protocol.js';

export interface WorkerOptions {
    /** Where runs are announced; as {@link ClusterOptions} has it. */
    redis: string;
    namespace?: string | undefined;
    /** Memory on the device for the residual stream, in bytes; see {@link KeepOptions}. */
    keepBytes?: number | undefined;
    /** Hears what the worker does. */
    onEvent?: ((event: WorkerEvent) => void) | undefined;
    /** Ends the worker. A unit that it is at goes back to the others. */
    signal?: AbortSignal | undefined;
}

/** What a worker tells of itself. */
export type WorkerEvent =
    | { event: 'ready'; worker: string; device: string }
    | { event: 'joined'; worker: string; run: string }
    | { event: 'refused'; worker: string; run: string; reason: string }
    | { event: 'left'; worker: string; run: string; units: number; sequences: number; seconds: number };

/** How often a worker without a run looks for one, and says in a run that it is alive, in milliseconds. */
const LOOK_INTERVAL = 500;
const SIGN_INTERVAL = 2000;

/** A unit that ends so many workers isn't given to another one. */
const MOST_STALLED = 5;

/** A coordinator that has not answered for so long is not asked any more. */
const ANSWER_TIME = 60_000;

/** A worker without work looks at all queues so often, in seconds; what comes into its own one, it hears at once. */
const IDLE_SECONDS = 0.05;

/**
 * Lends a model to the runs that are announced in a namespace, one after the other, until the signal says to stop.
 * @throws BlockprunerError if Redis can't be used; the signal's reason when it stops
 */
export async function serveRuns(model: Model, options: WorkerOptions): Promise<never> {
    const { signal, onEvent } = options;
    const connection = await connect(options.redis, options.namespace);
    try {
        const worker = {
            id: `${os
                .hostname()
                .replace(/[^\w.-]/g, '')
                .slice(0, 60)}-${process.pid}-${crypto.randomUUID().slice(0, 8)}`,
            device: await describeDevice(model),
            sha256: await hashGguf(model.gguf, signal)
        };
        onEvent?.({ event: 'ready', worker: worker.id, device: worker.device });
        const done = new Set<string>();
        for (;;) {
            signal?.throwIfAborted();
            for (const id of (await findRuns(connection)).filter((one) => !done.has(one))) {
                if (await new Service(connection, model, worker, id, options).serve()) {
                    done.add(id);
                }
            }
            await sleep(LOOK_INTERVAL, signal);
        }
    } finally {
        connection.close();
    }
}

/** The runs that are announced; a coordinator that is gone takes its runs with it. */
async function findRuns({ redis, options }: Connection): Promise<string[]> {
    const start = keyOfRun(options.prefix, '');
    const found: string[] = [];
    for (let cursor = '0', first = true; first || cursor !== '0'; first = false) {
        const [next, keys] = await redis.scan(cursor, 'MATCH', `${start}*`, 'COUNT', 1000);
        found.push(...keys.map((key) => key.slice(start.length)));
        cursor = next;
    }
    return found.filter((id) => /^[\w-]{1,100}$/.test(id)).sort();
}

interface Self {
    id: string;
    device: string;
    sha256: string;
}

/** A worker's part in one run. */
class Service {
    #streams: KeptStreams | undefined;
    #removed = '';
    readonly #done = { units: 0, sequences: 0, seconds: 0 };

    constructor(
        private readonly connection: Connection,
        private readonly model: Model,
        private readonly self: Self,
        private readonly run: string,
        private readonly options: WorkerOptions
    ) {}

    /** Takes part as long as it can, and says whether there is nothing more to do in this run. */
    async serve(): Promise<boolean> {
        const { signal, onEvent } = this.options;
        const { run } = this;
        const worker = this.self.id;
        try {
            const described = await this.#describe();
            if (!described) {
                return true;
            }
            const answer = await this.#join(described);
            if ('refused' in answer) {
                onEvent?.({ event: 'refused', worker, run, reason: answer.refused });
                return true;
            }
            onEvent?.({ event: 'joined', worker, run });
            const isOver = await this.#work(described, answer.home);
            onEvent?.({ event: 'left', worker, run, ...this.#done });
            return isOver;
        } catch (error) {
            signal?.throwIfAborted();
            onEvent?.({ event: 'refused', worker, run, reason: messageOf(error) });
            return true;
        } finally {
            this.#streams?.dispose();
        }
    }

    /** Reads what the run is; undefined if it is over. */
    async #describe(): Promise<Run | undefined> {
        const text = await this.connection.redis.get(keyOfRun(this.connection.options.prefix, this.run));
        return text === null || text === RUN_IS_OVER ? undefined : runSchema.parse(JSON.parse(text));
    }

    /** Asks the coordinator to take part. What the first sequence's NLLs are here tells whether devices are alike. */
    async #join({ model, version: wanted, sequences, linear }: Run): Promise<Answer> {
        const { engine, options } = this.connection;
        const { id, device, sha256 } = this.self;
        const applicant: Applicant = { id, device, version, model: sha256 };
        if (model === sha256 && wanted === version) {
            const { vocabulary } = this.model;
            const streams = await this.model.keepStreams(unpackSequences(sequences, vocabulary), {
                keepBytes: this.options.keepBytes,
                linear: linear ? unpackSequences(linear, vocabulary) : undefined,
                signal: this.options.signal
            });
            this.#streams = streams;
            const [probe] = await streams.evaluate([], [0], true);
            Object.assign(applicant, { together: streams.together, boundaries: streams.room, probe: pack(probe!) });
        }
        const queue = new engine.Queue(joinQueueOf(this.run), options);
        const events = new engine.QueueEvents(joinQueueOf(this.run), options);
        queue.on('error', () => undefined);
        events.on('error', () => undefined);
        try {
            await events.waitUntilReady();
            const job = await queue.add('join', applicant, { removeOnComplete: { age: 60 } });
            return answerSchema.parse(await job.waitUntilFinished(events, ANSWER_TIME));
        } finally {
            await Promise.all([queue.close(), events.close()].map((closing) => closing.catch(() => undefined)));
        }
    }

    /**
     * Takes units, first from its own queue, then from those behind it, until the run is over, or forgotten: its
     * coordinator has gone, or Redis has begun anew.
     * @returns whether it is over; a run that was forgotten may come again
     */
    async #work({ queues, lockDuration }: Run, home: number): Promise<boolean> {
        const { redis, engine, options } = this.connection;
        const { signal } = this.options;
        const names = Array.from({ length: queues }, (_, i) => queueOf(this.run, (home + i) % queues));
        const workers = names.map((name) => {
            const worker = new engine.Worker(name, null, {
                ...options,
                name: this.self.id,
                lockDuration,
                stalledInterval: Math.ceil(lockDuration / 3),
                maxStalledCount: MOST_STALLED,
                drainDelay: IDLE_SECONDS
            });
            return worker.on('error', () => undefined); // a connection that is lost is sought again
        });
        const sign = keyOfWorker(options.prefix, this.run, this.self.id);
        let [isOver, missed] = [false, 0];
        const look = async () => {
            await redis.set(sign, '1', 'PX', 3 * SIGN_INTERVAL);
            const start = await redis.getrange(keyOfRun(options.prefix, this.run), 0, RUN_IS_OVER.length - 1);
            isOver = start === RUN_IS_OVER;
            missed = start === '' ? missed + 1 : 0;
        };
        const timer = setInterval(() => void look().catch(() => undefined), SIGN_INTERVAL);
        try {
            await look();
            await Promise.all(workers.map((worker) => worker.startStalledCheckTimer()));
            for (let number = 0; !isOver && missed < 2; number++) {
                signal?.throwIfAborted();
                const token = `${this.self.id}-${number}`;
                const job = await this.#next(workers, token);
                if (job) {
                    await this.#do(job, token, lockDuration);
                }
            }
            if (!isOver) {
                const left = [...names, joinQueueOf(this.run)].map((name) => new engine.Queue(name, options));
                await Promise.all(left.map((queue) => queue.obliterate({ force: true }).catch(() => undefined)));
            }
            return isOver;
        } finally {
            clearInterval(timer);
            await Promise.all(workers.map((worker) => worker.close(true).catch(() => undefined)));
            await redis.del(sign).catch(() => undefined);
        }
    }

    async #next(workers: readonly Worker[], token: string): Promise<Job | undefined> {
        for (const worker of workers) {
            const job = await worker.getNextJob(token, { block: false });
            if (job) {
                return job;
            }
        }
        return workers[0]!.getNextJob(token);
    }

    /** Computes a unit. One that can't be computed here is tried again, perhaps elsewhere; nonsense isn't. */
    async #do(job: Job, token: string, lockDuration: number): Promise<void> {
        const { signal } = this.options;
        const renewal = setInterval(
            () => void job.extendLock(token, lockDuration).catch(() => undefined),
            lockDuration / 3
        );
        try {
            const result = await this.#compute(job.data);
            await job.moveToCompleted(result, token, false);
        } catch (error) {
            if (signal?.aborted) {
                await job.moveToWait(token).catch(() => undefined);
                throw signal.reason;
            }
            // Where the lock was lost meanwhile, as after a long stop, the unit is another worker's.
            await job.moveToFailed(error as Error, token, false).catch(() => undefined);
        } finally {
            clearInterval(renewal);
        }
    }

    async #compute(data: unknown): Promise<Result> {
        const unit = unitSchema.safeParse(data);
        if (!unit.success) {
            throw new this.connection.engine.UnrecoverableError('it is none of ours');
        }
        const started = performance.now();
        const { nll, sequences } =
            'choices' in unit.data ? await this.#score(unit.data) : await this.#evaluate(unit.data);
        const milliseconds = performance.now() - started;
        this.#done.units++;
        this.#done.sequences += sequences;
        this.#done.seconds += milliseconds / 1000;
        return { worker: this.self.id, nll, milliseconds, keptBytes: this.#streams!.work.keptBytes };
    }

    async #evaluate({ skip, removed, sequences, mayWin }: Exclude<Unit, { choices: unknown }>): Promise<Computed> {
        const streams = this.#streams!;
        const now = removed.map((block) => formatMove([block])).join(' ');
        if (now !== this.#removed) {
            streams.remove(removed);
            this.#removed = now;
        }
        const nll = await streams.evaluate(skip, sequences, mayWin);
        const all = new Float32Array(nll.reduce((sum, { length }) => sum + length, 0));
        nll.forEach((values, i) => all.set(values, i * values.length));
        return { nll: pack(all), sequences: sequences.length };
    }

    async #score({ skip, choices }: Extract<Unit, { choices: unknown }>): Promise<Computed> {
        const tokensOf = (text: string) => unpackTokens(text, this.model.vocabulary);
        const unpacked = choices.map(({ context, ending }) => ({
            context: tokensOf(context),
            ending: tokensOf(ending)
        }));
        const nll = await this.model.score(unpacked, { skip, signal: this.options.signal });
        return { nll: pack(nll), sequences: choices.length };
    }
}

/** NLLs as they are sent, and of how many sequences or endings they are. */
interface Computed {
    nll: string;
    sequences: number;
}

/** What a model is computed on, for people. */
async function describeDevice({ device, gpuLayers }: Model): Promise<string> {
    const found = (await findDevices()).find((one) => one.device === device);
    const layers = gpuLayers === undefined || device === 'cpu' ? '' : `, ${gpuLayers} layers`;
    return `${device}: ${found?.description ?? 'unknown'}${layers}`.slice(0, 200);
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
        const end = () => {
            clearTimeout(timer);
            signal?.removeEventListener('abort', end);
            resolve();
        };
        const timer = setTimeout(end, milliseconds);
        signal?.addEventListener('abort', end, { once: true });
    });
}
