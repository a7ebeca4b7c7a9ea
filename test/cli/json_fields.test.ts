// What each command prints with --json, and the bytes of the files that are written, against what json_fields.json
// records: the fields and their types, and the values as far as they are the same in every run. Scripts read these
// fields, and the files stay for years, so neither may change by accident. Where a change is wanted, record anew with
// BLOCKPRUNER_UPDATE=1; the difference in json_fields.json shows what changed.
import fs from 'node:fs';
import path from 'node:path';
import { apply, embeddedText, parseBlocks, prune, type Inspection } from '../../lib/index.js';
import { hashWithoutProvenance } from '../gguf_bytes';
import { quantize, randomModel, temporaryFolder, tiny } from '../models';
import { onCpu, runJson } from './run';

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

interface Recording {
    /** The lines of files that commands read, by their names. */
    files: Record<string, Json[]>;
    /** By what is special about a command: its line in parts, the types of its output's fields, and their values. */
    commands: Record<string, { args: string[]; fields: Record<string, string>; values: Json }>;
    /** SHA-256 of written files without their provenance, by the architecture that was pruned. */
    written: Record<string, string>;
}

/**
 * How far a number with a fraction may be from the recorded one, relative: the kernels of other processors round
 * otherwise. It is so little because the commands run on the embedded model in F32. llama.cpp rounds what it multiplies
 * quantized weights with, so that their perplexities differ by up to 1 % between processors.
 */
const TOLERANCE = 1e-4;

/** What is different in each run, or with each release. */
const changing = ['seconds', 'prompt', 'generation', 'version'];

const recordingFile = path.join(__dirname, 'json_fields.json');
const recording = JSON.parse(fs.readFileSync(recordingFile, 'utf8')) as Recording;
const update = process.env.BLOCKPRUNER_UPDATE === '1';
const folder = temporaryFolder();
const model = path.join(folder, 'f32.gguf'),
    pruned = path.join(folder, 'pruned.gguf');
const options = {
    verify: false,
    repair: 'none',
    device: 'cpu',
    threads: 1,
    calibration: { file: 'embedded', samples: 1, context: 32 }
} as const;

beforeAll(async () => {
    for (const [name, lines] of Object.entries(recording.files)) {
        const text = lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line)));
        fs.writeFileSync(path.join(folder, name), `${text.join('\n')}\n`);
    }
    await quantize(tiny, model, 'F32');
    await apply(model, { ...options, output: pruned, order: parseBlocks('attn.3,ffn.8') });
});

afterAll(() => {
    if (update) {
        fs.writeFileSync(recordingFile, JSON.stringify(recording)); // `npm run format` makes it readable
    }
});

/** The types of all fields by their paths; the elements of an array count as one, with all their types. */
function fieldsOf(value: Json, at = '', fields = new Map<string, Set<string>>()): Map<string, Set<string>> {
    const isBranch = value !== null && typeof value === 'object';
    const parts: [string, Json][] = !isBranch
        ? []
        : Array.isArray(value)
          ? value.map((element) => [`${at}[]`, element])
          : Object.entries(value).map(([key, field]) => [at === '' ? key : `${at}.${key}`, field]);
    if (parts.length === 0) {
        const type = value === null ? 'null' : Array.isArray(value) ? 'empty array' : typeof value;
        fields.set(at, (fields.get(at) ?? new Set()).add(type));
    }
    parts.forEach(([field, part]) => fieldsOf(part, field, fields));
    return fields;
}

/**
 * The values that must be the same in every run, with words in place of what depends on the place.
 * @param known values that would be repeated again and again, as JSON, with words for them
 */
function lasting(value: Json, known: ReadonlyMap<string, string>): Json {
    const word = known.get(JSON.stringify(value));
    if (word !== undefined) {
        return word;
    }
    if (Array.isArray(value)) {
        return value.map((element) => lasting(element, known));
    }
    if (value !== null && typeof value === 'object') {
        const fields = Object.entries(value).filter(([key]) => !changing.includes(key));
        return Object.fromEntries(fields.map(([key, field]) => [key, lasting(field, known)]));
    }
    return typeof value === 'string'
        ? value.replaceAll(folder, '{folder}')
        : typeof value === 'number'
          ? Number(value.toPrecision(9))
          : value;
}

/** Where values differ from recorded ones by more than rounding. */
function differences(found: Json | undefined, recorded: Json | undefined, at = ''): string[] {
    if (typeof found === 'number' && typeof recorded === 'number' && !Number.isInteger(recorded)) {
        return Math.abs(found / recorded - 1) <= TOLERANCE ? [] : [`${at}: ${found} instead of ${recorded}`];
    }
    const isBranch = (value: Json | undefined) => value !== null && typeof value === 'object';
    if (isBranch(found) && isBranch(recorded) && Array.isArray(found) === Array.isArray(recorded)) {
        const [ours, theirs] = [found, recorded] as Record<string, Json>[];
        return Object.keys({ ...ours, ...theirs }).flatMap((key) =>
            differences(ours![key], theirs![key], `${at}.${key}`)
        );
    }
    return found === recorded ? [] : [`${at}: ${JSON.stringify(found)} instead of ${JSON.stringify(recorded)}`];
}

/** The lists of the model's blocks, which are recorded in the output of the first command, `inspect`. */
function known(name: string): Map<string, string> {
    if (name === 'inspect') {
        return new Map();
    }
    const { blocks } = recording.commands.inspect!.values as unknown as Inspection;
    const bare = blocks.map(({ kind, layer }) => ({ kind, layer }));
    return new Map([
        [JSON.stringify(blocks), '{blocks}'],
        [JSON.stringify(bare), '{blocks without sizes}']
    ]);
}

/** Compares an output with the recorded one. */
function expectRecorded(name: string, output: Json): void {
    const fields = Object.fromEntries(
        [...fieldsOf(output)].map(([field, types]) => [field, [...types].sort().join(' | ')])
    );
    const values = lasting(output, known(name));
    if (update) {
        Object.assign(recording.commands[name]!, { fields, values });
    }
    expect(fields).toEqual(recording.commands[name]!.fields);
    expect(differences(values, recording.commands[name]!.values)).toEqual([]);
}

/** Runs a recorded command. */
async function output(name: string): Promise<Json> {
    const places: Record<string, string> = { model, folder, pruned, text: embeddedText };
    const args = recording.commands[name]!.args.join(' ')
        .split(' ')
        .map((argument) => argument.replace(/\{(\w+)\}/g, (_, place: string) => places[place]!));
    return runJson<Json>(...args, ...(args[0] === 'inspect' ? [] : onCpu));
}

describe('the output of', () => {
    test.each(Object.keys(recording.commands))('%s', async (name) => {
        expectRecorded(name, await output(name));
    });

    test('compare is what it writes into results.json', () => {
        const results = path.join(folder, 'compare', 'results.json');
        expectRecorded('compare', JSON.parse(fs.readFileSync(results, 'utf8')) as Json);
    });
});

test.each([
    ['the embedded model', 'deci', () => tiny, 'attn.0,ffn.4,attn.5,ffn.11'],
    ['qwen2', 'deci', randomOne('qwen2'), 'attn.1,ffn.3'],
    ['qwen3', 'openelm', randomOne('qwen3'), 'attn.0,ffn.2'],
    ['gemma3', 'gemma3', randomOne('gemma3'), 'ffn.1,attn.2']
])('%s is written as %s, byte for byte', async (name, host, model, removed) => {
    const written = path.join(folder, 'written.gguf');
    const result = await apply(await model(), {
        ...options,
        output: written,
        force: true,
        order: parseBlocks(removed)
    });
    expect(result.host).toBe(host);
    expectWritten(name, written);
});

test('merged layers are written byte for byte', async () => {
    const written = path.join(folder, 'merged.gguf');
    const { merged } = await prune(tiny, { ...options, output: written, method: 'laco', remove: 4 });
    expect(merged).not.toEqual([]);
    expectWritten('merged layers', written);
});

function randomOne(name: 'qwen2' | 'qwen3' | 'gemma3'): () => Promise<string> {
    return () => randomModel(name, path.join(folder, `${name}.gguf`));
}

function expectWritten(name: string, file: string): void {
    const hash = hashWithoutProvenance(file);
    if (update) {
        recording.written[name] = hash;
    }
    expect(hash).toBe(recording.written[name]);
}
