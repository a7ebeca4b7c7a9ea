import { fork, type ChildProcess } from 'node:child_process';
import fs from 'node:fs/promises';
import path from 'node:path';
import { BlockprunerError, messageOf } from '../errors.js';
import { makeTemporaryFolder, temporaryError } from '../output.js';
import { loadAddon, runNative } from '../runtime/addon.js';
import type { Gguf } from '../runtime/gguf.js';
import type { ModelGraph } from '../runtime/model.js';
import { splitKeys, type Plan } from './host.js';
import type { ProbeReply } from './probe-process.js';

const IDLE = 5000; // milliseconds
let idle: ChildProcess | undefined;

/** A process that looks at files: one that has just become free, or a new one. */
function takeChild(): ChildProcess {
    const child = idle?.connected
        ? idle
        : fork(path.join(__dirname, 'probe-process.js'), {
              stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
              execArgv: [],
              serialization: 'advanced'
          });
    idle = undefined;
    child.ref();
    child.channel?.ref();
    return child;
}

/** Keeps a process for a while, since it starts slower than it works. It doesn't keep this one from ending. */
function release(child: ChildProcess): void {
    if (idle || !child.connected) {
        child.kill();
        return;
    }
    idle = child;
    child.unref();
    child.channel?.unref();
    setTimeout(() => {
        if (idle === child) {
            idle = undefined;
            child.kill();
        }
    }, IDLE).unref();
}

/**
 * Shows what stock llama.cpp would compute of a planned file before there is one: it builds the graph of the file's
 * header, with a hole in the place of the tensors. It does so in a process of its own, since llama.cpp aborts on some
 * files.
 */
export class Prober {
    #child: ChildProcess | undefined;

    constructor(private readonly signal?: AbortSignal) {}

    /**
     * Shows what the model itself computes.
     * @throws BlockprunerError as Model.load and Model.graph do, or if llama.cpp aborts
     */
    async source(file: string): Promise<ModelGraph> {
        const reply = await this.#ask(file);
        if ('error' in reply) {
            throw new BlockprunerError('MODEL', reply.error);
        }
        return reply.graph;
    }

    /**
     * Shows what a planned file would compute.
     * @returns undefined if llama.cpp can't load such a file
     */
    async probe(gguf: Gguf, plan: Plan): Promise<ModelGraph | undefined> {
        const folder = await makeTemporaryFolder();
        const file = path.join(folder, 'header.gguf');
        try {
            const addon = await loadAddon();
            await runNative(this.signal, (cancel) =>
                addon.writeGguf(
                    {
                        output: file,
                        sources: gguf.files,
                        remove: splitKeys,
                        headerOnly: true,
                        ...plan
                    },
                    { cancel }
                )
            ).catch((error: unknown) => {
                throw messageOf(error).startsWith("can't write ") ? temporaryError(error) : error;
            });
            const reply = await this.#ask(file);
            return 'graph' in reply ? reply.graph : undefined;
        } finally {
            await fs.rm(folder, { recursive: true, force: true });
        }
    }

    close(): void {
        if (this.#child) {
            release(this.#child);
        }
        this.#child = undefined;
    }

    #ask(file: string): Promise<ProbeReply> {
        this.signal?.throwIfAborted();
        this.#child ??= takeChild();
        const child = this.#child;
        if (!child.connected) {
            // It was ended between two questions.
            this.#child = undefined;
            return this.#ask(file);
        }
        return new Promise((resolve, reject) => {
            const settle = (end: () => void) => {
                this.signal?.removeEventListener('abort', stop);
                child.off('exit', exited).off('error', failed).off('message', replied);
                end();
            };
            const stop = () => {
                child.kill();
                this.#child = undefined;
                settle(() => reject(this.signal!.reason as Error));
            };
            const failed = (error: Error) => {
                this.#child = undefined;
                settle(() =>
                    reject(
                        new BlockprunerError(
                            'UNSUPPORTED',
                            `llama.cpp's process for looking at ${file} failed: ${error.message}`
                        )
                    )
                );
            };
            const exited = (code: number | null, signal: string | null) => {
                if (signal === 'SIGKILL' || signal === 'SIGTERM') {
                    // Something else ended it, such as a lack of memory: that says nothing about the file.
                    return failed(new Error(`it was ended by ${signal}`));
                }
                this.#child = undefined;
                settle(() => resolve({ error: `llama.cpp ended on ${file} with ${signal ?? `code ${code}`}` }));
            };
            const replied = (reply: unknown) => settle(() => resolve(reply as ProbeReply));
            this.signal?.addEventListener('abort', stop, { once: true });
            child.once('exit', exited).once('error', failed).once('message', replied);
            child.send(file, (error) => error && failed(error));
        });
    }
}

/**
 * Shows the graph of a model in a process of its own, before it is loaded in this one: llama.cpp ends its process on
 * some damaged files.
 * @throws BlockprunerError if the model can't be loaded, or its blocks aren't found
 */
export async function tryLoading(file: string, signal?: AbortSignal): Promise<void> {
    const prober = new Prober(signal);
    await prober.source(file).finally(() => prober.close());
}
