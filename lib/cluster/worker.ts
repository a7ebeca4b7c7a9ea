import crypto from 'node:crypto';
import os from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Job, Worker } from 'bullmq';
import { BlockprunerError, messageOf } from '../errors.js';
import { formatMove } from '../runtime/blocks.js';
import { findDevices } from '../runtime/device.js';
import { hashGguf } from '../runtime/gguf.js';
import type { KeptStreams } from '../runtime/kept-streams.js';
import type { Model } from '../runtime/model.js';
import { version } from '../version.js';
import { connect, within, type Connection } from './connection.js';
import {
    answerSchema,
    joinQueueOf,
    keyOfRun,
    keyOfWorker,
    MOST_CHARACTERS,
    pack,
    printable,
    queueOf,
    RUN_IS_OVER,
    runSchema,
    unitSchema,
    unpackSequences,
    unpackTokens,
    type Answer,
    type Applicant,
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
    | { event: 'problem'; worker: string; reason: string }
    | { event: 'left'; worker: string; run: string; units: number; sequences: number; seconds: number };

/** How often a worker without a run looks for one, and says in a run that it is alive, in milliseconds. */
const LOOK_INTERVAL = 500;
const SIGN_INTERVAL = 2000;

/** A coordinator that has not answered is asked again after so many milliseconds: Redis may have lost the question. */
const ANSWER_TIME = 5000;

/** A unit that ends so many workers isn't given to another one. */
const MOST_STALLED = 5;

/** A worker without work looks at all queues so often, in seconds; what comes into its own one, it hears at once. */
const IDLE_SECONDS = 0.05;

/** After a failure, a worker rests before it takes another unit, twice as long each time: others get it first. */
const FIRST_REST = 500;
const LONGEST_REST = 15_000;

/** A worker that is stopped has so many milliseconds to give back its unit: Redis may be away. */
const GRACE = 1500;

/**
 * Lends a model to the runs that are announced in a namespace, one after the other, until the signal says to stop.
 * @throws BlockprunerError if Redis can't be used; the signal's reason when it stops
 */
export async function serveRuns(model: Model, options: WorkerOptions): Promise<never> {
    const { signal, onEvent } = options;
    const connection = await connect(options.redis, options.namespace);
    const host = os
        .hostname()
        .replace(/[^\w.-]/g, '')
        .slice(0, 60);
    try {
        const worker = {
            id: [host, process.pid, crypto.randomUUID().slice(0, 8)].join('-'),
            device: await describeDevice(model),
            sha256: await hashGguf(model.gguf, signal)
        };
        onEvent?.({ event: 'ready', worker: worker.id, device: worker.device });
        return await endedBy(signal, serveAll(connection, model, worker, options));
    } finally {
        await connection.close();
    }
}

async function serveAll(connection: Connection, model: Model, self: Self, options: WorkerOptions): Promise<never> {
    const { signal, onEvent } = options;
    const done = new Set<string>();
    let problem = '';
    for (;;) {
        signal?.throwIfAborted();
        try {
            const [id] = (await findRuns(connection)).filter((one) => !done.has(one));
            if (id !== undefined && (await new Service(connection, model, self, id, options).serve())) {
                done.add(id);
                continue;
            }
            problem = '';
        } catch (error) {
            signal?.throwIfAborted();
            const reason = printable(messageOf(error));
            if (reason !== problem) {
                problem = reason; // it is told once, not each time
                onEvent?.({ event: 'problem', worker: self.id, reason });
            }
        }
        await sleep(LOOK_INTERVAL, undefined, { signal }).catch(() => undefined); // the signal is looked at above
    }
}

/** Waits for work that the signal ends, but not long once it has: what is asked of a Redis that is away waits. */
async function endedBy<T>(signal: AbortSignal | undefined, work: Promise<T>): Promise<T> {
    let stop = () => {};
    const stopped = new Promise<never>((_, reject) => {
        stop = () => setTimeout(() => reject(signal!.reason as Error), GRACE).unref();
        signal?.addEventListener('abort', stop, { once: true });
    });
    return Promise.race([work, stopped]).finally(() => signal?.removeEventListener('abort', stop));
}

/** The runs that are announced; a coordinator that is gone takes its runs with it. */
async function findRuns({ redis, prefix }: Connection): Promise<string[]> {
    const start = keyOfRun(prefix, '');
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

    /**
     * Takes part as long as it can.
     * @returns whether there is nothing more to do in this run
     * @throws where something is wrong with Redis, which may pass
     */
    async serve(): Promise<boolean> {
        const { onEvent } = this.options;
        const { run } = this;
        const worker = this.self.id;
        const refused = (reason: string) => {
            onEvent?.({ event: 'refused', worker, run, reason });
            return true;
        };
        try {
            const described = await this.#describe();
            if (typeof described !== 'object') {
                return described === 'over';
            }
            const answer = await this.#join(described);
            if (!answer || 'refused' in answer) {
                return answer ? refused(answer.refused) : false;
            }
            onEvent?.({ event: 'joined', worker, run });
            const isOver = await this.#work(described, answer.home);
            onEvent?.({ event: 'left', worker, run, ...this.#done });
            return isOver;
        } catch (error) {
            this.options.signal?.throwIfAborted();
            if (error instanceof BlockprunerError) {
                return refused(printable(error.message)); // such as that there is no memory for it
            }
            throw error;
        } finally {
            this.#streams?.dispose();
        }
    }

    /**
     * Reads what the run is.
     * @throws BlockprunerError where it is nothing that this version knows
     */
    async #describe(): Promise<Run | 'over' | 'gone'> {
        const { redis, prefix } = this.connection;
        const key = keyOfRun(prefix, this.run);
        const isTooLong = (await redis.strlen(key)) > 3 * MOST_CHARACTERS;
        const text = isTooLong ? '' : await redis.get(key);
        if (text === null || text === RUN_IS_OVER) {
            return text === null ? 'gone' : 'over';
        }
        const { data } = runSchema.safeParse(parseJson(text));
        if (!data) {
            throw new BlockprunerError('REDIS', `it isn't described as blockpruner ${version} does it`);
        }
        return data;
    }

    /**
     * Asks the coordinator to take part. What the first sequence's NLLs are here tells whether devices are alike.
     * @returns undefined if the run went away meanwhile
     */
    async #join({ model, version: wanted, sequences, linear }: Run): Promise<Answer | undefined> {
        const { connection } = this;
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
        const name = joinQueueOf(this.run);
        const [queue, events] = [connection.queue(name), connection.events(name)];
        try {
            await events.waitUntilReady();
            await this.#giveSign();
            while (typeof (await this.#describe()) === 'object') {
                const job = await queue.add('join', applicant, { removeOnComplete: { age: 60 } });
                const answered = job.waitUntilFinished(events).catch((error: unknown) => ({
                    refused: printable(messageOf(error))
                }));
                const answer: unknown = await within(ANSWER_TIME, answered);
                if (answer !== undefined) {
                    return answerSchema.parse(answer);
                }
            }
            await connection.obliterate([name]); // nobody is there to do it
            return undefined;
        } finally {
            await connection.release([queue, events]);
        }
    }

    #giveSign(): Promise<unknown> {
        const { redis, prefix } = this.connection;
        return redis.set(keyOfWorker(prefix, this.run, this.self.id), '1', 'PX', 3 * SIGN_INTERVAL);
    }

    /**
     * Takes units, first from its own queue, then from those behind it, until the run is over, or forgotten: its
     * coordinator has gone, or Redis has begun anew.
     * @returns whether it is over; a run that was forgotten may come again
     */
    async #work({ queues, lockDuration }: Run, home: number): Promise<boolean> {
        const { connection } = this;
        const { redis, prefix } = connection;
        const { signal } = this.options;
        const names = Array.from({ length: queues }, (_, i) => queueOf(this.run, (home + i) % queues));
        const workers = names.map((name) =>
            connection.worker(name, null, {
                name: this.self.id,
                lockDuration,
                stalledInterval: Math.ceil(lockDuration / 3),
                maxStalledCount: MOST_STALLED,
                drainDelay: IDLE_SECONDS
            })
        );
        let [isOver, missed] = [false, 0];
        const look = async () => {
            await this.#giveSign();
            const start = await redis.getrange(keyOfRun(prefix, this.run), 0, RUN_IS_OVER.length - 1);
            isOver = start === RUN_IS_OVER;
            missed = start === '' ? missed + 1 : 0;
        };
        const timer = setInterval(() => void look().catch(() => undefined), SIGN_INTERVAL).unref();
        try {
            await Promise.all(workers.map((worker) => worker.startStalledCheckTimer()));
            let failures = 0;
            for (let number = 0; !isOver && missed < 2; number++) {
                signal?.throwIfAborted();
                const token = `${this.self.id}-${number}`;
                const job = await this.#next(workers, token);
                if (job) {
                    failures = (await this.#do(job, token, lockDuration)) ? 0 : failures + 1;
                    if (failures > 0) {
                        const rest = Math.min(FIRST_REST * 2 ** failures, LONGEST_REST);
                        await sleep(rest, undefined, { signal }).catch(() => undefined);
                    }
                }
            }
            return isOver;
        } finally {
            clearInterval(timer);
            await connection.release(workers);
            if (!signal?.aborted) {
                // what the coordinator has not deleted, as it is gone, or had deleted before workers knew
                await within(GRACE, connection.obliterate([...names, joinQueueOf(this.run)]));
            }
            await within(
                GRACE,
                redis.del(keyOfWorker(prefix, this.run, this.self.id)).catch(() => undefined)
            );
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

    /**
     * Computes a unit. One that can't be computed here is tried again, perhaps elsewhere; nonsense isn't.
     * @returns whether it was computed, or is nonsense
     */
    async #do(job: Job, token: string, lockDuration: number): Promise<boolean> {
        const { signal } = this.options;
        const renew = () => void job.extendLock(token, lockDuration).catch(() => undefined);
        const renewal = setInterval(renew, lockDuration / 3).unref();
        try {
            const unit = unitSchema.safeParse(job.data);
            const result = unit.success ? await this.#compute(unit.data) : undefined;
            // Where the lock was lost meanwhile, as after a long stop, the unit is another worker's.
            await (
                result
                    ? job.moveToCompleted(result, token, false)
                    : job.moveToFailed(this.connection.unrecoverable("the unit isn't valid"), token, false)
            ).catch(() => undefined);
            return true;
        } catch (error) {
            if (signal?.aborted) {
                await job.moveToWait(token).catch(() => undefined);
                throw signal.reason;
            }
            const isWrong = error instanceof BlockprunerError && error.code === 'ARGUMENT'; // wherever it is tried
            const reason = isWrong ? this.connection.unrecoverable(error.message) : (error as Error);
            await job.moveToFailed(reason, token, false).catch(() => undefined);
            return isWrong;
        } finally {
            clearInterval(renewal);
        }
    }

    async #compute(unit: Unit): Promise<Result> {
        const started = performance.now();
        const { nll, sequences } = 'choices' in unit ? await this.#score(unit) : await this.#evaluate(unit);
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
    return printable(`${device}: ${found?.description ?? 'unknown'}${layers}`).slice(0, 200);
}

function parseJson(text: string): unknown {
    try {
        return JSON.parse(text);
    } catch {
        return undefined;
    }
}
