// What PyTorch computed; search.py, beside this file, says how.
import fs from 'node:fs';
import path from 'node:path';
import type { Sequences } from '../../lib/index.js';

/** Reads a file of this folder. */
export function readReference<T>(name: string): T {
    return JSON.parse(fs.readFileSync(path.join(__dirname, name), 'utf8')) as T;
}

const { context, sequences } = readReference<{ context: number; sequences: number[][] }>('tokens.json');

/** The sequences that it computed with. */
export const calibration: Sequences = { tokens: Int32Array.from(sequences.flat()), length: context };
