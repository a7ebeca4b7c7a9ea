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
    readonly #file: string;
    #worker: Worker | undefined;
    #force: boolean;
    #last: SearchSoFar | undefined;
    #next: SearchSoFar | undefined;
    #drawing: Promise<void> | undefined;

    /** @param force replace a file that is there when the first page is written */
    constructor(file: string, force: boolean) {
        this.#file = file;
        this.#force = force;
    }

    show(search: SearchSoFar): void {
        this.#last = this.#next = search;
        this.#drawing ??= this.#draw().finally(() => (this.#drawing = undefined));
    }

    /**
     * Says on the page, if there is one, that the run has ended too early.
     * @param error what was wrong; undefined where it was stopped on purpose
     */
    async stop(error: string | undefined): Promise<void> {
        if (this.#last) {
            this.show({ ...this.#last, stopped: true, error });
        }
        await this.end();
    }

    /** Waits until what was shown last is drawn. Nothing can be shown after that. */
    async end(): Promise<void> {
        await this.#drawing;
        await this.#worker?.terminate();
        this.#worker = undefined;
    }

    /** @throws BlockprunerError if it can't be written */
    write(html: string): void {
        writeText(this.#file, html, { force: this.#force, what: 'report' });
        this.#force = true; // from now on it is ours
    }

    async #draw(): Promise<void> {
        while (this.#next) {
            const worker = (this.#worker ??= this.#start());
            worker.postMessage(this.#next);
            this.#next = undefined;
            try {
                const [html] = (await once(worker, 'message')) as [string | undefined];
                if (html !== undefined) {
                    this.write(html);
                }
            } catch {
                // the next page may be written, and if the last one can't be, that is told
            }
        }
    }

    #start(): Worker {
        const worker = new Worker(path.join(__dirname, 'live-report-worker.js'));
        return worker.on('error', () => (this.#worker = undefined)); // another thread draws the next page
    }
}
