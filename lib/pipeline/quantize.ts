// The last steps to what people run: the importance matrix of a pruned model, and its copy in a smaller type.
import fs from 'node:fs/promises';
import path from 'node:path';
import { checkOneOf } from '../check.js';
import { BlockprunerError, option } from '../errors.js';
import { isQuantized } from '../export/host.js';
import { checkRoom, draftOf, type Draft } from '../export/write.js';
import { checkOutput, partialIn } from '../output.js';
import { countParameters, type Gguf } from '../runtime/gguf.js';
import { useAlike } from '../runtime/model.js';
import { fileTypes, parseTensorType, quantizeGguf, writeImatrix, type FileType } from '../runtime/quantize.js';
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

/** llama.cpp's quantizer ends the process where it makes these types without an importance matrix. */
const NEED_IMPORTANCE = ['iq2_xxs', 'iq2_xs', 'iq1_s'];
const OUTSIDE_LAYERS = ['token_embd.weight', 'per_layer_token_embd.weight', 'output.weight'];

/** @throws ArgumentError if an option is none that there is; BlockprunerError if they contradict each other */
export function checkQuantizeOptions({ type, tensorTypes = [] }: QuantizeOptions): void {
    checkOneOf('type', type, fileTypes);
    for (const [pattern, of] of tensorTypes.map(parseTensorType)) {
        const found = OUTSIDE_LAYERS.find((name) => new RegExp(pattern).test(name));
        if (found !== undefined && NEED_IMPORTANCE.includes(of)) {
            const message = `${found} can't be ${of}, which takes an importance matrix: that is of the layers alone`;
            throw new BlockprunerError('ARGUMENT', message);
        }
    }
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
 * @throws BlockprunerError if the importance matrix can't be written where it is to be
 */
export async function checkQuantization(
    gguf: Gguf,
    {
        force,
        type,
        imatrixOut,
        onNotice
    }: QuantizeOptions & Pick<SessionOptions, 'onNotice'> & { force?: boolean | undefined }
): Promise<void> {
    if (type !== undefined && isQuantized(gguf)) {
        onNotice?.(`the model is quantized already; made from its file in F16 or BF16, ${type} would lose less`);
    }
    if (imatrixOut !== undefined) {
        await checkOutput(imatrixOut, gguf.files, force, 'importance matrix');
    }
}

/** A pruned model in another type. */
export interface Quantized {
    draft: Draft;
    type: FileType;
    /** How many tokens the importance matrix is of. */
    tokens: number;
    /** NLL of each predicted token of the calibration text, [sequences × (length − 1)]. */
    nll: Float32Array;
}

/**
 * Gathers the importance matrix of a pruned model, and quantizes the model with it, as far as that is asked for.
 * @param pruned the file of the model, complete
 * @param fitted what the repair was fitted to, if it was
 * @throws BlockprunerError if the quantizer can't, or there is no room; no file is left then
 */
export async function quantizePruned(
    session: Session,
    pruned: Gguf,
    fitted: Sequences | undefined,
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
): Promise<Quantized | undefined> {
    if (type === undefined && imatrixOut === undefined) {
        return undefined;
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
    const tokens = text.tokens.length;
    if (imatrixOut !== undefined) {
        const of = { name: calibration.name, sequences: countSequences(text), context: text.length };
        await writeImatrix(imatrixOut, importance, of, force);
    }
    if (type === undefined) {
        return undefined;
    }

    await checkRoom(output, mostBytes(pruned, type, tensorTypes));
    const file = partialIn(path.dirname(path.resolve(output)), '.gguf');
    try {
        await quantizeGguf(pruned, file, {
            ...{ type, threads: model.threads, importance, signal },
            tensorTypes: tensorTypes.map(parseTensorType),
            onProgress: report((part) => 0.5 + part / 2)
        });
        const nll = await useAlike(model, file, (quantized) => quantized.evaluate(calibration, { signal }), { signal });
        return { draft: await draftOf(file, output, force), type, tokens, nll };
    } catch (error) {
        await fs.rm(file, { force: true });
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
