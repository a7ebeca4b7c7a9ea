import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { loadCalibration, Model } from '../../lib/index.js';
import { readSamples } from '../../lib/calibration/calibration.js';
import { temporaryFolder, tiny } from '../models';

// The files are PyArrow's: test/reference/parquet.py.
const folder = temporaryFolder();
const file = (name: string) => path.join(__dirname, `${name}.parquet`);
const questions = ['What is the capital of France?', 'Is 7 prime?', 'Say ☃.'];
const answers = ['Paris.', 'Yes, it is.', '☃'];

function write(name: string, content: Buffer): string {
    const target = path.join(folder, name);
    fs.writeFileSync(target, content);
    return target;
}

test('the rows of a column are samples, `text` by default', async () => {
    expect(await readSamples(file('texts'))).toBe(questions.join('\n\n'));
    expect(await readSamples(file('texts'), 'text, body')).toBe(
        questions.map((question, i) => `${question}\n${answers[i]}`).join('\n\n')
    );
});

test.each([
    ['messages', undefined],
    ['conversations', undefined],
    ['conversations', 'nested.list']
])('columns of conversations are conversations: %s, %s', async (name, field) => {
    expect(await readSamples(file(name), field)).toEqual(
        questions.map((question, i) => ({
            messages: [
                { role: 'user', content: question },
                { role: 'assistant', content: answers[i] }
            ],
            where: `${file(name)}, row ${i + 1}`
        }))
    );
});

test('a calibration is made of them, whatever the case of the ending', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const copy = write('TEXTS.PARQUET', fs.readFileSync(file('texts')));
    const { tokens, name } = await loadCalibration(model, { file: copy, samples: 1, context: 8 });
    expect([...tokens]).toEqual([...(await model.tokenize(questions.join('\n\n')))].slice(0, 8));
    expect(name).toBe('TEXTS.PARQUET');
    model.dispose();
});

test.each([
    ['texts', 'other', ' has no column other, but id, text, body, score; name one of them by `field`'],
    ['texts', 'id', ", row 1: it has no text in field 'id'; name the field with `field`"],
    ['texts', 'text,other', ", row 1: it has no text in field 'other'; name the field with `field`"],
    ['latin1', 'none', ", row 1: it has no text in field 'none'; name the field with `field`"],
    ['large', undefined, ' has more than 256 MiB in text; give a part of its rows']
])('a file that is not what it should be is refused: %s, %s', async (name, field, says) => {
    await expect(readSamples(file(name), field)).rejects.toMatchObject({
        code: 'INPUT',
        message: `${file(name)}${says}`
    });
});

describe('a file that can not be read is refused in one line that names it:', () => {
    const whole = fs.readFileSync(file('messages'));
    const changed = Buffer.from(whole);
    changed.fill(0xff, 8, 200);
    test.each([
        ['text', Buffer.from('Words and words.'), 'it is damaged, or no parquet file ('],
        ['empty', Buffer.alloc(0), 'it is damaged, or no parquet file ('],
        ['truncated', whole.subarray(0, -100), 'it is damaged, or no parquet file ('],
        ['without its middle', Buffer.concat([whole.subarray(0, 50), whole.subarray(200)]), 'it is damaged'],
        ['with changed bytes', changed, 'it is damaged'],
        ['not UTF-8', fs.readFileSync(file('latin1')), 'it is not UTF-8 text']
    ])('%s', async (name, content, why) => {
        const bad = write(`${name}.parquet`, content);
        const error = (await readSamples(bad).catch((reason: unknown) => reason)) as Error;
        expect(error).toMatchObject({ code: 'INPUT' });
        expect(error.message.startsWith(`can't read the text ${bad}: ${why}`)).toBe(true);
        expect(error.message).not.toContain('\n');
    });

    test('missing', async () => {
        const missing = path.join(folder, 'missing.parquet');
        await expect(readSamples(missing)).rejects.toThrow(`can't read the text ${missing}: there is no such file`);
    });
});

describe('by URI', () => {
    const server = http.createServer((request, response) => {
        response.end(request.url === '/texts.parquet' ? fs.readFileSync(file('texts')) : 'Words.');
    });
    let at: string;
    const before = process.env.BLOCKPRUNER_CACHE;
    beforeAll(async () => {
        process.env.BLOCKPRUNER_CACHE = path.join(folder, 'cache');
        await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
        at = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    });
    afterAll(() => {
        server.close();
        if (before === undefined) {
            delete process.env.BLOCKPRUNER_CACHE;
        } else {
            process.env.BLOCKPRUNER_CACHE = before;
        }
    });

    test('is downloaded once', async () => {
        expect(await readSamples(`${at}/texts.parquet`)).toBe(questions.join('\n\n'));
        server.close();
        server.closeAllConnections();
        expect(await readSamples(`${at}/texts.parquet`, 'body')).toBe(answers.join('\n\n'));
        await new Promise<void>((resolve) => server.listen(Number(new URL(at).port), '127.0.0.1', resolve));
    });

    test('is refused where it is no parquet file', async () => {
        await expect(readSamples(`${at}/other.parquet`)).rejects.toMatchObject({
            code: 'DOWNLOAD',
            message:
                `can't use ${at}/other.parquet: it is no parquet file, or a part of one; ` +
                'unpack or convert it, and give the file'
        });
    });
});
