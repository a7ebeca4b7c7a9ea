// What Ctrl-C does.
import fs from 'node:fs';

/** The command was stopped by the user. It ends with exit code 130. */
export class Interrupted extends Error {
    /** @param outcome what is there now, and what the user can do */
    constructor(outcome?: string) {
        super(outcome === undefined ? 'stopped' : `stopped: ${outcome}`);
    }
}

/**
 * An error as a command ends with it: one that was stopped says what is there now, if it has left a file.
 * @param outcome what is there, and what the user can do
 */
export function withOutcome(error: unknown, left: string, outcome: string): unknown {
    return error instanceof Interrupted && fs.existsSync(left) ? new Interrupted(outcome) : error;
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
