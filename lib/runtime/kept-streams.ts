import { checkInteger } from '../check.js';
import { runNative, type NativeKeptStreams } from './addon.js';
import type { Block } from './blocks.js';
import { countSequences, type Sequences } from './sequences.js';

export interface KeepOptions {
    /**
     * Memory for the residual stream, in bytes. 0 computes every evaluation from the tokens on. Default: 2 GiB; on a
     * GPU, three quarters of what is free there.
     */
    keepBytes?: number | undefined;
    /**
     * Evaluate on so many threads of the CPU, with a context of their own: several of these streams of a model can be
     * evaluated at once. `keepBytes` is as much less by default. Default: the model's context, which does one thing at
     * a time, on all of its threads.
     */
    threads?: number | undefined;
    /**
     * In each gap that an evaluation leaves, but where all of its blocks are `empty`, stands a linear block, as a
     * repair would put it in: x + W·x/rms(x), which is fitted to what the gap's blocks do in the dense model, on the
     * tokens of these sequences. The model's blocks must follow one another. Takes 2 bytes more for each of these
     * tokens, each value of the stream and each boundary,
     * and 4 · n_embd² bytes for each candidate. Default: gaps stay empty.
     */
    linear?: Sequences | undefined;
    /** Is told how much of the dense model's stream was computed for that. */
    onProgress?: ((done: number, total: number) => void) | undefined;
    /** Stops every evaluation once it is aborted. */
    signal?: AbortSignal | undefined;
}

/**
 * Evaluates the candidates of a search without computing anything twice: a candidate shares everything before its block
 * with the current model, whose residual stream is kept, where the model is computed, at the boundaries of its blocks.
 * A candidate starts from its own boundary or, where memory doesn't allow all of them, from the last one before. The
 * values are those of {@link Model.evaluate}, but for linear blocks. Comes from {@link Model.keepStreams}.
 */
export class KeptStreams {
    /** How many sequences are so few that a device which computes them at once isn't busy with fewer. */
    readonly together: number;
    readonly #native: NativeKeptStreams;
    readonly #indexesOf: (blocks: readonly Block[]) => number[];
    readonly #sequences: number;
    /** predicted tokens of a sequence */
    readonly #predicted: number;
    readonly #onMemory: (boundaries: { before: number; now: number }) => void;
    readonly #onDispose: () => void;
    readonly #signal: AbortSignal | undefined;
    /** for how many boundaries there was room after the last evaluation */
    #room: number;
    #disposed = false;

    /** @internal */
    constructor(
        native: NativeKeptStreams,
        calibration: Sequences,
        atOnce: number,
        fullTokens: number,
        indexesOf: (blocks: readonly Block[]) => number[],
        onMemory: (boundaries: { before: number; now: number }) => void,
        onDispose: () => void,
        signal: AbortSignal | undefined
    ) {
        this.#native = native;
        this.#room = native.room;
        this.#onMemory = onMemory;
        this.#onDispose = onDispose;
        this.together = Math.min(atOnce, Math.ceil(fullTokens / calibration.length));
        this.#indexesOf = indexesOf;
        this.#sequences = countSequences(calibration);
        this.#predicted = calibration.length - 1;
        this.#signal = signal;
    }

    /** At how many boundaries of each sequence there is room to keep the residual stream. */
    get room(): number {
        return this.#native.room;
    }

    /** `blocks`: those computed so far, over all sequences. `keptBytes`: of the residual streams that are kept now. */
    get work(): { blocks: number; keptBytes: number } {
        return this.#native.work;
    }

    /**
     * The negative log-likelihood of each token but the first, of each of some sequences. One evaluation at a time.
     * @param skip the blocks to leave out: those removed so far and, of a candidate, more
     * @param sequences their numbers, in any order
     * @param mayWin this candidate is likely to be the next current model: its residual stream is kept too, so that the
     *     model need not be run again once it is
     */
    async evaluate(skip: readonly Block[], sequences: readonly number[], mayWin = false): Promise<Float32Array[]> {
        for (const sequence of sequences) {
            checkInteger('sequences', sequence, { least: 0, most: this.#sequences - 1 });
        }
        const [indexes, empty] = this.#statesOf(skip);
        const nll = await runNative(this.#signal, (cancel) =>
            this.#native.evaluate(indexes, empty, Uint32Array.from(sequences), mayWin, { cancel })
        );
        if (!this.#disposed) {
            this.#onMemory({ before: this.#room, now: this.room });
            this.#room = this.room;
        }
        return sequences.map((_, i) => nll.slice(i * this.#predicted, (i + 1) * this.#predicted));
    }

    /**
     * Makes the model without these blocks the current one. Every later evaluation leaves them out too; the memory of
     * boundaries at which none of these can start is used for others.
     */
    remove(removed: readonly Block[]): void {
        this.#native.remove(...this.#statesOf(removed));
    }

    #statesOf(gone: readonly Block[]): [all: number[], empty: number[]] {
        return [this.#indexesOf(gone), this.#indexesOf(gone.filter(({ empty }) => empty))];
    }

    /** Frees the memory. Running evaluations end first. */
    dispose(): void {
        this.#disposed = true;
        this.#native.dispose();
        this.#onDispose();
    }
}
