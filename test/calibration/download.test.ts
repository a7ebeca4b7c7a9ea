// Texts and tasks that are named by URI: a server of the test's own is the web.
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import path from 'node:path';
import { embeddedText, loadCalibration, loadTask, Model } from '../../lib/index.js';
import { parseTask } from '../../lib/cli/tasks.js';
import { readText } from '../../lib/calibration/text.js';
import { onCpu, run, runJson } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const piqa =
    ['Boil water', 'Cool water']
        .map((goal) => JSON.stringify({ goal, sol1: 'Heat it.', sol2: 'Cool it.' }))
        .join('\n') + '\n';
const hellaswag = 'A man\n2\na\nb\nc\nd\nA dog\n0\ne\nf\ng\nh\n';

type Answer = (response: http.ServerResponse) => void;
const text =
    (content: string | Buffer, headers: http.OutgoingHttpHeaders = {}): Answer =>
    (response) => {
        response
            .writeHead(200, {
                'content-length': Buffer.byteLength(content),
                'content-type': 'application/octet-stream',
                ...headers
            })
            .end(content);
    };
const answers: Record<string, Answer> = {
    '/hellaswag.txt': text(hellaswag),
    '/piqa.jsonl?raw=1,2': text(piqa),
    '/piqa.jsonl': text(piqa),
    '/labels.lst': text('0\n1\n'),
    '/moved.txt': (response) => response.writeHead(302, { location: '/hellaswag.txt' }).end(),
    '/datasets/user/repo/resolve/main/data/hellaswag.txt': text(hellaswag),
    '/datasets/user/repo/resolve/v2/hellaswag.txt': text(hellaswag),
    '/corpus.jsonl?download=true': text(JSON.stringify({ text: fs.readFileSync(embeddedText, 'utf8').slice(0, 4000) })),
    '/cut.txt': (response) => {
        response.writeHead(200, { 'content-length': 1000 });
        response.write(hellaswag, () => response.destroy());
    },
    '/cut-chunked.txt': (response) => response.write(hellaswag, () => response.destroy()),
    '/slow.txt': (response) => {
        response.writeHead(200, { 'content-length': 1000 });
        response.write(hellaswag);
    },
    '/page': text('<!doctype html>', { 'content-type': 'text/html; charset=utf-8' }),
    '/latin1.txt': text(Buffer.from('caf\xe9', 'latin1')),
    '/large.txt': (response) => response.writeHead(200, { 'content-length': 2 ** 30 }).write('a'),
    '/empty.txt': text(''),
    '/broken': (response) => response.writeHead(503).end(),
    '/private': (response) => response.writeHead(403).end()
};

let asked: string[] = [];
let web: http.Server, at: string;
let caches = 0;
beforeAll(async () => {
    web = http.createServer(({ url }, response) => {
        asked.push(url!);
        (answers[url!] ?? ((unknown) => unknown.writeHead(404).end()))(response);
    });
    await new Promise<void>((resolve) => web.listen(0, '127.0.0.1', resolve));
    at = `http://127.0.0.1:${(web.address() as AddressInfo).port}`;
});
beforeEach(() => {
    asked = [];
    process.env.BLOCKPRUNER_CACHE = path.join(folder, `cache${caches++}`);
    process.env.HF_ENDPOINT = at;
});
afterEach(() => {
    delete process.env.BLOCKPRUNER_CACHE;
    delete process.env.HF_ENDPOINT;
});
afterAll(() => {
    web.closeAllConnections();
    web.close();
});

test('is downloaded once: then it needs no network', async () => {
    const heard: number[][] = [];
    const uri = `${at}/hellaswag.txt`;
    const first = await loadTask({ name: 'hellaswag', file: uri }, { onProgress: (...bytes) => heard.push(bytes) });
    expect(first.questions.map(({ choices, answer }) => choices[answer]!.ending)).toEqual([' c', ' e']);
    expect(heard.at(-1)).toEqual([hellaswag.length, hellaswag.length]);
    answers['/hellaswag.txt'] = (response) => response.destroy();
    expect(await loadTask({ name: 'hellaswag', file: uri })).toEqual(first);
    answers['/hellaswag.txt'] = text(hellaswag);
    expect(asked).toEqual(['/hellaswag.txt']);
});

test('is downloaded again where the cache is damaged', async () => {
    const uri = `${at}/hellaswag.txt`;
    await readText(uri);
    const content = fs
        .readdirSync(process.env.BLOCKPRUNER_CACHE!, { recursive: true, withFileTypes: true })
        .find((entry) => entry.isFile() && entry.parentPath.includes('content'))!;
    fs.writeFileSync(path.join(content.parentPath, content.name), 'A cat');
    expect(await readText(uri)).toBe(hellaswag);
    expect(asked).toHaveLength(2);
});

test('may be elsewhere, or on Hugging Face', async () => {
    expect(await readText(`${at}/moved.txt`)).toBe(hellaswag);
    expect(await readText('hf://datasets/user/repo/data/hellaswag.txt')).toBe(hellaswag);
    expect(await readText('hf://datasets/user/repo@v2/hellaswag.txt')).toBe(hellaswag);
    await expect(readText('hf://user/repo/hellaswag.txt')).rejects.toThrow(
        "can't download hf://user/repo/hellaswag.txt: write hf://datasets/user/repo/path"
    );
});

test('may be a calibration text, JSON Lines by the name in the URI', async () => {
    const model = await Model.load(tiny, { device: 'cpu', threads: 1 });
    const { name, tokens } = await loadCalibration(model, {
        file: `${at}/corpus.jsonl?download=true`,
        samples: 2,
        context: 64
    });
    expect([name, [...tokens]]).toEqual([
        'corpus.jsonl',
        [...(await loadCalibration(model, { file: 'embedded', samples: 2, context: 64 })).tokens]
    ]);
    model.dispose();
});

describe('what is wrong is said, and nothing is kept:', () => {
    test.each([
        ['no such file', '/none.txt', 'there is no such file (404)'],
        ['access denied', '/private', 'access is denied (403); download it yourself, and give the file'],
        ['a server in trouble', '/broken', 'the server answers 503 Service Unavailable'],
        ['a download that breaks off', '/cut.txt', 'the connection broke off; try again'],
        ['the same without a length', '/cut-chunked.txt', 'the connection broke off; try again'],
        ['a web page', '/page', 'it is a web page; give the address of the file itself'],
        ['another encoding', '/latin1.txt', 'it is not UTF-8 text; unpack or convert it, and give the file'],
        ['more than fits', '/large.txt', 'it is larger than 256 MiB; download it yourself, and give a part of it']
    ])('%s', async (_, url, says) => {
        const failure = (await readText(at + url).catch((error: unknown) => error)) as Error;
        expect(failure).toMatchObject({
            name: 'BlockprunerError',
            message: expect.stringContaining(at + url) as string
        });
        expect(failure.message.endsWith(says)).toBe(true);
        await readText(at + url).catch(() => {});
        expect(asked).toHaveLength(2);
    });

    test('an empty text', async () => {
        await expect(readText(`${at}/empty.txt`)).rejects.toThrow(`the text ${at}/empty.txt is empty`);
        await readText(`${at}/empty.txt`).catch(() => {});
        expect(asked).toHaveLength(2);
    });

    test('no server, no host', async () => {
        await expect(readText('http://127.0.0.1:1/x.txt')).rejects.toThrow(
            /^can't download http:\/\/127\.0\.0\.1:1\/x\.txt: /
        );
        await expect(readText('http://no-such-host.invalid/x.txt')).rejects.toThrow(
            "can't download http://no-such-host.invalid/x.txt: its host is not found: is there a network?"
        );
    });

    test('a cache that cannot be written', async () => {
        process.env.BLOCKPRUNER_CACHE = path.join(tiny, 'cache');
        await expect(readText(`${at}/hellaswag.txt`)).rejects.toThrow(
            `can't keep ${at}/hellaswag.txt in ${process.env.BLOCKPRUNER_CACHE}: `
        );
    });
});

test('a signal stops it', async () => {
    const stop = new AbortController();
    const reading = loadTask(
        { name: 'hellaswag', file: `${at}/slow.txt` },
        { signal: stop.signal, onProgress: () => stop.abort(new Error('enough')) }
    );
    await expect(reading).rejects.toThrow('enough');
    answers['/slow.txt'] = text(hellaswag);
    expect((await loadTask({ name: 'hellaswag', file: `${at}/slow.txt` })).questions).toHaveLength(2);
});

test('--task takes URIs, with their queries, and labels', () => {
    const labels = path.join(folder, 'labels.lst');
    fs.writeFileSync(labels, '0\n1\n');
    const uri = 'https://example.org/a=b/valid.jsonl';
    expect(parseTask(`hellaswag=${uri}?raw=1,2`)).toEqual({ name: 'hellaswag', file: `${uri}?raw=1,2` });
    expect(parseTask(`piqa=${uri}?raw=1,2`)).toEqual({ name: 'piqa', file: `${uri}?raw=1,2` });
    expect(parseTask(`piqa=${uri}?raw=1,2,${labels}`)).toEqual({ name: 'piqa', file: `${uri}?raw=1,2`, labels });
    expect(parseTask(`piqa=${uri},https://example.org/labels.lst?a=1,2`)).toEqual({
        name: 'piqa',
        file: uri,
        labels: 'https://example.org/labels.lst?a=1,2'
    });
    expect(parseTask(`piqa=${uri},labels.lst`)).toEqual({ name: 'piqa', file: uri, labels: 'labels.lst' });
    expect(parseTask(`multiple-choice=${uri}?a=1,context:q,choices:c,answer:a`)).toEqual({
        name: 'multiple-choice',
        file: `${uri}?a=1`,
        fields: { context: 'q', choices: 'c', answer: 'a' }
    });
});

test('the command line scores it, and says in a line what is wrong', async () => {
    const { tasks } = await runJson<{ tasks: unknown[] }>(
        'eval',
        tiny,
        '--task',
        `piqa=${at}/piqa.jsonl,${at}/labels.lst`,
        '--task',
        `hellaswag=${at}/hellaswag.txt`,
        ...onCpu
    );
    expect(tasks).toMatchObject([
        { task: 'piqa', questions: 2 },
        { task: 'hellaswag', questions: 2 }
    ]);
    const { code, stderr } = await run('eval', tiny, '--task', `hellaswag=${at}/none.txt`, ...onCpu);
    expect([code, stderr]).toEqual([1, `blockpruner: can't download ${at}/none.txt: there is no such file (404)\n`]);
});
