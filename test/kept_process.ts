// Processes that start slowly and answer one request after another.
import { fork, type ChildProcess } from 'node:child_process';
import path from 'node:path';
import type { StockReply, StockRequest } from '../lib/stock/stock.js';

/** A script that replies to each message. One that ends instead fails only that request: the next starts it anew. */
export class KeptProcess<Request extends object, Reply extends object> {
    private child: ChildProcess | undefined;

    constructor(private readonly script: string) {
        afterAll(() => this.child?.kill('SIGKILL'));
    }

    /**
     * Asks one thing at a time.
     * @throws Error if the process ends before it replies: "ended with SIGNAL" or "ended with CODE"
     */
    ask(request: Request): Promise<Exclude<Reply, { progress: unknown }>> {
        if (!this.child?.connected) {
            this.child = fork(this.script, {
                serialization: 'advanced', // typed arrays, NaN and infinity as they are
                stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
                execArgv: []
            });
        }
        const child = this.child;
        return new Promise((resolve, reject) => {
            const onMessage = (reply: Reply) => {
                if (!('progress' in reply)) {
                    settle();
                    resolve(reply as Exclude<Reply, { progress: unknown }>);
                }
            };
            const onExit = (code: number | null, signal: string | null) => {
                settle();
                this.child = undefined;
                reject(new Error(`ended with ${signal ?? code}`));
            };
            const settle = () => child.off('message', onMessage).off('exit', onExit).off('error', reject);
            child.on('message', onMessage).on('exit', onExit).on('error', reject);
            child.send(request);
        });
    }
}

/**
 * The stock runtime on the CPU, as `stockNll` and `stockGenerate` start it for each file, but kept from file to file.
 */
export class KeptStock {
    private readonly process = new KeptProcess<StockRequest, StockReply>(
        path.resolve(__dirname, '../dist/stock/stock-process.js')
    );

    /** The NLL of each predicted token of some sequences; see `stockNll`. */
    async nll(model: string, { tokens, length }: { tokens: Int32Array; length: number }): Promise<Float32Array> {
        const reply = await this.process.ask({
            task: 'nll',
            model,
            tokens,
            length,
            stride: 1,
            device: 'cpu',
            threads: 1,
            flashAttention: true
        });
        if ('error' in reply) {
            throw new Error(`the stock runtime (node-llama-cpp) failed on ${model}: ${reply.error}`);
        }
        return reply.result as Float32Array;
    }
}
