// A GGUF file as its bytes, read without the addon that wrote it.
import crypto from 'node:crypto';
import fs from 'node:fs';

export interface GgufBytes {
    /** The bytes of each key's value, behind its type, in the order of the file. */
    metadata: Map<string, Buffer>;
    /** Names, shapes, types and places of the tensors. */
    tensors: Buffer;
    /** The tensors' values: the end of the file. */
    data: Buffer;
    /** Each tensor's values, with what is between them and the next one's. */
    valuesOf: Record<string, Buffer>;
}

/** Bytes of a value by GGUF's number of its type; 8 is a string and 9 an array. */
const sizes: Record<number, number> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 };
const STRING = 8,
    ARRAY = 9;

export function readBytes(file: string): GgufBytes {
    const bytes = fs.readFileSync(file);
    let at = 0;
    const u32 = () => bytes.readUInt32LE((at += 4) - 4);
    const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8));
    const string = () => {
        const length = u64();
        return bytes.toString('utf8', at, (at += length));
    };
    const pass = (type: number) => {
        if (type === STRING) {
            string();
        } else if (type === ARRAY) {
            const element = u32();
            for (let left = u64(); left > 0; left--) {
                pass(element);
            }
        } else {
            at += sizes[type]!;
        }
    };
    at = 8; // behind magic and version
    const [tensors, keys] = [u64(), u64()];
    const metadata = new Map<string, Buffer>();
    for (let i = 0; i < keys; i++) {
        const key = string(),
            start = at;
        pass(u32());
        metadata.set(key, bytes.subarray(start, at));
    }
    const described = at;
    const places: [name: string, place: number][] = [];
    for (let i = 0; i < tensors; i++) {
        const name = string();
        const dimensions = u32();
        at += 8 * dimensions + 4; // shape, type
        places.push([name, u64()]);
    }
    const alignment = metadata.get('general.alignment')?.readUInt32LE(4) ?? 32;
    const data = bytes.subarray(alignment * Math.ceil(at / alignment));
    return {
        metadata,
        tensors: bytes.subarray(described, at),
        data,
        valuesOf: Object.fromEntries(places.map(([name, place], i) => [name, data.subarray(place, places[i + 1]?.[1])]))
    };
}

/** The texts of a key whose value is an array of them. */
export function textsOf(file: string, key: string): string[] {
    const bytes = readBytes(file).metadata.get(key)!;
    const texts: string[] = [];
    for (let at = 16; at < bytes.length;) {
        const length = Number(bytes.readBigUInt64LE(at));
        texts.push(bytes.toString('utf8', at + 8, (at += 8 + length)));
    }
    return texts;
}

/** SHA-256 of all of a file but what it says of how it was made, the keys `blockpruner.*`. */
export function hashWithoutProvenance(file: string): string {
    const { metadata, tensors, data } = readBytes(file);
    const hash = crypto.createHash('sha256');
    for (const [key, value] of metadata) {
        if (!key.startsWith('blockpruner.')) {
            hash.update(`${key}\0`).update(value);
        }
    }
    return hash.update(tensors).update(data).digest('hex');
}
