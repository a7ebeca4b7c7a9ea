// What surrounds a run and goes wrong: folders, disks, names, other runs; and what is in a model that can't be used.
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { readGguf, type Inspection } from '../../lib/index.js';
import { partialIn } from '../../lib/output.js';
import { backendFolders } from '../../lib/runtime/addon.js';
import { Journal } from '../../lib/search/journal.js';
import { readBytes } from '../gguf_bytes';
import { fakeGpu, fixture, temporaryFolder, tiny, withMetadata, writeGguf } from '../models';
import { hasDraft, onCpu, run, runJson, short, shortPrune, shortSearch, start } from './run';

const folder = temporaryFolder();
const at = (name: string) => path.join(folder, name);
const search = (output: string, ...args: string[]) => ['prune', tiny, '-o', output, ...shortSearch, ...args];

/** Expects one line and the exit code 1. */
async function refused(says: string | RegExp, ...args: string[]): Promise<void> {
    const { code, stderr } = await run(...args);
    expect(stderr.trimEnd().split('\n').at(-1)).toMatch(says);
    expect(stderr).not.toMatch(/\n {4}at /);
    expect(code).toBe(1);
}

const environment = { ...process.env };
afterEach(() => {
    process.env = { ...environment };
});

(process.platform === 'win32' ? test.skip : test)('a folder for temporary files that is missing is named', async () => {
    process.env.TMPDIR = '/no/such/folder';
    const says = /^blockpruner: can't write temporary files in \/no\/such\/folder: ENOENT.*; set TMPDIR to a folder/;
    await refused(says, ...search(at('x.gguf'), '--no-verify'));
    await refused(says, 'inspect', tiny);
});

(process.platform === 'win32' ? test.skip : test)('a name that is too long is refused before the search', async () => {
    const long = at(`${'x'.repeat(245)}.gguf`); // its journal's name has 258 characters
    await refused(/^blockpruner: the name of the journal \S+ is too long for the file system$/, ...search(long));
    expect(fs.readdirSync(folder).filter((name) => name.startsWith('xxx'))).toEqual([]);
});

(process.platform === 'win32' ? test.skip : test)(
    'an output that is a link to nothing is refused before the search',
    async () => {
        fs.symlinkSync('/nowhere/model.gguf', at('link.gguf'));
        await refused(
            /link\.gguf is a link to \/nowhere\/model\.gguf, which isn't there: .* --force$/,
            ...search(at('link.gguf'))
        );
        expect((await run(...search(at('link.gguf'), '--force', '--no-verify'))).code).toBe(0);
        expect(fs.lstatSync(at('link.gguf')).isFile()).toBe(true);
    }
);

test('an output has one run at a time', async () => {
    const output = at('locked.gguf');
    const first = start(...search(output, '--remove', '12', '--samples', '8'));
    while (!fs.existsSync(`${output}.journal`)) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const journal = fs.readFileSync(`${output}.journal`);
    for (const more of [[], ['--no-resume'], ['--resume']]) {
        await refused(
            /^blockpruner: another process is working for the output \S*locked\.gguf: /,
            ...search(output, ...more)
        );
    }
    await refused(
        /another process is working for/,
        'apply',
        tiny,
        '-o',
        output,
        '--order',
        orderFile(),
        '--remove',
        '1'
    );
    expect(fs.readFileSync(`${output}.journal`).subarray(0, journal.length).equals(journal)).toBe(true);
    first.kill();
    await first.ended;
    // the dead process has no lock any more
    expect((await run(...search(output, '--no-resume', '--no-verify'))).code).toBe(0);
    expect(fs.readdirSync(folder).filter((name) => name.startsWith('locked'))).toEqual(['locked.gguf']);
});

test('a file that is none of ours stays where a lock would be', async () => {
    fs.writeFileSync(at('theirs.gguf.lock'), 'theirs');
    await refused(
        /theirs\.gguf\.lock is a file of something else: choose another output$/,
        ...search(at('theirs.gguf'))
    );
    expect(fs.readFileSync(at('theirs.gguf.lock'), 'utf8')).toBe('theirs');
});

test('a folder of results has one comparison at a time', async () => {
    const output = at('compared');
    const compare = ['compare', tiny, '-o', output, '--ratios', '0.1', '--methods', 'sleb', '--quantize', 'none'];
    const first = start(...compare, '--no-answers', ...short);
    while (!fs.existsSync(path.join(output, 'results.json'))) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await refused(/another process is working for/, ...compare, '--no-answers', ...short, '--resume');
    first.kill();
    await first.ended;
});

test('what a run that was killed while it wrote has left goes with the next one', async () => {
    const own = fs.mkdtempSync(path.join(folder, 'draft-'));
    const output = path.join(own, 'x.gguf');
    const apply = ['apply', tiny, '-o', output, '--order', orderFile(), '--remove', '1', ...shortPrune];
    const { ended, kill } = start(...apply);
    while (!hasDraft(own)) {
        await new Promise((resolve) => setTimeout(resolve, 1));
    }
    kill();
    await ended;
    expect(fs.existsSync(output)).toBe(false);
    expect(hasDraft(own)).toBe(true);
    const living = path.join(own, path.basename(partialIn(own, '.gguf'))); // this process's
    fs.writeFileSync(living, '');
    expect((await run(...apply)).code).toBe(0);
    expect(fs.readdirSync(own).sort()).toEqual([path.basename(living), 'x.gguf']);
});

function orderFile(): string {
    fs.writeFileSync(at('order.json'), JSON.stringify({ 1: [['mha', 5]] }));
    return at('order.json');
}

// a small file system of its own, for which one must be root
const disk = at('disk');
fs.mkdirSync(disk);
const mounted = 16 * 2 ** 20;
const mount = () => spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${mounted}`, 'none', disk]).status === 0;
const umount = () => execFileSync('umount', [disk]);
const canMount = process.platform === 'linux' && mount() && umount() !== undefined;
(canMount ? describe : describe.skip)('a disk', () => {
    beforeAll(mount);
    afterAll(umount);
    const fill = (bytes: number) => fs.writeFileSync(path.join(disk, 'fill'), Buffer.alloc(bytes));
    /** What else writes there may take some of the room meanwhile. */
    const fillUp = () => {
        const fd = fs.openSync(path.join(disk, 'fill'), 'w');
        try {
            for (const bytes of [2 ** 20, 4096]) {
                try {
                    while (fs.writeSync(fd, Buffer.alloc(bytes)) > 0);
                } catch (error) {
                    expect((error as NodeJS.ErrnoException).code).toBe('ENOSPC');
                }
            }
        } finally {
            fs.closeSync(fd);
        }
    };
    const left = () => fs.readdirSync(disk).filter((name) => name !== 'fill');

    test('without room for the smallest result is refused before the search', async () => {
        fill(mounted - 8192);
        const output = path.join(disk, 'x.gguf');
        await refused(
            /^blockpruner: there is no room for \S+: about 8 MiB are needed and 0 MiB free in/,
            ...search(output)
        );
        expect(left()).toEqual([]);
    });

    test.each([0.01, 0.5, 0.99])('that is full when %d of a file is written', async (share) => {
        const size = fs.statSync(tiny).size;
        fill(Math.ceil(mounted - share * size));
        const output = path.join(disk, 'x.gguf');
        const { tensors } = await readGguf(tiny);
        const copies = tensors.map(({ name }) => ({ name, from: [{ file: 0, name }] }));
        await expect(writeGguf({ output, sources: [tiny], tensors: copies })).rejects.toThrow(
            `can't write ${output}: No space left on device`
        );
        expect(fs.statSync(output).size).toBeLessThan(size);
        fs.rmSync(output);
    });

    test('that fills up while an output is written leaves nothing of it', async () => {
        const output = path.join(disk, 'x.gguf');
        const apply = ['apply', tiny, '-o', output, '--order', orderFile(), '--remove', '1', ...shortPrune];
        for (let wasHeld = false; !wasHeld; fs.rmSync(output, { force: true })) {
            fs.rmSync(path.join(disk, 'fill'), { force: true });
            const { ended, pause, goOn } = start(...apply);
            while (!hasDraft(disk)) {
                await new Promise((resolve) => setImmediate(resolve));
            }
            pause();
            fillUp();
            const [draft] = fs.readdirSync(disk).filter((name) => name.endsWith('.gguf'));
            wasHeld = fs.statSync(path.join(disk, draft!)).size < 0.9 * fs.statSync(tiny).size; // else it was too fast
            goOn();
            const { code, stderr } = await ended;
            if (wasHeld) {
                const last = stderr.trimEnd().split('\n').at(-1);
                expect(last).toMatch(/^blockpruner: can't write \S+partial\S+: No space left/);
                expect([code, left()]).toEqual([1, []]);
            }
        }
    });

    test('that is full when the search begins leaves no journal', () => {
        fill(mounted);
        const file = path.join(disk, 'x.gguf.journal');
        const evaluator = { sequences: 1, devices: 1, evaluate: () => Promise.resolve([]), remove: () => undefined };
        expect(() => Journal.open(evaluator, file, { model: 'x' }, false)).toThrow(
            new RegExp(`^can't write the journal ${file}: .*ENOSPC: no space left on device`)
        );
        expect(left()).toEqual([]);
    });

    test('that is full is said of temporary files too', async () => {
        fill(mounted);
        process.env.TMPDIR = disk;
        await refused(
            /^blockpruner: can't write temporary files in \S+: .*[Nn]o space left.*; set TMPDIR/,
            ...search(at('y.gguf'))
        );
    });
});

test('options and names come in the forms that people type', async () => {
    const joined = at('joined.gguf');
    const [command, model, , ...others] = search(joined, '--no-verify');
    expect((await run(command!, model!, `-o${joined}`, ...others.slice(1))).code).toBe(0);
    expect(fs.existsSync(joined)).toBe(true);
    const before = process.cwd();
    process.chdir(folder);
    fs.copyFileSync(tiny, at('-x.gguf'));
    const { stdout } = await run('inspect', '--', '-x.gguf').finally(() => process.chdir(before));
    expect(stdout).toMatch(/^architecture {2}llama\n/);
});

test('weights that are not finite are named', async () => {
    const { tensors } = await readGguf(tiny);
    const broken = 'blk.5.ffn_down.weight';
    const { shape } = tensors.find(({ name }) => name === broken)!;
    const model = at('nan.gguf');
    await writeGguf({
        output: model,
        sources: [tiny],
        tensors: tensors.map(({ name }) =>
            name === broken ? { name, type: 'f32', shape } : { name, from: [{ file: 0, name }] }
        )
    });
    const bytes = fs.readFileSync(model);
    bytes.writeFloatLE(NaN, bytes.length - readBytes(model).data.length + offsetOf(model, broken));
    fs.writeFileSync(model, bytes);
    await refused(
        /nan\.gguf: tensor blk\.5\.ffn_down\.weight has values that are not finite$/,
        'prune',
        model,
        '-o',
        at('z.gguf'),
        ...shortSearch
    );
});

/** Where a tensor's values begin, behind the header. */
function offsetOf(model: string, tensor: string): number {
    const { valuesOf } = readBytes(model);
    const names = Object.keys(valuesOf);
    return names.slice(0, names.indexOf(tensor)).reduce((sum, name) => sum + valuesOf[name]!.length, 0);
}

test('a model that is larger than the memory is refused before it is loaded', async () => {
    // a file that takes no room on the disk
    const model = at('large-ffn.gguf');
    const ffn = 2 ** 24;
    const { tensors } = await readGguf(tiny);
    await writeGguf({
        output: model,
        sources: [tiny],
        set: [{ key: 'llama.feed_forward_length', type: 'u32', value: ffn }],
        tensors: tensors.map(({ name, type, shape }) => {
            const [row, rows] = shape as [number, number];
            return /ffn_(gate|up)/.test(name)
                ? { name, type: 'f32', shape: [row, ffn] }
                : /ffn_down/.test(name)
                  ? { name, type: 'f32', shape: [ffn, rows] }
                  : { name, type, shape };
        }),
        headerOnly: true
    });
    const says = (where: string) =>
        new RegExp(`large-ffn.gguf needs \\d+\\.\\d\\d GiB of memory for its weights alone, and ${where}`);
    await refused(says('this computer has \\d+\\.\\d\\d GiB$'), 'prune', model, '-o', at('z.gguf'), ...shortSearch);
    if (process.platform === 'linux' && backendFolders.cpu !== '') {
        Object.assign(process.env, fakeGpu());
        const onGpu = shortSearch.map((argument) => (argument === 'cpu' ? 'cuda' : argument));
        await refused(
            says('the GPU has 2.00 GiB: --gpu-layers \\d+ puts so many layers there, --device cpu none$'),
            ...['prune', model, '-o', at('z.gguf'), ...onGpu, '--gpu-layers', '12']
        );
        // where nothing is said, what has no room on the GPU is left to this computer
        await refused(says('this computer has \\d+\\.\\d\\d GiB$'), 'prune', model, '-o', at('z.gguf'), ...onGpu);
        // repacked weights are for CPUs
        const searched = ['--search-type', 'Q8_0'];
        await refused(/the model is in Q8_0 already/, 'prune', tiny, '-o', at('z.gguf'), ...onGpu, ...searched);
    }
});

(process.platform === 'linux' ? test : test.skip)('a model that is cut off while it is used', async () => {
    const model = at('cut.gguf');
    fs.copyFileSync(tiny, model);
    const output = at('of-cut.gguf');
    const { ended } = start(
        'prune',
        model,
        '-o',
        output,
        '--remove',
        '4',
        '--samples',
        '4',
        '--context',
        '64',
        '--repair',
        'none',
        ...onCpu
    );
    while (!fs.existsSync(`${output}.journal`)) {
        await new Promise((resolve) => setTimeout(resolve, 5));
    }
    fs.truncateSync(model, 100_000);
    const { code, signal, stderr } = await ended;
    expect({ code, signal }).toEqual({ code: null, signal: 'SIGBUS' });
    expect(stderr.trimEnd().split('\n').at(-1)).toBe(
        "the model's file became shorter while it was used, or its disk failed"
    );
    expect(
        fs
            .readdirSync(folder)
            .filter((name) => name.startsWith('of-cut'))
            .sort()
    ).toEqual(['of-cut.gguf.journal', 'of-cut.gguf.lock']);
});

test('a model without a vocabulary is refused', async () => {
    const model = await withMetadata(tiny, at('no-vocabulary.gguf'), [
        { key: 'tokenizer.ggml.model', type: 'string', value: 'no_vocab' }
    ]);
    await refused(
        /no-vocabulary\.gguf has no vocabulary, so no text can be read/,
        'prune',
        model,
        '-o',
        at('z.gguf'),
        ...shortSearch
    );
});

test('a recurrent state that would take all memory is refused before it is made', async () => {
    const model = await withMetadata(fixture('qwen35-dense', at('qwen35.gguf')), at('large.gguf'), [
        { key: 'qwen35.ssm.inner_size', type: 'u32', value: 2 ** 29 }
    ]);
    await refused(/its recurrent state would take \d+ MiB: its ssm keys are damaged$/, 'inspect', model);
});

test('a diffusion model is called one', async () => {
    const model = fixture('dream-dense', at('dream.gguf'));
    await refused(/is a diffusion model \(architecture dream\)/, 'prune', model, '-o', at('z.gguf'), ...shortSearch);
});

test('sequences longer than those of the training are remarked on', async () => {
    const model = await withMetadata(tiny, at('short.gguf'), [{ key: 'llama.context_length', type: 'u32', value: 16 }]);
    const { code, stderr } = await run('prune', model, '-o', at('s.gguf'), ...shortSearch, '--no-verify');
    expect(code).toBe(0);
    expect(stderr).toMatch(
        /^sequences of 32 tokens are longer than the 16 that the model was trained for: --context takes fewer$/m
    );
});

test('a file that was pruned twice tells of both times', async () => {
    const named = await withMetadata(tiny, at('named.gguf'), [
        { key: 'general.size_label', type: 'string', value: '7.6M' }
    ]);
    const once = at('once.gguf'),
        twice = at('twice.gguf');
    const first = await runJson<{ removed: { layer: number }[] }>(
        'prune',
        named,
        '-o',
        once,
        ...shortSearch,
        '--no-verify'
    );
    const second = await runJson<typeof first>('prune', once, '-o', twice, ...shortSearch, '--no-verify');
    const name = ({ removed }: typeof first) => `attn.${removed[0]!.layer}`;
    const strings = (file: string, key: string) => readBytes(file).metadata.get(key)!.toString('latin1');
    expect(strings(once, 'blockpruner.removed')).toContain(name(first));
    expect(strings(twice, 'blockpruner.removed')).toContain(name(second));
    expect(strings(twice, 'blockpruner.previous.removed')).toContain(name(first));
    expect(strings(twice, 'blockpruner.previous.source.name')).toContain('named.gguf');
    expect(strings(twice, 'blockpruner.source.name')).toContain('once.gguf');
    const { history } = await runJson<Inspection>('inspect', twice);
    expect(history.map(({ source, removed }) => [source.name, removed])).toEqual([
        ['once.gguf', [name(second)]],
        ['named.gguf', [name(first)]]
    ]);
    const { stdout } = await run('inspect', twice);
    expect(stdout).toMatch(
        /^pruned {8}from once\.gguf: without attn\.\d+; perplexity .*\npruned {8}from named\.gguf: /m
    );
    expect((await readGguf(once)).metadata['general.size_label']).toBe('7.4M');
    expect((await readGguf(twice)).metadata['general.size_label']).toBe('7.2M');
});
