// Whatever a user gets wrong is answered with one line that names it, before any file is written.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import type { GgufTensor, GgufValue } from '../../lib/runtime/addon.js';
import { readGguf } from '../../lib/index.js';
import { fixture, randomNumbers, temporaryFolder, tiny, writeGguf } from '../models';
import { expectRefused, onCpu, shortPrune, shortSearch } from './run';

const inputs = temporaryFolder();
const outputs = temporaryFolder();
const input = (name: string) => path.join(inputs, name);
const output = path.join(outputs, 'new.gguf');
const license = path.resolve(__dirname, '../../LICENSE');

// A file that is left would make the next test fail too.
afterEach(() => fs.readdirSync(outputs).forEach((name) => fs.rmSync(path.join(outputs, name))));

function write(name: string, content: string | Buffer): string {
    fs.writeFileSync(input(name), content);
    return input(name);
}

const prune = (model: string, ...options: string[]) => [
    'prune',
    model,
    '-o',
    output,
    '--order',
    path.join(outputs, 'order.json'),
    ...options
];

/** Refused by the search and by the commands that only read. */
async function expectModelRefused(model: string, says: string | RegExp = path.basename(model)): Promise<void> {
    await expectRefused(outputs, prune(model, ...shortSearch), says);
    await expectRefused(outputs, ['inspect', model, '--json'], says);
}

/** The start of a GGUF file, by hand. */
function header(tensors: bigint, keys: bigint, ...rest: (bigint | number | string)[]): Buffer {
    const number = (value: bigint | number) => {
        const bytes = Buffer.alloc(typeof value === 'bigint' ? 8 : 4);
        return typeof value === 'bigint' ? (bytes.writeBigUInt64LE(value), bytes) : (bytes.writeUInt32LE(value), bytes);
    };
    return Buffer.concat(
        ['GGUF', 3, tensors, keys, ...rest].map((part) => (typeof part === 'string' ? Buffer.from(part) : number(part)))
    );
}

const whole = fs.readFileSync(tiny);
const random = randomNumbers(5);
const garbage = Buffer.from(Array.from({ length: 4000 }, () => Math.floor(128 * (random() + 1))));
const [stringType, arrayType, u8Type, f32Tensor] = [8, 9, 0, 0];

test.each<[string, string | Buffer | undefined]>([
    ['missing', undefined],
    ['empty', ''],
    ['a text', 'Call me Ishmael.\n'],
    ['GG', 'GG'],
    ['only the magic', 'GGUF'],
    ['cut in the version', whole.subarray(0, 6)],
    ['cut in the counts', whole.subarray(0, 20)],
    ['cut after 100 bytes', whole.subarray(0, 100)],
    ['cut after 5000 bytes', whole.subarray(0, 5000)],
    ['half', whole.subarray(0, whole.length / 2)],
    ['one byte short', whole.subarray(0, -1)],
    ['random after the magic', Buffer.concat([Buffer.from('GGUF'), garbage])],
    ['random after the version', Buffer.concat([whole.subarray(0, 8), garbage])],
    ['random after the counts', Buffer.concat([whole.subarray(0, 24), garbage])],
    ['of version 0', Buffer.concat([Buffer.from('GGUF\0\0\0\0'), whole.subarray(8)])],
    ['with 2^60 tensors', header(2n ** 60n, 0n)],
    ['with 2^63 tensors', header(2n ** 63n, 0n)],
    ['with 2^32 tensors', header(2n ** 32n, 0n)],
    ['with 2^60 keys', header(0n, 2n ** 60n)],
    ['with a key of 2^60 bytes', header(0n, 1n, 2n ** 60n, 'key')],
    ['with a text of 2^62 bytes', header(0n, 1n, 3n, 'key', stringType, 2n ** 62n, 'text')],
    ['with a list of 2^60 numbers', header(0n, 1n, 3n, 'key', arrayType, u8Type, 2n ** 60n, 'abc')],
    ['with a list of 2^40 texts', header(0n, 1n, 3n, 'key', arrayType, stringType, 2n ** 40n, 'abc')],
    ['with a type that there is not', header(0n, 1n, 3n, 'key', 99, 1n)],
    [
        'with a tensor of 2^62 values',
        header(1n, 0n, 1n, 't', 1, 2n ** 62n, f32Tensor, 0n, 'padding padding padding padding padding')
    ],
    [
        'with a tensor of 2^31 × 2^31 × 2^31 values',
        header(1n, 0n, 1n, 't', 3, 2n ** 31n, 2n ** 31n, 2n ** 31n, f32Tensor, 0n, 'padding')
    ],
    ['with a tensor of nine dimensions', header(1n, 0n, 1n, 't', 9, 1n, 1n, 1n, 1n, 1n, 1n, 1n, 1n, 1n, f32Tensor, 0n)]
])('a model that is %s', async (name, content) => {
    const model = input(`${name.replace(/\W+/g, '-')}.gguf`);
    if (content !== undefined) {
        fs.writeFileSync(model, content);
    }
    await expectModelRefused(model);
});

test('a model with no keys and no tensors', async () => {
    const model = write('nothing.gguf', header(0n, 0n));
    await expectRefused(outputs, prune(model, ...shortSearch), model);
    await expectRefused(outputs, ['inspect', model], model);
});

test('a folder as model', () => expectModelRefused(inputs, 'it is not a file'));

test('a vocabulary without weights', async () => {
    await writeGguf({ output: input('vocabulary.gguf'), sources: [tiny], tensors: [] });
    await expectModelRefused(input('vocabulary.gguf'), 'vocabulary');
});

test('an encoder', async () => {
    const model = input('encoder.gguf');
    const width = 32;
    const tokens = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        ...Array.from('abcdefghij', (letter) => `▁${letter}`)
    ];
    const u32 = (key: string, value: number): GgufValue => ({ key, type: 'u32', value });
    const tensor = (name: string, ...shape: number[]): GgufTensor => ({ name, type: 'f32', shape });
    const layer = {
        'attn_q.weight': [width, width],
        'attn_k.weight': [width, width],
        'attn_v.weight': [width, width],
        'attn_output.weight': [width, width],
        'attn_output_norm.weight': [width],
        'attn_output_norm.bias': [width],
        'ffn_up.weight': [width, width],
        'ffn_down.weight': [width, width],
        'layer_output_norm.weight': [width],
        'layer_output_norm.bias': [width]
    };
    await writeGguf({
        output: model,
        sources: [],
        set: [
            { key: 'general.architecture', type: 'string', value: 'bert' },
            u32('bert.block_count', 1),
            u32('bert.context_length', 64),
            u32('bert.embedding_length', width),
            u32('bert.feed_forward_length', width),
            u32('bert.attention.head_count', 2),
            u32('bert.pooling_type', 1),
            { key: 'bert.attention.layer_norm_epsilon', type: 'f32', value: 1e-12 },
            { key: 'bert.attention.causal', type: 'bool', value: false },
            { key: 'tokenizer.ggml.model', type: 'string', value: 'bert' },
            { key: 'tokenizer.ggml.tokens', type: 'string[]', value: tokens },
            u32('tokenizer.ggml.token_type_count', 2),
            u32('tokenizer.ggml.unknown_token_id', 1),
            u32('tokenizer.ggml.padding_token_id', 0),
            u32('tokenizer.ggml.bos_token_id', 2),
            u32('tokenizer.ggml.eos_token_id', 3),
            u32('tokenizer.ggml.seperator_token_id', 3)
        ],
        tensors: [
            tensor('token_embd.weight', width, tokens.length),
            tensor('token_types.weight', width, 2),
            tensor('position_embd.weight', width, 64),
            tensor('token_embd_norm.weight', width),
            tensor('token_embd_norm.bias', width),
            ...Object.entries(layer).map(([name, shape]) => tensor(`blk.0.${name}`, ...shape))
        ]
    });
    await expectRefused(outputs, prune(model, ...shortSearch), 'is an encoder (architecture bert)');
    await expectRefused(outputs, ['inspect', model], 'is an encoder (architecture bert)');
    await expectRefused(
        outputs,
        [
            'perplexity',
            model,
            '--text',
            write('ten.txt', 'a b c d e f g h i j '.repeat(20)),
            '--context',
            '32',
            ...onCpu
        ],
        'is an encoder (architecture bert)'
    );
});

test.each<[string[], string]>([
    [
        [],
        'say which blocks to remove: either by their names, --blocks attn.6,ffn.16, or by --order FILE and --remove N'
    ],
    [['--blocks', ','], 'say which blocks to remove'],
    [['--blocks', 'attn.5', '--remove', '1'], 'say which blocks to remove'],
    [['--order', 'order.json'], 'say which blocks to remove'],
    [['--blocks', 'atn.5'], "'atn.5' is no block: write attn.LAYER, ffn.LAYER or linear.LAYER, such as attn.12"],
    [['--blocks', 'attn.5,mha.5'], 'the block attn.5 is to be removed twice'],
    [['--blocks', 'attn.12'], 'it has no block attn.12, its layers are 0 to 11']
])('apply with %j', async (blocks, says) => {
    await expectRefused(outputs, ['apply', tiny, '-o', path.join(outputs, 'new.gguf'), ...blocks, ...shortPrune], says);
});

test.each<[string[], string | RegExp]>([
    [['--type', 'Q9_9'], /--help tells more/],
    [['--tensor-type', 'attn_v=q8_0'], '--tensor-type is for a model that is quantized: give --type too'],
    [
        ['--type', 'Q4_0', '--tensor-type', 'attn_v'],
        "--tensor-type must be NAME=TYPE, such as attn_v=q8_0, not 'attn_v'"
    ],
    [['--type', 'Q4_0', '--tensor-type', 'attn_v=q9'], /--tensor-type must be one of f32, f16, .*, not 'q9'/],
    [['--type', 'Q4_0', '--tensor-type', '(v=q8_0'], /--tensor-type must be a regular expression, = and a type/],
    [['--type', 'Q4_0', '--tensor-type', '(?<=a)v=q8_0'], /--tensor-type must be a regular expression, = and a type/],
    [['--type', 'Q4_0', '--tensor-type', 'token_embd=iq2_xs'], "token_embd.weight can't be iq2_xs, which takes an"],
    [['--type', 'F16', '--tensor-type', 'attn_v=q8_0'], '--tensor-type changes nothing where --type is F16'],
    [['--imatrix-out', output], /the importance matrix and the output are both \S+new.gguf: choose two names/],
    [['--imatrix-out', path.join(inputs, 'none', 'x')], /there is no such folder/]
])('quantization: %s', async (options, says) => {
    await expectRefused(outputs, ['apply', tiny, '-o', output, '--blocks', 'attn.3', ...shortPrune, ...options], says);
});

test('an architecture that no host has', async () => {
    // the residual stream's scale depends on the number of layers
    const model = fixture('minicpm3-dense', input('minicpm3.gguf'));
    await expectRefused(
        outputs,
        prune(model, ...shortSearch),
        /'minicpm3'\) can be evaluated, but can't be written without blocks: .*with another number of them\n$/
    );
});

test('an architecture whose residual stream has several lanes', async () => {
    const model = fixture('deepseek4-moe', input('deepseek4.gguf'));
    await expectRefused(outputs, ['inspect', model], /residual stream of this model can't be followed: .*layer/);
});

test('a model that fills in text from both sides', async () => {
    const model = fixture('llada-dense', input('llada.gguf'));
    await expectRefused(outputs, prune(model, ...shortSearch), 'not a causal language model');
});

describe('a model whose metadata has', () => {
    const u32 = (key: string, value: number): GgufValue => ({ key, type: 'u32', value });
    test.each<[string, GgufValue[]]>([
        ['no heads', [u32('llama.attention.head_count', 0)]],
        ['too many heads', [u32('llama.attention.head_count', 4096)]],
        ['no KV heads', [u32('llama.attention.head_count_kv', 0)]],
        ['KV heads that do not divide the heads', [u32('llama.attention.head_count_kv', 3)]],
        ['heads without size', [u32('llama.attention.key_length', 0)]],
        ['heads of another size', [u32('llama.attention.key_length', 33)]],
        ['another embedding length', [u32('llama.embedding_length', 100)]],
        ['no embedding', [u32('llama.embedding_length', 0)]],
        ['another FFN length', [u32('llama.feed_forward_length', 7)]],
        ['more layers than tensors', [u32('llama.block_count', 13)]],
        ['layers beyond count', [u32('llama.block_count', 2 ** 32 - 1)]],
        ['no layers', [u32('llama.block_count', 0)]],
        ['a text as number of layers', [{ key: 'llama.block_count', type: 'string', value: 'twelve' }]],
        ['heads of too few layers', [{ key: 'llama.attention.head_count', type: 'u32[]', value: [8, 8] }]],
        ['an odd number of rotated values', [u32('llama.rope.dimension_count', 31)]],
        [
            'an architecture that llama.cpp does not know',
            [{ key: 'general.architecture', type: 'string', value: 'nonsense' }]
        ],
        ['no architecture', [{ key: 'general.architecture', type: 'string', value: '' }]],
        [
            'a tokenizer that llama.cpp does not know',
            [{ key: 'tokenizer.ggml.model', type: 'string', value: 'nonsense' }]
        ],
        ['fewer tokens', [{ key: 'tokenizer.ggml.tokens', type: 'string[]', value: ['a', 'b'] }]],
        ['an adapter as type', [{ key: 'general.type', type: 'string', value: 'adapter' }]],
        ['parts that are missing', [u32('split.count', 3)]]
    ])('%s', async (name, set) => {
        const model = input(`${name.replace(/\W+/g, '-')}.gguf`);
        const { tensors } = await readGguf(tiny);
        await writeGguf({
            output: model,
            sources: [tiny],
            set,
            tensors: tensors.map((tensor) => ({ name: tensor.name, from: [{ file: 0, name: tensor.name }] }))
        });
        const says = path.basename(model);
        await expectRefused(outputs, prune(model, ...shortSearch), says);
        await expectRefused(outputs, ['perplexity', model, '--text', license, '--context', '32', ...onCpu], says);
    });
});

describe('options:', () => {
    const some = ['--blocks', 'attn', ...shortPrune];
    test.each<[string, string[], string | RegExp]>([
        ['--remove 0', ['--remove', '0', ...some], '--remove must be a whole number of at least 1, not 0'],
        ['--remove -1', ['--remove', '-1', ...some], '--remove must be a whole number of at least 1, not -1'],
        ['--remove 1.5', ['--remove', '1.5', ...some], '--remove must be a whole number of at least 1, not 1.5'],
        ['--remove abc', ['--remove', 'abc', ...some], '--remove must be a whole number of at least 1'],
        [
            '--remove of all blocks',
            ['--remove', '24', ...shortPrune],
            "can't remove 24 blocks: at most 23 of this model's 24 blocks can go"
        ],
        [
            '--remove of more blocks than of a kind',
            ['--remove', '13', ...some],
            "can't remove 13 blocks: at most 12 of this model's 12 attn blocks can go"
        ],
        ['--ratio 0.99', ['--ratio', '0.99', ...shortPrune], "can't remove 99.0 % of the parameters"],
        ['--ratio 0', ['--ratio', '0', ...some], 'ratio must be above 0: nothing would be removed'],
        ['--ratio 1.5', ['--ratio', '1.5', ...some], /ratio .* 1\.5/],
        ['--ratio -0.5', ['--ratio', '-0.5', ...some], /ratio .* -0\.5/],
        ['--ratio abc', ['--ratio', 'abc', ...some], '--ratio must be a number from 0 to 1'],
        ['--max-increase -1', ['--max-increase', '-1', ...some], /max-?increase/i],
        ['nothing that says how much', some, 'say how much to remove: --remove N, --ratio R or --max-increase X'],
        [
            'two that say how much',
            ['--remove', '1', '--ratio', '0.1', ...some],
            'only one of --remove, --ratio and --max-increase'
        ],
        ['--blocks nonsense', ['--remove', '1', '--blocks', 'nonsense'], /blocks.*nonsense.*"all", "attn", "ffn"/],
        ['--device nonsense', ['--remove', '1', '--device', 'nonsense'], /device.*nonsense.*"auto", "cpu"/],
        ['--samples 0', ['--remove', '1', '--samples', '0'], '--samples must be a whole number of at least 1, not 0'],
        ['--context 1', ['--remove', '1', '--context', '1'], '--context must be a whole number of at least 2, not 1'],
        ['--seed -1', ['--remove', '1', '--seed', '-1'], '--seed must be a whole number of at least 0, not -1'],
        ['--threads 0', ['--remove', '1', '--threads', '0'], '--threads must be a whole number of at least 1, not 0'],
        [
            '--gpu-layers abc',
            ['--remove', '1', '--gpu-layers', 'abc'],
            '--gpu-layers must be a whole number of at least 0'
        ],
        ['an unknown one', ['--remove', '1', '--nonsense'], 'Unknown argument: nonsense'],
        [
            'an order file in no folder',
            ['--order', path.join(outputs, 'missing', 'order.json'), ...shortSearch],
            'missing'
        ],
        ['an order file that is a folder', ['--order', inputs, '--force', ...shortSearch], inputs],
        ['an empty output', ['-o', '', ...shortSearch], 'the output has no name: give a file name']
    ])('%s', (_, options, says) => expectRefused(outputs, prune(tiny, ...options), says));

    (spawnSync('nvidia-smi').status === 0 ? test.skip : test)('--device cuda where there is none', () =>
        expectRefused(
            outputs,
            prune(tiny, '--device', 'cuda', '--remove', '1'),
            "CUDA can't be used: there is no such GPU on this computer"
        )
    );

    test.each<[string, string[], string]>([
        ['no command', [], 'prune, apply, adapt, perplexity, eval, compare, inspect, devices, worker or rpc-server'],
        ['an unknown command', ['nonsense'], 'nonsense'],
        ['eval without a task', ['eval', tiny], 'nothing to score: give --task BENCHMARK=FILE or --answers'],
        ['eval of an unknown task', ['eval', tiny, '--task', `boolq=${license}`], "there is no task 'boolq'"],
        ['eval of a task without a file', ['eval', tiny, '--task', 'piqa'], "--task 'piqa': write BENCHMARK=FILE"],
        [
            'eval of fields that are missing',
            ['eval', tiny, '--task', 'multiple-choice=x.jsonl,context:a'],
            'write multiple-choice=FILE,context:FIELD'
        ],
        ['eval of no question', ['eval', tiny, '--task', `hellaswag=${license}`, '--limit', '0'], '--limit'],
        ['an unknown method', ['prune', tiny, '-o', output, '--remove', '1', '--method', 'nonsense'], 'nonsense'],
        ['a misspelt command', ['pruen', tiny], 'Did you mean prune?'],
        ['no model', ['prune', '-o', output, '--remove', '1'], 'Not enough non-option arguments'],
        ['two models', ['inspect', tiny, 'second.gguf'], 'second.gguf'],
        ['no output', ['prune', tiny, '--remove', '1'], 'Missing required argument: output'],
        ['--skip nonsense', ['perplexity', tiny, '--text', tiny, '--skip', 'nonsense'], "'nonsense' is no block"],
        [
            '--skip of a layer beyond',
            ['perplexity', tiny, '--text', license, '--context', '32', '--skip', 'attn.12', ...onCpu],
            'no block attn.12: its layers are 0 to 11'
        ],
        ['--definition nonsense', ['perplexity', tiny, '--text', tiny, '--definition', 'nonsense'], 'nonsense']
    ])('%s', (_, args, says) => expectRefused(outputs, args, says));
});

describe('calibration texts:', () => {
    test.each<[string, string | Buffer | undefined, string[], string]>([
        ['missing.txt', undefined, [], 'there is no such file'],
        ['empty.txt', '', [], 'is empty'],
        ['blank.txt', ' \n\n\t', [], 'is empty'],
        ['short.txt', 'Call me Ishmael.', [], 'too short'],
        ['latin1.txt', Buffer.from('caf\xe9 '.repeat(100), 'latin1'), [], 'not UTF-8'],
        ['line.jsonl', '{"text": "One."}\n{"text": "Two.\n', [], 'line.jsonl, line 2: not JSON'],
        [
            'field.jsonl',
            '{"text": "One."}\n',
            ['--field', 'body'],
            "field.jsonl, line 1: it has no text in field 'body'"
        ],
        ['none.jsonl', '{"body": "One."}\n', [], 'none.jsonl, line 1']
    ])('%s', async (name, content, options, says) => {
        const file = content === undefined ? input(name) : write(name, content);
        await expectRefused(outputs, prune(tiny, ...shortSearch, '--calibration', file, ...options), file);
        await expectRefused(
            outputs,
            ['perplexity', tiny, '--text', file, '--context', '32', ...options, ...onCpu],
            says
        );
    });
});

test.each([
    ['in no folder', path.join(outputs, 'missing', 'new.gguf'), path.join(outputs, 'missing')],
    ['that is a folder', inputs, inputs],
    ['below a file', path.join(tiny, 'new.gguf'), tiny],
    ...(process.platform === 'linux' ? [['in a folder that takes no files', '/proc/new.gguf', '/proc']] : [])
])('an output %s', (_, file, says) =>
    expectRefused(outputs, ['prune', tiny, '-o', file, '--force', ...shortSearch], says)
);

test.each<[string, string | undefined, string]>([
    ['missing', undefined, 'there is no such file'],
    ['no JSON', '{"1": [', "can't read the order"],
    ['a text of two lines', 'Call me\nIshmael\n', "can't read the order"],
    ['of another schema', '{"removed": ["attn.1"]}', 'is no order file'],
    ['for a bigger model', '{"1": [["mha", 12]]}', 'no block attn.12, its layers are 0 to 11'],
    ['too short', '{"2": [["mha", 1], ["mlp", 1]]}', 'has no order for 1 blocks']
])('an order that is %s', async (name, content, says) => {
    const order = content === undefined ? input('missing.json') : write(`${name}.json`, content);
    await expectRefused(outputs, ['apply', tiny, '-o', output, '--order', order, '--remove', '1', ...shortPrune], says);
});
