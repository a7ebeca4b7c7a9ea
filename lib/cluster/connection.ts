import type * as BullMQ from 'bullmq';
import type { Redis } from 'ioredis';
import { BlockprunerError, messageOf, option } from '../errors.js';

/** How keys in Redis begin where nothing else is said. */
export const DEFAULT_NAMESPACE = 'blockpruner';

/** What doesn't close within so many milliseconds is cut off: Redis may be away. */
const CLOSE_TIME = 1000;

type Opened = BullMQ.Queue | BullMQ.QueueEvents | BullMQ.Worker;

/**
 * Connects to Redis. Once that has succeeded, a connection that is lost is sought again until it is closed.
 * @param url such as redis://host:6379, or rediss://user:password@host:6379/1 with TLS
 * @throws BlockprunerError if nothing is there, it doesn't let us in, or the packages for it aren't installed
 */
export async function connect(url: string, namespace = DEFAULT_NAMESPACE): Promise<Connection> {
    const { hostname, port, protocol, pathname } = parseAddress(url);
    if (!/^[\w.-]{1,100}$/.test(namespace)) {
        const expected = 'letters, digits, and . _ -';
        throw new BlockprunerError('ARGUMENT', `${option('namespace')} must be of ${expected}, not '${namespace}'`);
    }
    const [{ Redis }, engine] = await Promise.all([import('ioredis'), import('bullmq')]).catch((error: unknown) => {
        const message = `${option('redis')} needs two more packages: npm install bullmq ioredis`;
        throw new BlockprunerError('ARGUMENT', message, { cause: error });
    });
    // connections are sought again from the first success until the end
    const state = { seeks: false };
    const redis = new Redis(url, {
        lazyConnect: true,
        maxRetriesPerRequest: null, // as the engine wants it: what is asked waits until Redis is there again
        connectTimeout: 10_000,
        disconnectTimeout: 100,
        retryStrategy: (tries) => (state.seeks ? Math.min(100 * tries, 1000) : null)
    });
    let problem: unknown;
    redis.on('error', (error) => (problem ??= error));
    try {
        await redis.connect();
        await redis.ping();
        await redis.select(Number(pathname.slice(1)));
        state.seeks = true;
    } catch (error) {
        redis.disconnect();
        const where = `${hostname}:${port || 6379}${protocol === 'rediss:' ? ' with TLS' : ''}`;
        const text = messageOf(problem ?? error);
        const why = text.startsWith('NOAUTH') ? 'it wants a password' : text;
        throw new BlockprunerError('REDIS', `can't use Redis at ${where}: ${why}`);
    }
    return new Connection(redis, engine, namespace, state);
}

/** @throws BlockprunerError unless it is the address of a Redis; it may have a password and isn't shown */
export function parseAddress(url: string): URL {
    const parsed = URL.canParse(url) ? new URL(url) : undefined;
    const isAddress = parsed && ['redis:', 'rediss:'].includes(parsed.protocol) && parsed.hostname !== '';
    if (!isAddress || !/^(\/\d*)?$/.test(parsed.pathname) || parsed.search !== '' || parsed.hash !== '') {
        const examples = 'redis://host:6379 or, with TLS and a database, rediss://user:password@host:6379/1';
        throw new BlockprunerError('ARGUMENT', `${option('redis')} must be an address such as ${examples}`);
    }
    return parsed;
}

/** A connection, and what of BullMQ works over it. Nobody hears of it when it is lost: it is sought again. */
export class Connection {
    readonly #clients: Set<Redis>;
    readonly #opened = new Set<Opened>();

    constructor(
        readonly redis: Redis,
        private readonly engine: typeof BullMQ,
        readonly prefix: string,
        private readonly state: { seeks: boolean }
    ) {
        this.#clients = new Set([redis]);
        // BullMQ takes more connections for what blocks, and waits for them when it closes, however long they are lost
        const duplicate = redis.duplicate.bind(redis);
        redis.duplicate = (options) => {
            const client = duplicate(options);
            client.on('error', () => undefined);
            client.once('end', () => this.#clients.delete(client));
            this.#clients.add(client);
            return client;
        };
    }

    queue(name: string): BullMQ.Queue {
        return this.#open(new this.engine.Queue(name, { ...this.#options, skipMetasUpdate: true }));
    }

    events(name: string): BullMQ.QueueEvents {
        return this.#open(new this.engine.QueueEvents(name, { ...this.#options, blockingTimeout: 1000 }));
    }

    /** @param processor what is done with jobs; null: they are fetched one by one */
    worker(
        name: string,
        processor: BullMQ.Processor | null,
        options: Omit<BullMQ.WorkerOptions, 'connection' | 'prefix'>
    ): BullMQ.Worker {
        return this.#open(new this.engine.Worker(name, processor, { ...options, ...this.#options, autorun: false }));
    }

    /** An error after which a job isn't tried again. */
    unrecoverable(message: string): Error {
        return new this.engine.UnrecoverableError(message);
    }

    /** Deletes all that belongs to some queues. */
    async obliterate(names: readonly string[]): Promise<void> {
        const queues = names.map((name) => this.queue(name));
        await Promise.all(queues.map((queue) => queue.obliterate({ force: true }).catch(() => undefined)));
        await this.release(queues);
    }

    /** Closes some of what was opened, or gives up after a while. */
    async release(some: readonly Opened[]): Promise<void> {
        await within(CLOSE_TIME, Promise.all(some.map((one) => one.close(true as never).catch(() => undefined))));
        some.forEach((one) => this.#opened.delete(one));
    }

    /** Closes everything, whether or not Redis is there. */
    async close(): Promise<void> {
        await this.release([...this.#opened]);
        this.state.seeks = false;
        for (const client of this.#clients) {
            // One that is being sought is found once more, or not: only then what is asked of it ends.
            if (client.status === 'reconnecting') {
                client.once('ready', () => client.disconnect());
            } else {
                client.disconnect();
            }
        }
    }

    get #options() {
        return { connection: this.redis, prefix: this.prefix };
    }

    #open<T extends Opened>(one: T): T {
        (one as BullMQ.Worker).on('error', () => undefined);
        this.#opened.add(one);
        return one;
    }
}

/** Waits for work, but not longer than so many milliseconds; undefined then. */
export function within<T>(milliseconds: number, work: Promise<T>): Promise<T | undefined> {
    let timer: NodeJS.Timeout;
    const end = new Promise<undefined>((resolve) => {
        timer = setTimeout(() => resolve(undefined), milliseconds);
    });
    return Promise.race([work, end]).finally(() => clearTimeout(timer));
}
