// The child process of isolated.ts does what it is asked for once, and ends.
import { apply } from './apply.js';
import { compare } from './compare.js';
import { toData, type IsolatedReply, type IsolatedRequest } from './isolated.js';
import { prune } from './prune.js';

const tasks = { prune, apply, compare } as Record<
    IsolatedRequest['task'],
    (model: string, options: object) => Promise<unknown>
>;
const stop = new AbortController();
process.on('disconnect', () => stop.abort()); // nobody is there any more whom it is done for

process.on('message', (message: IsolatedRequest | 'stop') => {
    if (message === 'stop') {
        return stop.abort();
    }
    const { task, model, options, callbacks } = message;
    const told = callbacks.map((callback) => [
        callback,
        (...values: unknown[]) => {
            void reply({ callback, values });
        }
    ]);
    tasks[task](model, { ...options, ...(Object.fromEntries(told) as object), signal: stop.signal })
        .then(
            (result) => reply({ result }),
            (error: unknown) => reply({ error: toData(error) })
        )
        .finally(() => process.connected && process.disconnect());
});

/** Resolves when the message has gone; one that nobody can get is lost. */
function reply(message: IsolatedReply): Promise<void> {
    return new Promise((resolve) => {
        if (!process.connected) {
            return resolve();
        }
        process.send!(message, undefined, {}, () => resolve());
    });
}
