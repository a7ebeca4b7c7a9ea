// What a coordinator and its workers say to each other over Redis. They trust nothing that they read there: it has a
// schema, a size, and neither code nor names of files in it. The jobs, their locks and their retries are BullMQ's.
import { z } from 'zod';
import { BlockprunerError } from '../errors.js';
import type { Sequences } from '../runtime/sequences.js';

/**
 * The units of a run wait in so many queues, each with the same sequences again and again, so that whoever takes from
 * one of them has what they start from.
 */
export const MOST_QUEUES = 8;

/** A run is known for so long after its coordinator was last heard of, in seconds. */
export const RUN_EXPIRES = 10;

/** What stands in the place of a run that is over. */
export const RUN_IS_OVER = 'over';

/** A worker whose lock on a unit is older than that is taken for dead, in milliseconds: another one gets the unit. */
export const LOCK_DURATION = 15_000;

/** At most so many characters are read of one value: 12 million tokens. */
export const MOST_CHARACTERS = 2 ** 26;

/** What a person may be shown: no control characters, which could make a terminal show something else. */
export function printable(text: string): string {
    return text.replace(/\p{C}+/gu, ' ').slice(0, 1000);
}

const name = z
    .string()
    .min(1)
    .max(200)
    .refine((text) => printable(text) === text, 'has characters that can not be printed');
const count = z.number().int().nonnegative().max(1e9);
const base64 = z.base64().max(MOST_CHARACTERS);
const sequencesSchema = z.object({
    tokens: base64,
    length: z
        .number()
        .int()
        .min(2)
        .max(2 ** 24)
});
const blocksSchema = z
    .array(
        z.strictObject({
            kind: z.enum(['attn', 'ffn', 'linear']),
            layer: count,
            empty: z.literal(true).optional()
        })
    )
    .max(1e5);

/** What a run is, for its workers. */
export const runSchema = z.object({
    /** The versions of both sides must be the same. */
    version: name,
    /** SHA-256 of the model's files. */
    model: name,
    sequences: sequencesSchema,
    /** The sequences that linear blocks are fitted to; null: gaps stay empty. */
    linear: sequencesSchema.nullable(),
    /** In how many queues units wait. */
    queues: z.number().int().min(1).max(MOST_QUEUES),
    lockDuration: z.number().int().min(100).max(3_600_000)
});
export type Run = z.infer<typeof runSchema>;

/** A worker that wants to take part in a run. */
export const applicantSchema = z.object({
    /** Tells it from all others. */
    id: name,
    version: name,
    model: name,
    /** What computes, such as `cuda: NVIDIA H100`. */
    device: name,
    /** The rest is missing where the model or the version is another one: nothing was computed then. */
    together: count.optional(),
    boundaries: count.optional(),
    /** The NLLs of the run's first sequence, little-endian 32-bit floats. */
    probe: base64.optional()
});
export type Applicant = z.infer<typeof applicantSchema>;

/** What the coordinator says to that: the queue where it is to look first, or why it can't take part. */
export const answerSchema = z.union([
    z.object({ home: count }),
    z.object({ refused: z.string().transform(printable) })
]);
export type Answer = z.infer<typeof answerSchema>;

/** A candidate and some sequences. Computed twice, it gives the same. */
const candidateSchema = z.strictObject({
    /** The blocks that are left out: those removed so far, and the candidate's. */
    skip: blocksSchema,
    removed: blocksSchema,
    /** The numbers of sequences. */
    sequences: z.array(count).min(1).max(1e6),
    /** As in {@link CandidateEvaluator.evaluate}. */
    mayWin: z.boolean()
});

/** Endings of a task's questions, tokens as little-endian 32-bit numbers. */
const choicesSchema = z.strictObject({
    skip: blocksSchema,
    choices: z
        .array(z.strictObject({ context: base64.min(1), ending: base64.min(1) }))
        .min(1)
        .max(1e4)
});

export const unitSchema = z.union([candidateSchema, choicesSchema]);
export type Unit = z.infer<typeof unitSchema>;

/** What became of a unit. */
export const resultSchema = z.object({
    worker: name,
    /**
     * Of each sequence, the NLL of each token but the first, sequence after sequence, as 32-bit floats; or the NLL of
     * each ending, as 64-bit ones.
     */
    nll: base64,
    /** How long it took. */
    milliseconds: z.number().nonnegative(),
    /** Bytes of the residual streams that the worker keeps now. */
    keptBytes: z.number().nonnegative()
});
export type Result = z.infer<typeof resultSchema>;

export function packSequences({ tokens, length }: Sequences): Run['sequences'] {
    return { tokens: pack(tokens), length };
}

/** @throws BlockprunerError unless they are whole sequences of tokens that there are */
export function unpackSequences({ tokens, length }: Run['sequences'], vocabulary: number): Sequences {
    const found = unpackTokens(tokens, vocabulary);
    if (found.length % length !== 0) {
        throw new BlockprunerError('INPUT', 'its sequences are not whole');
    }
    return { tokens: found, length };
}

/** @throws BlockprunerError unless they are tokens that there are, at least one */
export function unpackTokens(text: string, vocabulary: number): Int32Array {
    const found = new Int32Array(bytesOf(text));
    if (found.length === 0 || !found.every((token) => token >= 0 && token < vocabulary)) {
        throw new BlockprunerError('INPUT', 'its tokens are none of this model');
    }
    return found;
}

export function pack(values: Int32Array | Float32Array | Float64Array): string {
    return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');
}

export function unpackFloats(text: string): Float32Array {
    return new Float32Array(bytesOf(text));
}

/** @throws BlockprunerError unless they are whole 32-bit values */
function bytesOf(text: string): ArrayBuffer {
    const bytes = Buffer.from(text, 'base64');
    if (bytes.length % 4 !== 0) {
        throw new BlockprunerError('INPUT', 'a value is cut off');
    }
    return new Uint8Array(bytes).buffer;
}

/** Where things are in Redis. */
export const keyOfRun = (namespace: string, run: string) => `${namespace}:run:${run}`;
export const keyOfWorker = (namespace: string, run: string, worker: string) => `${namespace}:alive:${run}:${worker}`;
export const queueOf = (run: string, index: number) => `${run}.${index}`;
export const joinQueueOf = (run: string) => `${run}.join`;
