import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';
import { embeddedText, loadCalibration, Model } from '../../lib/index.js';
import { readSamples } from '../../lib/calibration/calibration.js';
import { temporaryFolder, tiny, withMetadata } from '../models';

const folder = temporaryFolder();
let model: Model;
beforeAll(async () => {
    model = await Model.load(tiny, { device: 'cpu', threads: 1 });
});
afterAll(() => model.dispose());

function write(name: string, text: string | Buffer): string {
    const file = path.join(folder, name);
    fs.writeFileSync(file, text);
    return file;
}

const jsonl = (...records: unknown[]) =>
    write('samples.jsonl', records.map((record) => `${JSON.stringify(record)}\n`).join(''));
const story =
    'Call me Ishmael. Some years ago, having little money in my purse, I thought I would sail about a little. '.repeat(
        20
    );

describe('sequences', () => {
    test('are the text tokenised once and cut, without the remainder', async () => {
        const all = await model.tokenize(story);
        const { tokens, length, name } = await loadCalibration(model, { file: write('story.txt', story), context: 50 });
        expect([name, length, tokens.length]).toEqual(['story.txt', 50, 50 * Math.floor(all.length / 50)]);
        expect(all.length % 50).not.toBe(0);
        expect(tokens).toEqual(all.slice(0, tokens.length));
    });

    test('begin with BOS once, where the model wants one', async () => {
        const file = await withMetadata(tiny, path.join(folder, 'bos.gguf'), [
            { key: 'tokenizer.ggml.add_bos_token', type: 'bool', value: true },
            { key: 'tokenizer.ggml.bos_token_id', type: 'u32', value: 7 }
        ]);
        const withBos = await Model.load(file, { device: 'cpu', threads: 1 });
        const { tokens } = await loadCalibration(withBos, { file: write('story.txt', story), context: 50 });
        expect(withBos.bos).toBe(7);
        expect(model.bos).toBeNull();
        withBos.dispose();
        expect(Array.from(tokens)).toEqual([7, ...(await model.tokenize(story))].slice(0, tokens.length));
    });

    test('are the first 16 of 512 tokens, as of the embedded text', async () => {
        const all = await model.tokenize(fs.readFileSync(embeddedText, 'utf8'));
        const { tokens, length, name } = await loadCalibration(model, { file: 'embedded' });
        expect([name, length, tokens.length]).toEqual(['calibration.txt', 512, 16 * 512]);
        expect(tokens).toEqual(all.slice(0, 16 * 512));
    });

    test('are a choice by the seed, in the order of the text', async () => {
        const all = await model.tokenize(fs.readFileSync(embeddedText, 'utf8'));
        const starts = new Map(
            Array.from({ length: Math.floor(all.length / 64) }, (_, i) => [all.slice(i * 64, (i + 1) * 64).join(), i])
        );
        const chosen = async (seed: number) => {
            const { tokens } = await loadCalibration(model, { file: 'embedded', samples: 8, context: 64, seed });
            return Array.from({ length: 8 }, (_, i) => starts.get(tokens.slice(i * 64, (i + 1) * 64).join())!);
        };
        const [one, two] = [await chosen(1), await chosen(2)];
        expect(await chosen(1)).toEqual(one);
        expect(two).not.toEqual(one);
        for (const choice of [one, two, await chosen(0)]) {
            expect(new Set(choice).size).toBe(8);
            expect(choice).toEqual([...choice].sort((a, b) => a - b));
            expect(choice.at(-1)).toBeGreaterThan(200); // from all of the text: it has 800
        }
    });

    test('by a seed are all where all are wanted', async () => {
        const file = write('story.txt', story);
        const { tokens } = await loadCalibration(model, { file, context: 50 });
        expect(await loadCalibration(model, { file, context: 50, samples: tokens.length / 50, seed: 5 })).toEqual({
            file,
            name: 'story.txt',
            tokens,
            length: 50,
            rest: new Int32Array()
        });
    });

    test('that the text is too short for are refused', async () => {
        const file = write('story.txt', story);
        await expect(loadCalibration(model, { file, context: 5000 })).rejects.toThrow(
            /story\.txt is too short: it has \d+ tokens and one sequence needs 5000/
        );
        await expect(loadCalibration(model, { file, context: 50, samples: 999 })).rejects.toThrow(
            /story\.txt is too short: .* enough for \d+ sequences of 50, not for 999/
        );
    });
});

describe('JSON Lines', () => {
    test.each([
        ['text', undefined, [{ text: 'One.' }, { text: 'Two.\nMore.' }], 'One.\n\nTwo.\nMore.'],
        [
            "Alpaca's fields",
            undefined,
            [
                { instruction: 'Add.', input: '1 and 2', output: '3' },
                { instruction: 'Say hi.', input: '', output: 'Hi.' }
            ],
            'Add.\n1 and 2\n3\n\nSay hi.\nHi.'
        ],
        [
            "the fields of Alpaca's seed tasks",
            undefined,
            [
                {
                    id: 1,
                    instruction: 'Add.',
                    instances: [
                        { input: '1', output: '2' },
                        { input: 'x', output: 'y' }
                    ]
                }
            ],
            'Add.\n1\n2'
        ],
        ['a named field', 'body', [{ text: 'no', body: 'Yes.' }, { body: 'Also.' }], 'Yes.\n\nAlso.'],
        ['fields in objects and lists', 'a.b.1, c', [{ a: { b: ['no', 'Yes.'] }, c: 'And.' }], 'Yes.\nAnd.']
    ])('samples are joined by a blank line: %s', async (_, field, records, text) => {
        expect(await readSamples(jsonl(...records), field)).toBe(text);
    });

    test('blank lines are skipped, and Windows line ends are fine', async () => {
        expect(await readSamples(write('windows.jsonl', '\r\n{"text": "One."}\r\n\n{"text": "Two."}\r\n'))).toBe(
            'One.\n\nTwo.'
        );
    });

    test.each([
        ['no JSON', '{"text": "One."}\n{"text": \n', undefined, 'samples.jsonl, line 2: not JSON'],
        [
            'no text',
            '\n{"other": "One."}\n',
            undefined,
            "samples.jsonl, line 2: it has no text in field 'text'; name the field with `field`"
        ],
        ['a number as text', '{"text": 5}\n', undefined, "samples.jsonl, line 1: it has no text in field 'text'"],
        ['not the named field', '{"text": "One."}\n', 'body', "samples.jsonl, line 1: it has no text in field 'body'"],
        ['no object', '"One."\n', undefined, "samples.jsonl, line 1: it has no text in field 'text'"]
    ])('a line with %s is named', async (_, text, field, says) => {
        await expect(readSamples(write('samples.jsonl', text), field)).rejects.toThrow(says);
    });

    test.each([
        ['lines.ndjson', '{"text": "One."}\n{"text": "Two."}\n'],
        ['LINES.JSONL', '{"text": "One."}\n{"text": "Two."}\n'],
        ['list.json', '[{"text": "One."}, "Two."]'],
        ['list.JSON.GZ', zlib.gzipSync('[{"text": "One."}, "Two."]')],
        ['lines.jsonl.gz', zlib.gzipSync('{"text": "One."}\n{"text": "Two."}\n')],
        ['plain.txt.gz', zlib.gzipSync('One.\n\nTwo.')]
    ])('%s is read by its ending', async (name, content) => {
        expect(await readSamples(write(name, content))).toBe('One.\n\nTwo.');
    });

    test.each([
        ['no JSON', '[{"text": ', undefined, /list\.json: not JSON \(.*\)/],
        ['no list', '{"text": "One."}', undefined, 'list.json: it must be a JSON list of samples'],
        [
            'a sample without text',
            '["One.", {"other": 1}]',
            undefined,
            "list.json, sample 2: it has no text in field 'text'"
        ]
    ])('a JSON list that is %s is refused', async (_, text, field, says) => {
        await expect(readSamples(write('list.json', text), field)).rejects.toThrow(says);
    });

    test('a field of a plain text is refused', async () => {
        const work = readSamples(write('plain.txt', 'Words.'), 'body');
        await expect(work).rejects.toMatchObject({ code: 'ARGUMENT', argument: 'field', value: 'body' });
        await expect(work).rejects.toThrow('plain.txt is read as a plain text');
    });

    test('without any text are refused', async () => {
        await expect(readSamples(jsonl({ text: '' }, { text: ' ' }))).rejects.toThrow('samples.jsonl is empty');
    });

    const seedTasks = path.resolve(__dirname, '../../../shared/data/alpaca-seed-tasks.jsonl');
    (fs.existsSync(seedTasks) ? test : test.skip)("Alpaca's 175 seed tasks load", async () => {
        const text = (await readSamples(seedTasks)) as string;
        expect(text.startsWith("Is there anything I can eat for a breakfast that doesn't include eggs")).toBe(true);
        const { tokens } = await loadCalibration(model, { file: seedTasks, samples: 4, context: 128 });
        expect(tokens).toEqual((await model.tokenize(text)).slice(0, 512));
    });
});

test.each([
    ['missing', undefined, 'there is no such file'],
    ['empty', '', 'is empty'],
    ['blank', ' \n\t\n', 'is empty'],
    ['not UTF-8', Buffer.from([0x61, 0xff, 0xfe, 0x62]), 'it is not UTF-8'],
    ['UTF-16', Buffer.from('\ufeffWords', 'utf16le'), 'it is UTF-16, and must be UTF-8'],
    ['with NUL bytes', 'Some\0text', 'it has NUL bytes'],
    ['damaged gzip', zlib.gzipSync('Words').subarray(0, -9), 'its gzip compression is damaged']
])('a text that is %s is refused', async (name, content, says) => {
    const file = content === undefined ? path.join(folder, name) : write(`${name}.txt`, content);
    await expect(readSamples(file)).rejects.toThrow(says);
    await expect(readSamples(file)).rejects.toThrow(file);
});
