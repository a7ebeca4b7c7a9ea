import path from 'node:path';
import { startChild } from '../child.js';
import { ArgumentError, BlockprunerError, messageOf, MethodError, option, type ErrorCode } from '../errors.js';
import type { SessionOptions } from './session.js';

/** The functions that can do their work in a process of its own; isolated-process.ts has them. */
export type IsolatedTask = 'prune' | 'apply' | 'compare';

/** Options without functions and signals, which can't go to another process: of callbacks, the names do. */
export interface IsolatedRequest {
    task: IsolatedTask;
    model: string;
    options: Record<string, unknown>;
    callbacks: string[];
}
/** An error as it goes to another process, where classes are lost. */
interface ErrorData {
    message: string;
    stack: string | undefined;
    code?: ErrorCode;
    argument?: Pick<ArgumentError, 'argument' | 'expected' | 'value' | 'hint'>;
}
export type IsolatedReply = { callback: string; values: unknown[] } | { result: unknown } | { error: ErrorData };

/**
 * Does what `prune`, `apply` or `compare` do in a process of its own, so that this one survives what llama.cpp or the
 * system end a process for: a GPU that fails, no memory, a failed assertion.
 * @throws BlockprunerError `RUNTIME` with the reason if the process is ended; what it throws, otherwise
 */
export async function isolated<Result>(
    task: IsolatedTask,
    model: string,
    { signal, ...options }: Pick<SessionOptions, 'isolate' | 'signal'>
): Promise<Result> {
    signal?.throwIfAborted();
    const entries = Object.entries<unknown>({ ...options, isolate: false });
    const callbacks = new Map(entries.filter(([, value]) => typeof value === 'function'));
    const request: IsolatedRequest = {
        task,
        model,
        options: Object.fromEntries(entries.filter(([name]) => !callbacks.has(name))),
        callbacks: [...callbacks.keys()]
    };
    return new Promise((resolve, reject) => {
        const { child, lastLine } = startChild(path.join(__dirname, 'isolated-process.js'));
        const stop = () => child.send('stop', () => undefined); // it may have ended
        signal?.addEventListener('abort', stop, { once: true });
        let reply: Exclude<IsolatedReply, { callback: string }> | undefined;
        child.on('message', (message: IsolatedReply) => {
            if ('callback' in message) {
                (callbacks.get(message.callback) as (...values: unknown[]) => void)(...message.values);
            } else {
                reply = message;
            }
        });
        child.on('error', reject);
        child.on('close', (code, killed) => {
            signal?.removeEventListener('abort', stop);
            if (reply && 'result' in reply) {
                resolve(reply.result as Result);
            } else if (signal?.aborted) {
                reject(signal.reason as Error);
            } else if (reply) {
                reject(fromData(reply.error));
            } else {
                const last = lastLine() || `it ended with ${killed ?? `code ${code}`}`;
                const then = task === 'apply' ? '' : `; ${option('resume', true)} goes on with what was found`;
                reject(new BlockprunerError('RUNTIME', `the process that did the work was ended: ${last}${then}`));
            }
        });
        child.send(request);
    });
}

/** What {@link fromData} makes an error of again. */
export function toData(error: unknown): ErrorData {
    return {
        message: messageOf(error),
        stack: error instanceof Error ? error.stack : undefined,
        ...(error instanceof BlockprunerError && { code: error.code }),
        ...(error instanceof ArgumentError && {
            argument: {
                argument: error.argument,
                expected: error.expected,
                value: typeof error.value === 'function' ? String(error.value) : error.value,
                hint: error.hint
            }
        })
    };
}

function fromData({ message, stack, code, argument }: ErrorData): Error {
    const error = argument
        ? new ArgumentError(argument.argument, argument.expected, argument.value, argument.hint)
        : code === 'METHOD'
          ? new MethodError(message)
          : code
            ? new BlockprunerError(code, message)
            : new Error(message);
    error.stack = stack;
    return error;
}
