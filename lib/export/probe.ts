import { fork, type ChildProcess } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { loadAddon, runNative } from '../addon.js';
import type { Gguf } from '../gguf.js';
import type { ModelGraph } from '../model.js';
import type { Export } from './host.js';
import type { ProbeReply } from './probe-process.js';

/**
 * Shows what stock llama.cpp would compute of a planned file, before there is one: of its header alone, whose tensors are a
 * hole. In a process of its own, since llama.cpp aborts on some files.
 */
export class Prober {
    #child: ChildProcess | undefined;

    constructor(private readonly gguf: Gguf, private readonly signal?: AbortSignal) {}

    /** @returns undefined if llama.cpp can't load such a file */
    async probe(plan: Export): Promise<ModelGraph | undefined> {
        const folder = await fs.mkdtemp(path.join(os.tmpdir(), 'blockpruner-'));
        const file = path.join(folder, 'header.gguf');
        try {
            const addon = await loadAddon();
            await runNative(this.signal, (cancel) => addon.writeGguf({
                output: file,
                sources: this.gguf.files,
                remove: ['split.no', 'split.count', 'split.tensors.count'],
                headerOnly: true,
                ...plan
            }, { cancel }));
            return await this.#ask(file);
        } finally {
            await fs.rm(folder, { recursive: true, force: true });
        }
    }

    close(): void {
        this.#child?.kill();
    }

    #ask(file: string): Promise<ModelGraph | undefined> {
        this.signal?.throwIfAborted();
        this.#child ??= fork(path.join(__dirname, 'probe-process.js'), { stdio: ['ignore', 'ignore', 'ignore', 'ipc'], execArgv: [], serialization: 'advanced' });
        const child = this.#child;
        return new Promise((resolve, reject) => {
            const stop = () => {
                child.kill();
                reject(this.signal!.reason as Error);
            };
            const exited = () => {
                this.#child = undefined;
                resolve(undefined);
            };
            this.signal?.addEventListener('abort', stop, { once: true });
            child.once('exit', exited);
            child.once('message', (reply) => {
                child.off('exit', exited);
                this.signal?.removeEventListener('abort', stop);
                const answer = reply as ProbeReply;
                resolve('graph' in answer ? answer.graph : undefined);
            });
            child.send(file);
        });
    }
}
