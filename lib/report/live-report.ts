import { once } from 'node:events';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { writeText } from '../output.js';
import type { SearchSoFar } from './search-report.js';

/**
 * The report of a search that goes on: it is written anew whenever there is something new. A thread of its own draws
 * it, since that takes up to a second, in which the search would wait; of what comes meanwhile, the last is drawn next.
 */
export class LiveReport {
    readonly #worker = new Worker(path.join(__dirname, 'live-report-worker.js'));
    #next: SearchSoFar | undefined;
    #last: SearchSoFar | undefined;
    #drawing: Promise<void> | undefined;
    #failure: unknown;

    /** @param force replace a file that is there when the first page is written */
    constructor(
        private readonly file: string,
        private force: boolean
    ) {
        this.#worker.on('error', (error) => (this.#failure = error));
        this.#worker.unref();
    }

    /** @throws BlockprunerError if an earlier page couldn't be written */
    show(search: SearchSoFar): void {
        this.#throwFailure();
        this.#next = this.#last = search;
        this.#drawing ??= this.#draw()
            .catch((error: unknown) => (this.#failure = error))
            .then(() => (this.#drawing = undefined));
    }

    /**
     * Waits until all that was shown is in the file; nothing can be shown then.
     * @throws BlockprunerError if a page couldn't be written
     */
    async end(): Promise<void> {
        await this.#drawing;
        await this.#worker.terminate();
        this.#throwFailure();
    }

    /** Says on the page, if there is one, that the run has ended too early. Why is told elsewhere. */
    async stop(): Promise<void> {
        try {
            if (this.#last) {
                this.show({ ...this.#last, stopped: true });
            }
            await this.end();
        } catch {
            // what ended the run is told, not that its page can't be written
        }
    }

    /** Writes the page that is the last one. */
    write(html: string): void {
        writeText(this.file, html, { force: this.force, what: 'report' });
        this.force = true; // from now on it is ours
    }

    async #draw(): Promise<void> {
        while (this.#next) {
            this.#worker.postMessage(this.#next);
            this.#next = undefined;
            const [html] = (await once(this.#worker, 'message')) as [string];
            this.write(html);
        }
    }

    #throwFailure(): void {
        if (this.#failure !== undefined) {
            throw this.#failure as Error;
        }
    }
}
