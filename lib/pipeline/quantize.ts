// Copies of a model in other types: those that a search is made on, and, as the last steps to what people run, the
// importance matrix of a pruned model and its copy in a smaller type.
import fs from 'node:fs/promises';
import path from 'node:path';
import { checkOneOf } from '../check.js';
import { BlockprunerError, messageOf, option } from '../errors.js';
import type { TaskScores } from '../evaluation/scores.js';
import { architectureOf, isQuantized, splitName } from '../export/host.js';
import { checkRoom } from '../export/write.js';
import { checkOutput, draftOf, partialIn, type Draft } from '../output.js';
import { countParameters, type Gguf } from '../runtime/gguf.js';
import { canRepack, Model, useAlike } from '../runtime/model.js';
import {
    draftImatrix,
    fileTypes,
    lowQuantizations,
    namesFound,
    parseTensorType,
    quantizeGguf,
    type FileType
} from '../runtime/quantize.js';
import { countSequences, type Sequences } from '../runtime/sequences.js';
import type { PhaseProgress, Session, SessionOptions } from './session.js';

export interface QuantizeOptions {
    /**
     * The type that the pruned model is quantized to, as llama-quantize names it, with an importance matrix of the text
     * that was used already: the calibration text and what the repair was fitted to. Default: tensors keep their types.
     */
    type?: FileType | undefined;
    /** Tensors of other types, as llama-quantize has them: `attn_v=q8_0`, the first part a regular expression. */
    tensorTypes?: readonly string[] | undefined;
    /** Write that importance matrix there, as llama-imatrix does in its GGUF form. */
    imatrixOut?: string | undefined;
}

/**
 * What a model is copied to for a search: types that lose next to nothing, of which devices compute some faster. Q8_0
 * weights are repacked for the CPU besides, where that can be, also those of a model that is in Q8_0 already.
 */
export const searchTypes = ['Q8_0', 'F16', 'BF16', 'F32'] as const satisfies readonly FileType[];
export type SearchType = (typeof searchTypes)[number];

/**
 * @param output what the file of the copies would be beside
 * @throws BlockprunerError if a model is in a type already, and isn't repacked, or there is no room for a copy in it
 */
export async function checkCopies(gguf: Gguf, type: SearchType, output: string): Promise<void> {
    let reason: string | undefined;
    if (!isInType(gguf, type)) {
        await checkRoom(output, mostBytes(gguf, type, []), `a copy of the model in ${type}`);
    } else if (type !== 'Q8_0' || !(await canRepack(gguf, (notice) => (reason = notice)))) {
        throw inTypeAlready(type, reason);
    }
}

/** @throws BlockprunerError if a model is in a type already, and the device has no use for repacked weights */
export function checkGain({ gguf, model }: Session, type: SearchType): void {
    if (isInType(gguf, type) && model.device !== 'cpu') {
        throw inTypeAlready(type);
    }
}

function isInType({ tensors }: Gguf, type: SearchType): boolean {
    return tensors.filter(({ shape }) => shape.length > 1).every((tensor) => tensor.type === type.toLowerCase());
}

function inTypeAlready(type: SearchType, reason = 'a copy is no faster here'): BlockprunerError {
    const message = `the model is in ${type} already, and ${reason}: leave out ${option('searchType')}`;
    return new BlockprunerError('ARGUMENT', message);
}

/**
 * Runs a search on copies of the session's model in another type, one on each of its devices; or, where it is in that
 * type already, on the model with its weights repacked. They are gone afterwards.
 * @param folder where their file is for that time
 * @throws BlockprunerError if the model can't be copied to that type
 */
export async function useCopies<T>(
    session: Session,
    type: SearchType,
    folder: string,
    work: (copies: readonly Model[]) => Promise<T>,
    { signal, onProgress, onNotice }: Pick<SessionOptions, 'signal' | 'onProgress' | 'onNotice'>
): Promise<T> {
    const { gguf, gpuLayers, model } = session;
    const { device, rpc, threads } = model;
    const typesOf = ({ tensors }: Gguf) => tensors.map((tensor) => `${tensor.name} ${tensor.type}`).sort();
    let copies: Model[] | undefined;
    const search = async (copy: Gguf) => {
        const [file] = copy.files as [string];
        const name = copy === gguf ? 'the repacked model' : `the copy in ${type}`;
        const tell = (notice: string) => onNotice?.(notice.replaceAll(file, name));
        const options = { device, gpuLayers, rpc, threads, repack: true, signal, onNotice: tell };
        copies = await Model.loadOnEach(file, options).catch((error: unknown) => {
            signal?.throwIfAborted();
            const why = messageOf(error).replaceAll(file, 'it');
            const message = `${name} can't be used: ${why}; leave out ${option('searchType')}`;
            throw new BlockprunerError('MODEL', message, { cause: error });
        });
        // tensors that are never quantized may be all that was not in the type
        if (typesOf(copy).join() === typesOf(gguf).join() && !copies[0]!.repacked) {
            throw inTypeAlready(type);
        }
        return work(copies);
    };
    const report = (done: number, total: number) => onProgress?.('quantize', done, total);
    try {
        return isInType(gguf, type)
            ? await search(gguf)
            : await session.files(folder, signal).inType(type, search, report);
    } finally {
        copies?.forEach((copy) => copy.dispose());
    }
}

/** llama.cpp's quantizer ends the process where it makes these types without an importance matrix. */
const NEED_IMPORTANCE = ['iq2_xxs', 'iq2_xs', 'iq1_s'];

/** @throws ArgumentError if an option is none that there is; BlockprunerError if they contradict each other */
export function checkQuantizeOptions({ type, tensorTypes = [] }: QuantizeOptions): void {
    checkOneOf('type', type, fileTypes);
    tensorTypes.forEach(parseTensorType);
    if (tensorTypes.length > 0 && (type === 'F32' || type === 'F16' || type === 'BF16')) {
        const message = `${option('tensorType')} changes nothing where ${option('type')} is ${type}: leave it out`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    if (type === undefined && tensorTypes.length > 0) {
        const message = `${option('tensorType')} is for a model that is quantized: give ${option('type')} too`;
        throw new BlockprunerError('ARGUMENT', message);
    }
}

/**
 * Tells of weights that are quantized twice.
 * @throws BlockprunerError if the importance matrix can't be written where it is to be, or a type takes one where there
 *     is none
 */
export async function checkQuantization(
    gguf: Gguf,
    {
        force,
        type,
        tensorTypes = [],
        imatrixOut,
        onNotice
    }: QuantizeOptions & Pick<SessionOptions, 'onNotice'> & { force?: boolean | undefined }
): Promise<void> {
    if (imatrixOut !== undefined) {
        await checkOutput(imatrixOut, gguf.files, force, 'importance matrix');
    }
    const [outside, ahead] = withoutImportance(gguf);
    const [first] = ahead;
    if (type !== undefined && (lowQuantizations as readonly string[]).includes(type) && first !== undefined) {
        throw new BlockprunerError(
            'UNSUPPORTED',
            `the model can't be quantized to ${type}, which takes an importance matrix: ` +
                `${first} predicts tokens further ahead, and is not computed`
        );
    }
    for (const rule of tensorTypes.map(parseTensorType)) {
        const [found] = await namesFound(rule, [...outside, ...ahead]);
        if (found !== undefined && NEED_IMPORTANCE.includes(rule[1])) {
            const message = `${found} can't be ${rule[1]}, which takes an importance matrix: there is none of it`;
            throw new BlockprunerError('ARGUMENT', message);
        }
    }
    if (type !== undefined && isQuantized(gguf)) {
        onNotice?.(`the model is quantized already; made from its file in F16 or BF16, ${type} would lose less`);
    }
}

/**
 * The matrices that no importance is found of: those outside the layers, and those of layers that predict tokens
 * further ahead (MTP), which llama.cpp doesn't compute.
 */
function withoutImportance(gguf: Gguf): [outside: string[], ahead: string[]] {
    const { metadata, tensors } = gguf;
    const architecture = architectureOf(gguf);
    const valueOf = (key: string) => Number(metadata[`${architecture}.${key}`] ?? 0);
    const computed = valueOf('block_count') - valueOf('nextn_predict_layers');
    const matrices = tensors.filter(({ shape }) => shape.length > 1).map(({ name }) => name);
    return [
        matrices.filter((name) => splitName(name).layer === undefined),
        matrices.filter((name) => (splitName(name).layer ?? 0) >= computed)
    ];
}

/** What is made of a pruned model: complete files without their names. */
export interface Quantized {
    /** Its importance matrix, where that is asked for. */
    imatrix: Draft | undefined;
    /** Its copy in another type, where that is asked for. */
    model:
        | {
              draft: Draft;
              type: FileType;
              /** How many tokens the importance matrix is of. */
              tokens: number;
              /** NLL of each predicted token of the calibration text, [sequences × (length − 1)]. */
              nll: Float32Array;
              tasks: TaskScores[];
          }
        | undefined;
}

/**
 * Gathers the importance matrix of a pruned model, and quantizes the model with it, as far as that is asked for.
 * @param pruned the file of the model, complete
 * @param fitted what the repair was fitted to, if it was
 * @param score scores the model in that type
 * @throws BlockprunerError if the quantizer can't, or there is no room; no file is left then
 */
export async function quantizePruned(
    session: Session,
    pruned: Gguf,
    fitted: Sequences | undefined,
    score: (quantized: Model) => Promise<TaskScores[]>,
    {
        output,
        force,
        type,
        tensorTypes = [],
        imatrixOut,
        signal,
        onProgress
    }: QuantizeOptions &
        Pick<SessionOptions, 'signal'> & {
            output: string;
            force?: boolean | undefined;
            onProgress?: PhaseProgress | undefined;
        }
): Promise<Quantized> {
    if (type === undefined && imatrixOut === undefined) {
        return { imatrix: undefined, model: undefined };
    }
    const { calibration, model } = session;
    const text = fitted
        ? { tokens: Int32Array.from([...calibration.tokens, ...fitted.tokens]), length: calibration.length }
        : calibration;
    const report = (share: (part: number) => number) => (done: number, total: number) =>
        onProgress?.('quantize', share(done / total), 1);

    const [source] = pruned.files as [string];
    const gathering = { signal, onProgress: report((part) => part / 2) };
    const importance = await useAlike(model, source, (loaded) => loaded.importance(text, gathering), { signal });
    const of = { name: calibration.name, sequences: countSequences(text), context: text.length };
    const imatrix = imatrixOut === undefined ? undefined : await draftImatrix(imatrixOut, importance, of, force);
    if (type === undefined) {
        return { imatrix, model: undefined };
    }

    const file = partialIn(path.dirname(path.resolve(output)), '.gguf');
    try {
        await checkRoom(output, mostBytes(pruned, type, tensorTypes));
        await quantizeGguf(pruned, file, {
            ...{ type, threads: model.threads, importance, signal },
            tensorTypes: tensorTypes.map(parseTensorType),
            onProgress: report((part) => 0.5 + part / 2)
        });
        const [nll, tasks] = await useAlike(
            model,
            file,
            async (quantized) => [await quantized.evaluate(calibration, { signal }), await score(quantized)] as const,
            { signal }
        );
        const draft = await draftOf(file, output, { force });
        return { imatrix, model: { draft, type, tokens: text.tokens.length, nll, tasks } };
    } catch (error) {
        await fs.rm(file, { force: true });
        await imatrix?.discard();
        throw error;
    }
}

/** How large the file may become: as that of the largest of the types that a quantized one may have, Q8_0. */
function mostBytes(gguf: Gguf, type: FileType, tensorTypes: readonly string[]): number {
    const ofFloats: Partial<Record<FileType, number>> = { F32: 32, F16: 16, BF16: 16 };
    const bits = tensorTypes.length > 0 ? 32 : (ofFloats[type] ?? 8.5);
    const header = gguf.bytes - gguf.tensors.reduce((sum, { bytes }) => sum + bytes, 0);
    return (countParameters(gguf) * bits) / 8 + header;
}
