// What Ctrl-C does.

/** The command was stopped by the user. It ends with exit code 130. */
export class Interrupted extends Error {
    /** @param outcome what is there now, and what the user can do */
    constructor(outcome?: string) {
        super(outcome === undefined ? 'stopped' : `stopped: ${outcome}`);
    }
}

/** What prune and apply leave when they are stopped. */
export const NOTHING_WRITTEN = 'no model was written';

/**
 * A signal that the first Ctrl-C (or SIGTERM, or the end of the terminal) aborts; the second one ends the process at
 * once.
 * @param outcome what is there after that, for the message
 */
export function interruptSignal(outcome?: string): AbortSignal {
    const controller = new AbortController();
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
        process.on(name, () => {
            if (controller.signal.aborted) {
                // the signal's default action, because process.exit() would wait for work on other threads
                process.removeAllListeners(name);
                process.kill(process.pid, name);
            }
            controller.abort(new Interrupted(outcome));
        });
    }
    return controller.signal;
}
