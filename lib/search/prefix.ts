import { sameBlock, type Block } from '../runtime/blocks.js';
import type { Model, Sequences } from '../runtime/model.js';
import type { CandidateEvaluator } from './greedy.js';

export interface PrefixOptions {
    /**
     * Memory for the residual stream on each device, in bytes. 0 computes every evaluation from the start. Default: 2
     * GiB.
     */
    keepBytes?: number | undefined;
    signal?: AbortSignal | undefined;
}

const DEFAULT_KEEP_BYTES = 2 * 2 ** 30;

/**
 * Evaluates the candidates of a search without computing anything twice: a candidate shares everything before its block
 * with the current model. The current model's residual stream is kept at the boundaries of its blocks, and each
 * candidate starts from its own. Where memory doesn't allow all boundaries, it starts from the last one before.
 *
 * A run that may become the current model leaves its boundaries behind too. If another candidate wins, the current
 * model is run again on a sequence when the next candidate needs it.
 *
 * With several models, one copy on each device, each has its share of the sequences.
 */
export class PrefixEvaluator implements CandidateEvaluator {
    readonly sequences: number;
    readonly devices: number;
    /** Of how many boundaries of each sequence there is room for the residual stream. */
    readonly room: number;

    /** of these, how many the current model may take: the rest is for the candidate that may be next */
    readonly #ofCurrent: number;
    readonly #workers: { model: Model; last: Promise<unknown> }[];
    readonly #signal: AbortSignal | undefined;
    #removed: readonly Block[] = [];
    /** the sequences on which the current model's boundaries are kept */
    #ready = new Set<number>();
    /** the last candidate that was likely to win, and the sequences on which its boundaries are kept */
    #likely: { skip: readonly Block[]; sequences: Set<number> } | undefined;

    constructor(
        models: readonly Model[],
        private readonly calibration: Sequences,
        { keepBytes = DEFAULT_KEEP_BYTES, signal }: PrefixOptions = {}
    ) {
        this.sequences = calibration.tokens.length / calibration.length;
        this.devices = models.length;
        const { embedding, layers } = models[0]!;
        const fit = Math.floor(
            keepBytes / (4 * embedding * calibration.length * Math.ceil(this.sequences / models.length))
        );
        this.room = Math.min(fit, 4 * layers); // more than the current model's and a candidate's there can't be
        this.#ofCurrent = Math.ceil((this.room * 2) / 3);
        this.#workers = models.map((model) => ({ model, last: Promise.resolve() }));
        this.#signal = signal;
    }

    async evaluate(skip: readonly Block[], sequences: readonly number[], mayWin = false): Promise<Float32Array[]> {
        const result = new Map<number, Float32Array>();
        await Promise.all(
            this.#workers.map((worker, index) => {
                const own = sequences.filter((sequence) => sequence % this.#workers.length === index);
                // one evaluation at a time
                worker.last = worker.last.then(async () => {
                    if (own.length > 0) {
                        (await this.#evaluate(worker.model, skip, own, mayWin)).forEach((nll, i) =>
                            result.set(own[i]!, nll)
                        );
                    }
                });
                return worker.last;
            })
        );
        return sequences.map((sequence) => result.get(sequence)!);
    }

    remove(removed: readonly Block[]): void {
        this.#removed = removed;
        this.#workers.forEach(({ model }) => model.forget(removed));
        const won = this.#likely !== undefined && this.room > this.#ofCurrent && sameSet(this.#likely.skip, removed);
        this.#ready = won ? this.#likely!.sequences : new Set();
        this.#likely = undefined;
    }

    async #evaluate(
        model: Model,
        skip: readonly Block[],
        sequences: readonly number[],
        mayWin: boolean
    ): Promise<Float32Array[]> {
        if (sameSet(skip, this.#removed)) {
            sequences.forEach((sequence) => this.#ready.add(sequence));
            return this.#run(model, skip, sequences, this.#ofCurrent);
        }
        const missing = sequences.filter((sequence) => !this.#ready.has(sequence));
        if (this.room > 0 && missing.length > 0) {
            await this.#run(model, this.#removed, missing, this.#ofCurrent);
            missing.forEach((sequence) => this.#ready.add(sequence));
        }
        if (mayWin) {
            if (!this.#likely || !sameSet(this.#likely.skip, skip)) {
                this.#likely = { skip, sequences: new Set() };
            }
            const { sequences: kept } = this.#likely;
            sequences.forEach((sequence) => kept.add(sequence));
        }
        return this.#run(model, skip, sequences, mayWin ? this.room : 0);
    }

    async #run(
        model: Model,
        skip: readonly Block[],
        sequences: readonly number[],
        keep: number
    ): Promise<Float32Array[]> {
        const { tokens, length } = this.calibration;
        const chosen = new Int32Array(sequences.length * length);
        sequences.forEach((sequence, i) =>
            chosen.set(tokens.subarray(sequence * length, (sequence + 1) * length), i * length)
        );
        const nll = await model.evaluate({ tokens: chosen, length }, { skip, keep, signal: this.#signal });
        return sequences.map((_, i) => nll.slice(i * (length - 1), (i + 1) * (length - 1)));
    }
}

function sameSet(a: readonly Block[], b: readonly Block[]): boolean {
    return a.length === b.length && a.every((block) => b.some((other) => sameBlock(block, other)));
}
