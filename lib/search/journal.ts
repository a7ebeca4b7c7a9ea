import fs from 'node:fs';
import { z } from 'zod';
import { BlockprunerError, messageOf, option } from '../errors.js';
import { formatMove, type Block } from '../runtime/blocks.js';
import type { CandidateEvaluator } from './greedy.js';

/** What the evaluations in a journal depend on, such as the model's hash; the keys are its names in messages. */
export type JournalInputs = Record<string, string>;

const headerSchema = z.object({ journal: z.literal(1), inputs: z.record(z.string(), z.string()) });
const evaluationSchema = z.object({
    skip: z.string(),
    sequence: z.number().int().nonnegative(),
    nll: z.base64().min(4)
});
const measurementSchema = z.object({ measured: z.string(), values: z.array(z.number()) });
const recordSchema = z.union([evaluationSchema, measurementSchema]);

/** Where a line stands in the file, in bytes. */
interface Line {
    at: number;
    bytes: number;
}

/**
 * Writes down every evaluation as soon as it is finished, and doesn't ask for one that was written down before. A
 * search depends on nothing else, so a search that was killed and is run again with its journal goes the same way, and
 * then on.
 *
 * The file is JSON Lines and only ever appended to. The first line has the inputs; then each sequence of each
 * evaluation has a line, with the NLLs as base64 of little-endian 32-bit floats. Values are read from the file when
 * they are asked for. What else was measured, such as times, has a line too, since it would not be the same again.
 *
 * The first line, and all lines at each removal, are flushed to the disk. Of later ones, a power cut may leave a last
 * line without its end, or zeros where a page was not written: such lines are computed again.
 */
export class Journal implements CandidateEvaluator {
    readonly sequences: number;
    readonly shares: number;
    readonly #fd: number;
    #closed = false;
    #empty: boolean;

    private constructor(
        private readonly inner: CandidateEvaluator,
        private readonly file: string,
        private readonly known: Map<string, Line>,
        private readonly measured: Map<string, number[]>
    ) {
        this.sequences = inner.sequences;
        this.shares = inner.shares ?? 1;
        this.#fd = fs.openSync(file, 'a+');
        this.#empty = known.size === 0;
    }

    get devices(): number {
        return this.inner.devices;
    }

    get together(): number {
        return this.inner.together ?? 1;
    }

    /** How many evaluations the journal had when it was opened. */
    get found(): number {
        return this.known.size;
    }

    /**
     * Begins a journal, or goes on with one.
     * @param resume whether to go on with the journal, if there is one, or to begin anew
     * @throws BlockprunerError if the journal has other inputs, or is damaged otherwise than a process that is killed
     * or a power cut leaves it
     */
    static open(inner: CandidateEvaluator, file: string, inputs: JournalInputs, resume: boolean): Journal {
        const known = new Map<string, Line>();
        const measured = new Map<string, number[]>();
        const complete = resume && fs.existsSync(file) ? read(file, inputs, known, measured) : 0;
        try {
            if (complete > 0) {
                fs.truncateSync(file, complete); // what was being written when the run was killed
            } else {
                fs.writeFileSync(file, JSON.stringify({ journal: 1, inputs }) + '\n', { flush: true });
            }
            return new Journal(inner, file, known, measured);
        } catch (error) {
            if (complete === 0) {
                fs.rmSync(file, { force: true });
            }
            throw new BlockprunerError('OUTPUT', `can't write the journal ${file}: ${messageOf(error)}`);
        }
    }

    async evaluate(skip: readonly Block[], sequences: readonly number[], mayWin?: boolean): Promise<Float32Array[]> {
        const name = skip
            .map((block) => formatMove([block]))
            .sort()
            .join(' '); // however the search came to leave these out
        const unknown = sequences.filter((sequence) => !this.known.has(`${name}/${sequence}`));
        const values = new Map<number, Float32Array>();
        if (unknown.length > 0) {
            (await this.inner.evaluate(skip, unknown, mayWin)).forEach((nll, i) => values.set(unknown[i]!, nll));
            const base64 = (nll: Float32Array) =>
                Buffer.from(nll.buffer, nll.byteOffset, nll.byteLength).toString('base64');
            this.#append([...values].map(([sequence, nll]) => ({ skip: name, sequence, nll: base64(nll) })));
        }
        return sequences.map((sequence) => values.get(sequence) ?? this.#read(this.known.get(`${name}/${sequence}`)!));
    }

    remove(removed: readonly Block[]): void {
        this.inner.remove(removed);
        this.#write(() => fs.fdatasyncSync(this.#fd));
    }

    /** Measures something, or gives what was measured under this name before the search was stopped. */
    async measure(name: string, values: () => Promise<number[]>): Promise<number[]> {
        const before = this.measured.get(name);
        if (before) {
            return before;
        }
        const now = await values();
        this.#append([{ measured: name, values: now }]);
        return now;
    }

    /** Closes the file; a journal in which nothing was written is deleted. */
    close(): void {
        this.#closed = true;
        fs.closeSync(this.#fd);
        if (this.#empty) {
            fs.rmSync(this.file, { force: true });
        }
    }

    #append(records: z.infer<typeof recordSchema>[]): void {
        this.#write(() => {
            fs.writeFileSync(this.#fd, records.map((record) => JSON.stringify(record) + '\n').join(''));
            this.#empty = false;
        });
    }

    #write(work: () => void): void {
        if (this.#closed) {
            return; // an evaluation on another device has failed meanwhile, and ended the search
        }
        try {
            work();
        } catch (error) {
            throw new BlockprunerError(
                'OUTPUT',
                `can't write the journal ${this.file}: ${messageOf(error)}; ` +
                    `make room and go on with ${option('resume', true)}`
            );
        }
    }

    #read({ at, bytes }: Line): Float32Array {
        const line = Buffer.alloc(bytes);
        fs.readSync(this.#fd, line, 0, bytes, at);
        return decode(line);
    }
}

function decode(line: Buffer): Float32Array {
    const { nll } = evaluationSchema.parse(JSON.parse(line.toString('utf8')));
    return new Float32Array(new Uint8Array(Buffer.from(nll, 'base64')).buffer);
}

/** Finds what a journal has, and returns the length in bytes of its complete lines. */
function read(file: string, inputs: JournalInputs, known: Map<string, Line>, measured: Map<string, number[]>): number {
    let complete = 0,
        number = 0,
        length: number | undefined;
    try {
        for (const line of linesOf(file)) {
            number++;
            if (number === 1) {
                const other = differences(headerSchema.parse(JSON.parse(line.toString('utf8'))).inputs, inputs);
                if (other) {
                    throw new BlockprunerError(
                        'RESUME',
                        `the journal ${file} is of a search with another ${other}: ` +
                            `give the same, or begin anew with ${option('resume', false)}`
                    );
                }
            } else if (!line.includes(0)) {
                const record = recordSchema.parse(JSON.parse(line.toString('utf8')));
                if ('measured' in record) {
                    measured.set(record.measured, record.values);
                } else {
                    const { skip, sequence, nll } = record;
                    if (nll.length !== (length ??= nll.length)) {
                        throw new SyntaxError('sequences of different lengths');
                    }
                    known.set(`${skip}/${sequence}`, { at: complete, bytes: line.length });
                }
            }
            complete += line.length + 1;
        }
    } catch (error) {
        if (error instanceof BlockprunerError) {
            throw error;
        }
        const why =
            error instanceof SyntaxError || error instanceof z.ZodError
                ? `line ${number} is damaged`
                : messageOf(error);
        throw new BlockprunerError(
            'INPUT',
            `can't read the journal ${file}: ${why}; begin anew with ${option('resume', false)}`
        );
    }
    return complete;
}

/** Gives the lines of a file, less a last one that has no end. */
function* linesOf(file: string): Generator<Buffer> {
    const fd = fs.openSync(file, 'r');
    try {
        const chunk = Buffer.alloc(2 ** 20);
        let rest: Buffer = Buffer.alloc(0);
        for (let bytes; (bytes = fs.readSync(fd, chunk)) > 0;) {
            rest = Buffer.concat([rest, chunk.subarray(0, bytes)]);
            for (let end; (end = rest.indexOf('\n')) >= 0; rest = rest.subarray(end + 1)) {
                yield rest.subarray(0, end);
            }
        }
    } finally {
        fs.closeSync(fd);
    }
}

/** Says how the inputs that were found differ from those that are wanted; undefined if they don't. */
export function differences(found: JournalInputs, wanted: JournalInputs): string | undefined {
    const different = Object.keys({ ...found, ...wanted }).filter((name) => found[name] !== wanted[name]);
    return (
        different.map((name) => `${name} (${found[name] ?? 'none'}, now ${wanted[name] ?? 'none'})`).join(', ') ||
        undefined
    );
}
