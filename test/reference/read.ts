// What PyTorch computed; search.py, beside this file, says how.
import fs from 'node:fs';
import path from 'node:path';
import { Model, type Sequences } from '../../lib/index.js';
import { quantize, tiny } from '../models';

/** Reads a file of this folder. */
export function readReference<T>(name: string): T {
    return JSON.parse(fs.readFileSync(path.join(__dirname, name), 'utf8')) as T;
}

const { context, sequences } = readReference<{ context: number; sequences: number[][] }>('tokens.json');

/** The sequences that it computed with. */
export const calibration: Sequences = { tokens: Int32Array.from(sequences.flat()), length: context };

/**
 * Writes the embedded model as PyTorch computes it: in F32 throughout, since quantized weights make llama.cpp round
 * activations too.
 */
export function writeReferenceModel(folder: string): Promise<string> {
    return quantize(tiny, path.join(folder, 'f32.gguf'), 'F32');
}

/** Loads such a model, with keys and values in F32 too, which flash attention would round to 16 bits. */
export function loadReferenceModel(file: string): Promise<Model> {
    return Model.load(file, { device: 'cpu', threads: 1, cacheType: 'f32', flashAttention: false });
}
