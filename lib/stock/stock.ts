import path from 'node:path';
import { startChild } from '../child.js';
import { BlockprunerError } from '../errors.js';
import type { Device } from '../runtime/device.js';
import type { Sequences } from '../runtime/sequences.js';

export interface StockOptions {
    device: Exclude<Device, 'rpc'>;
    gpuLayers?: number | undefined;
    threads: number;
    flashAttention: boolean;
    onProgress?: ((done: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/** What the child process is asked for; see stock-process.ts. */
export type StockRequest = { model: string } & Pick<
    StockOptions,
    'device' | 'gpuLayers' | 'threads' | 'flashAttention'
> &
    (
        | { task: 'nll'; tokens: Int32Array; length: number; stride: number }
        | { task: 'generate'; prompt: string; tokens: number }
        | { task: 'speed'; tokens: number }
        | { task: 'draft'; draft: string; prompts: number[][]; tokens: number; ahead: number }
    );
export type StockResult = Float32Array | string | Speed | Drafting;
export type StockReply = { progress: [done: number, total: number] } | { result: StockResult } | { error: string };

export interface Speed {
    /** How many tokens of a prompt are processed in a second. */
    prompt: number;
    /** How many tokens are generated in a second. */
    generation: number;
}

export interface DraftRequest {
    /** The tokens of each. */
    prompts: readonly Int32Array[];
    /** How many tokens are written after each prompt, at most. */
    tokens: number;
    /** How many tokens the draft writes ahead at a time. */
    ahead: number;
}

/** What one model does as the draft of another in speculative decoding (Leviathan et al. 2023, arXiv 2211.17192). */
export interface Drafting {
    /**
     * The share of the tokens that the target finds likeliest in what it writes, of which the draft finds the same
     * likeliest: the paper's α.
     */
    acceptance: number;
    /** Tokens a second that the target writes by itself, that the draft does, and the target with the draft. */
    target: number;
    draft: number;
    together: number;
}

/**
 * Gives the NLL of tokens in node-llama-cpp, an unmodified llama.cpp: every stride-th value of what `Model.evaluate`
 * gives.
 * @param options `stride`: default 1. All logits of each position cross into JavaScript, which takes about 0.3 µs each.
 * @throws BlockprunerError if the stock runtime can't load or compute the file
 */
export async function stockNll(
    model: string,
    sequences: Sequences,
    options: StockOptions & { stride?: number }
): Promise<Float32Array> {
    return (await ask(
        { task: 'nll', model, tokens: sequences.tokens, length: sequences.length, stride: options.stride ?? 1 },
        options
    )) as Float32Array;
}

/**
 * Generates the most likely continuation of a prompt, of at most so many tokens; errors are those of {@link stockNll}.
 */
export async function stockGenerate(
    model: string,
    prompt: string,
    tokens: number,
    options: StockOptions
): Promise<string> {
    return (await ask({ task: 'generate', model, prompt, tokens }, options)) as string;
}

/**
 * Measures tokens per second in the stock runtime: of a prompt of `tokens` tokens, then of as many single ones, each
 * with its successor sampled. Errors are those of {@link stockNll}.
 */
export async function stockSpeed(model: string, tokens: number, options: StockOptions): Promise<Speed> {
    return (await ask({ task: 'speed', model, tokens }, options)) as Speed;
}

/**
 * Measures a model as the draft of another one with the same vocabulary, in the stock runtime: both write greedily
 * after some prompts, alone and together. Errors are those of {@link stockNll}.
 */
export async function stockDraft(
    target: string,
    draft: string,
    { prompts, tokens, ahead }: DraftRequest,
    options: StockOptions
): Promise<Drafting> {
    const plain = prompts.map((prompt) => [...prompt]);
    return (await ask({ task: 'draft', model: target, draft, prompts: plain, tokens, ahead }, options)) as Drafting;
}

/**
 * Asks the stock runtime, which works in a process of its own, so that whatever a file does to it comes back as an
 * error.
 */
function ask(request: Record<string, unknown> & { model: string }, options: StockOptions): Promise<StockResult> {
    const { device, gpuLayers, threads, flashAttention, onProgress, signal } = options;
    return new Promise((resolve, reject) => {
        signal?.throwIfAborted();
        const { child, lastLine } = startChild(path.join(__dirname, 'stock-process.js'));
        const stop = () => child.kill('SIGKILL');
        signal?.addEventListener('abort', stop, { once: true });
        let reply: StockReply | undefined;
        child.on('message', (message: StockReply) => {
            if ('progress' in message) {
                onProgress?.(...message.progress);
            } else {
                reply = message;
                child.kill('SIGKILL'); // it holds nothing that needs a tidy end
            }
        });
        child.on('error', reject);
        const settle = (code: number | null, killed: NodeJS.Signals | null) => {
            signal?.removeEventListener('abort', stop);
            if (signal?.aborted) {
                reject(signal.reason as Error);
            } else if (reply && 'result' in reply) {
                resolve(reply.result);
            } else {
                const why =
                    reply && 'error' in reply
                        ? reply.error
                        : `it ended with ${killed ?? `code ${code}`}: ${lastLine()}`;
                reject(
                    new BlockprunerError(
                        'RUNTIME',
                        `the stock runtime (node-llama-cpp) failed on ${request.model}: ${why}`
                    )
                );
            }
        };
        // What it has written last is read before it counts as ended.
        child.on('exit', (code, killed) =>
            child.stderr!.closed ? settle(code, killed) : child.stderr!.once('close', () => settle(code, killed))
        );
        child.send({ ...request, device, gpuLayers, threads, flashAttention });
    });
}
