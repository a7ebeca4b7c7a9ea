// Changes the header of a GGUF file in ways that someone who knows the format would try.
const SIZES = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 };
const STRING = 8,
    ARRAY = 9;

/** The numbers that say how a header is to be read: where each is, its bytes, and what it is. */
export function fieldsOf(bytes) {
    const fields = [];
    let at = 4;
    const number = (size, what) => {
        fields.push({ at, size, what });
        at += size;
        return size === 8 ? Number(bytes.readBigUInt64LE(at - 8)) : bytes.readUInt32LE(at - 4);
    };
    const string = (what) => {
        const length = number(8, `${what} length`);
        fields.push({ at, size: length, what });
        at += length;
    };
    const value = (type) => {
        if (type === STRING) {
            string('text');
        } else if (type === ARRAY) {
            const element = number(4, 'type');
            const count = number(8, 'count');
            for (let i = 0; i < count; i++) {
                // of long arrays, such as the vocabulary, the first ones stand for all
                const before = fields.length;
                value(element);
                if (i > 20) {
                    fields.length = before;
                }
            }
        } else {
            fields.push({ at, size: SIZES[type], what: 'value' });
            at += SIZES[type];
        }
    };
    number(4, 'version');
    const [tensors, keys] = [number(8, 'count'), number(8, 'count')];
    for (let i = 0; i < keys; i++) {
        string('key');
        value(number(4, 'type'));
    }
    for (let i = 0; i < tensors; i++) {
        string('name');
        const dimensions = number(4, 'dimensions');
        for (let d = 0; d < dimensions; d++) {
            number(8, 'dimension');
        }
        number(4, 'type');
        number(8, 'offset');
    }
    return { fields, end: at };
}

/** Whole numbers from 0 up to a limit, the same for the same seed (mulberry32). */
export function randomOf(seed) {
    let state = seed >>> 0;
    return (limit) => {
        state = (state + 0x6d2b79f5) >>> 0;
        let t = Math.imul(state ^ (state >>> 15), state | 1);
        t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
        return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * limit);
    };
}

const INTERESTING = [
    ...[0n, 1n, 2n, 3n, 5n, 8n, 9n, 12n, 13n, 14n, 31n, 32n, 33n, 64n, 127n, 128n, 255n, 256n, 4096n, 65535n],
    ...[0x7fffffffn, 0x80000000n, 0xffffffffn, 0x100000000n, 0x7fffffffffffffffn, 0x8000000000000000n],
    ...[0xffffffffffffffffn, 0xfffffffffffffff0n, 0x4000000000000000n, 1000000007n]
];

/** A changed copy of a file's beginning, by a seed. */
export function mutate(bytes, { fields, end }, seed) {
    const random = randomOf(seed);
    let copy = Buffer.from(bytes.subarray(0, end));
    const pick = () => fields[random(fields.length)];
    for (let left = 1 + random(3); left > 0; left--) {
        const field = pick();
        if (field.at + field.size > copy.length) {
            continue;
        }
        const put = (value) => {
            for (let i = 0; i < Math.min(field.size, 8); i++) {
                copy[field.at + i] = Number((value >> BigInt(8 * i)) & 255n);
            }
        };
        switch (random(8)) {
            case 0:
            case 1:
                put(INTERESTING[random(INTERESTING.length)]);
                break;
            case 2: // a little more or less
                copy[field.at] = (copy[field.at] ?? 0) + [1, 255, 2, 16][random(4)];
                break;
            case 3: {
                // what another field of the same kind has: a key twice, tensors that overlap, the shape of another
                const same = fields.filter(({ what }) => what === field.what);
                const other = same[random(same.length)];
                if (other.size === field.size && other.at + other.size <= copy.length) {
                    copy.copy(copy, field.at, other.at, other.at + other.size);
                }
                break;
            }
            case 4:
                for (let i = 0; i < field.size; i++) {
                    copy[field.at + i] = random(256);
                }
                break;
            case 5: // bytes that are missing, or there twice
                copy = Buffer.concat([copy.subarray(0, field.at), copy.subarray(field.at + random(2) * field.size)]);
                break;
            case 6:
                copy = Buffer.concat([copy.subarray(0, field.at + field.size), copy.subarray(field.at)]);
                break;
            case 7:
                if (random(10) === 0) {
                    copy = copy.subarray(0, field.at + random(field.size + 1));
                } else {
                    copy[random(copy.length)] = random(256);
                }
        }
    }
    return copy;
}
