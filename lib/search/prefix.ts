import type { Block } from '../runtime/blocks.js';
import type { KeepOptions, KeptStreams } from '../runtime/kept-streams.js';
import type { Model } from '../runtime/model.js';
import { checkSequences, countSequences, type Sequences } from '../runtime/sequences.js';
import type { SearchEvaluator } from './greedy.js';

/** `keepBytes` is of each device. */
export type PrefixOptions = Omit<KeepOptions, 'threads'>;

/**
 * What a search evaluates candidates by: {@link KeptStreams} on each device, none of which computes a candidate's start
 * twice. With several models, one copy on each device, each has its share of the sequences; and so has each of the
 * {@link Model.parts} of the CPU, but with linear blocks, which each share would have to fit.
 */
export class PrefixEvaluator implements SearchEvaluator {
    readonly sequences: number;
    readonly devices: number;
    readonly shares: number;
    readonly together: number;
    readonly linear: boolean;
    readonly #room: number;

    /** Each with the last evaluation that was asked of it: it does one at a time. */
    readonly #queues: { streams: KeptStreams; last: Promise<unknown> }[];

    private constructor(streams: readonly KeptStreams[], sequences: number, linear: boolean) {
        this.sequences = sequences;
        this.linear = linear;
        this.devices = this.shares = streams.length;
        this.together = Math.min(...streams.map(({ together }) => together));
        this.#room = Math.min(...streams.map(({ room }) => room));
        this.#queues = streams.map((one) => ({ streams: one, last: Promise.resolve() }));
    }

    /** @throws as {@link Model.keepStreams} */
    static async create(
        models: readonly Model[],
        calibration: Sequences,
        options: PrefixOptions = {}
    ): Promise<PrefixEvaluator> {
        checkSequences(calibration);
        const sequences = countSequences(calibration);
        const used = models
            .flatMap((model) => Array<Model>(options.linear ? 1 : model.parts).fill(model))
            .slice(0, sequences);
        const streams: KeptStreams[] = [];
        try {
            for (const [index, model] of used.entries()) {
                const parts = used.filter((other) => other === model).length;
                const own =
                    parts === 1
                        ? options
                        : {
                              ...options,
                              threads: model.threads / parts,
                              keepBytes: options.keepBytes && options.keepBytes / parts
                          };
                streams.push(await model.keepStreams(shareOf(calibration, index, used.length), own));
            }
        } catch (error) {
            streams.forEach((one) => one.dispose());
            throw error;
        }
        return new PrefixEvaluator(streams, sequences, options.linear !== undefined);
    }

    /** Of each share: the blocks computed so far, over all of its sequences, and the bytes that are kept now. */
    get work(): { blocks: number; keptBytes: number }[] {
        return this.#queues.map(({ streams }) => streams.work);
    }

    get kept(): { boundaries: number; bytes: number } {
        return { boundaries: this.#room, bytes: this.work.reduce((sum, { keptBytes }) => sum + keptBytes, 0) };
    }

    async evaluate(skip: readonly Block[], sequences: readonly number[], mayWin = false): Promise<Float32Array[]> {
        const result = new Map<number, Float32Array>();
        await Promise.all(
            this.#queues.map((queue, index) => {
                const own = sequences.filter((sequence) => sequence % this.devices === index);
                queue.last = queue.last.then(async () => {
                    if (own.length > 0) {
                        const inShare = own.map((sequence) => Math.floor(sequence / this.devices));
                        const nll = await queue.streams.evaluate(skip, inShare, mayWin);
                        own.forEach((sequence, i) => result.set(sequence, nll[i]!));
                    }
                });
                return queue.last;
            })
        );
        return sequences.map((sequence) => result.get(sequence)!);
    }

    remove(removed: readonly Block[]): void {
        this.#queues.forEach(({ streams }) => streams.remove(removed));
    }

    /** Frees the memory of what is kept. */
    dispose(): void {
        this.#queues.forEach(({ streams }) => streams.dispose());
    }
}

/** The sequences `index`, `index` + `count`, `index` + 2 `count`, … */
function shareOf({ tokens, length }: Sequences, index: number, count: number): Sequences {
    const isInShare = (_: number, i: number) => Math.floor(i / length) % count === index;
    return { tokens: tokens.filter(isInShare), length };
}
