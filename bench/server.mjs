// A pruned model in llama-server, with what belongs to the model as it was: as a draft, with a LoRA adapter, with an
// image projector. `npm run bench:server -- --help`. The server is llama.cpp's own, built from the bundled source.
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import blockpruner from '../dist/index.js';
import gguf from '../dist/runtime/gguf.js';
import { describe, options, orderOptions, setting, write } from './shared.mjs';

const { adapt, apply, readGguf, readOrder } = blockpruner;
const { writeGguf } = gguf;

const argv = await yargs(hideBin(process.argv))
    .scriptName('npm run bench:server --')
    .usage('$0 [options]\n\nRuns a pruned model in llama-server and writes bench/results/NAME.md and .json')
    .options({
        ...options,
        name: { type: 'string', default: 'server-embedded', describe: 'Name of the results' },
        server: { type: 'string', demandOption: true, describe: 'llama-server' },
        ...orderOptions,
        tokens: { type: 'number', default: 64, describe: 'Tokens of an answer' },
        port: { type: 'number', default: 8090, describe: 'Port of the server' }
    })
    .strict()
    .wrap(120)
    .parseAsync();

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-server-'));
const at = (name) => path.join(folder, name);
const questions = [
    'What is the capital of France?',
    'Write a short story about a lighthouse.',
    'Explain why the sky is blue.',
    'List the days of the week.'
];
/** A picture of 2 × 2 pixels. */
const picture =
    'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxMDAwMDAAAANHQEDasKb6QAAAABJRU5ErkJggg==';

/** Runs a server for as long as the work takes. */
async function withServer(args, work) {
    const common = ['--port', argv.port, '--threads', argv.threads, '--ctx-size', 2048, '--parallel', 1, '--no-warmup'];
    const child = spawn(argv.server, [...args, ...common, '--no-webui'].map(String), { stdio: 'ignore' });
    const ended = new Promise((resolve) => child.on('close', resolve));
    try {
        for (;;) {
            const response = await fetch(`http://127.0.0.1:${argv.port}/health`).catch(() => undefined);
            if (response?.ok) {
                break;
            }
            if (child.exitCode !== null) {
                throw new Error(`llama-server ended with ${child.exitCode}: ${args.join(' ')}`);
            }
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
        return await work();
    } finally {
        child.kill('SIGKILL');
        await ended;
    }
}

/** The likeliest answer, and the server's timings. */
async function ask(content) {
    const response = await fetch(`http://127.0.0.1:${argv.port}/v1/chat/completions`, {
        method: 'POST',
        body: JSON.stringify({
            messages: [{ role: 'user', content }],
            temperature: 0,
            max_tokens: argv.tokens,
            cache_prompt: false
        })
    });
    const answer = await response.json();
    if (!response.ok) {
        throw new Error(JSON.stringify(answer));
    }
    return { text: answer.choices[0].message.content, ...answer.timings };
}

async function answers(args) {
    return withServer(args, async () => {
        const all = [];
        for (const question of questions) {
            all.push(await ask(question));
        }
        return all;
    });
}

const sum = (all, key) => all.reduce((total, one) => total + (one[key] ?? 0), 0);
const speed = (all) => (1000 * sum(all, 'predicted_n')) / sum(all, 'predicted_ms');
const equal = (a, b) => a.filter(({ text }, i) => text === b[i].text).length;

/** The model with the output projections of blocks zeroed: what pruned files must do too. */
async function withZeroed(model, removed, output) {
    const { tensors } = await readGguf(model);
    const zeroed = removed.map(
        ({ kind, layer }) => `blk.${layer}.${kind === 'attn' ? 'attn_output' : 'ffn_down'}.weight`
    );
    const written = tensors.map(({ name, type, shape }) =>
        zeroed.includes(name) ? { name, type, shape } : { name, from: [{ file: 0, name }] }
    );
    await writeGguf(output, { sources: [model], set: [], tensors: written }, {});
}

/** A LoRA adapter of rank 4 for all matrices of the layers, with numbers that look random; none for some tensors. */
async function writeLora(model, without, output) {
    const { tensors, metadata } = await readGguf(model);
    let state = 1;
    const numbers = (count, scale) =>
        Float32Array.from({ length: count }, () => {
            state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
            return scale * (state / 2 ** 31 - 1);
        });
    const all = tensors
        .filter(({ name, shape }) => name.startsWith('blk.') && shape.length === 2)
        .flatMap(({ name, shape: [columns, rows] }) => [
            { name: `${name}.lora_a`, type: 'f32', shape: [columns, 4], data: numbers(4 * columns, 0.02) },
            { name: `${name}.lora_b`, type: 'f32', shape: [4, rows], data: numbers(4 * rows, 0.02) }
        ]);
    const set = [
        { key: 'general.type', type: 'string', value: 'adapter' },
        { key: 'general.architecture', type: 'string', value: metadata['general.architecture'] },
        { key: 'adapter.type', type: 'string', value: 'lora' },
        { key: 'adapter.lora.alpha', type: 'f32', value: 4 }
    ];
    const written = all.filter(({ name }) => !without.some((prefix) => name.startsWith(prefix)));
    await writeGguf(output, { sources: [], set, tensors: written }, { force: true });
}

try {
    const order = await readOrder(argv.order, argv.remove);
    const pruning = {
        device: argv.device,
        threads: argv.threads,
        calibration: { file: 'embedded', context: 256 },
        order
    };
    const [repaired, plain, zeroed] = [at('repaired.gguf'), at('plain.gguf'), at('zeroed.gguf')];
    const { parameters, repair } = await apply(argv.model, { ...pruning, output: repaired });
    await apply(argv.model, { ...pruning, output: plain, repair: 'none' });
    await withZeroed(argv.model, order, zeroed);

    const alone = await answers(['-m', argv.model]);
    const drafted = await answers(['-m', argv.model, '--model-draft', repaired, '--spec-type', 'draft-simple']);
    const draft = {
        equal: equal(alone, drafted),
        acceptance: sum(drafted, 'draft_n_accepted') / sum(drafted, 'draft_n'),
        speedUp: speed(drafted) / speed(alone)
    };

    const [lora, some, adapted] = [at('lora.gguf'), at('some.gguf'), at('adapted.gguf')];
    await writeLora(argv.model, [], lora);
    const { gone } = await adapt(lora, { to: plain, output: adapted });
    await writeLora(
        argv.model,
        gone.map((name) => name.replace(/lora_[ab]$/, '')),
        some
    );
    const withLora = await answers(['-m', zeroed, '--lora', some]);
    const likewise = await answers(['-m', plain, '--lora', adapted]);
    const without = await answers(['-m', plain]);
    const adapter = { equal: equal(withLora, likewise), equalWithout: equal(withLora, without) };

    const { tensors } = await readGguf(argv.model);
    const projector = at('mmproj.gguf');
    const [embedding] = tensors.find(({ name }) => name === 'token_embd.weight').shape;
    execFileSync('python3', [path.join(import.meta.dirname, 'random_projector.py'), projector, String(embedding)]);
    const see = (model) =>
        withServer(['-m', model, '--mmproj', projector], async () => {
            const image = { type: 'image_url', image_url: { url: picture } };
            return [await ask([{ type: 'text', text: questions[1] }, image]), await ask(questions[1])];
        });
    const [[seen, unseen], [seenLikewise]] = [await see(zeroed), await see(plain)];
    const projected = { equal: seen.text === seenLikewise.text, equalWithout: seen.text === unseen.text };

    const report = { ...setting(argv), questions: questions.length, parameters, repair, draft, adapter, projected };
    const lines = [
        `${report.model}, ${order.length} blocks removed; ${questions.length} questions, ${argv.tokens} tokens, greedy.`,
        '',
        `- As the draft of the model as it is (${repair.kind} repair): ${draft.equal} answers of ${questions.length} are the same, ` +
            `${(100 * draft.acceptance).toFixed(1)} % of the drafted tokens were accepted, ${draft.speedUp.toFixed(2)} times the speed.`,
        `- With an adapted LoRA adapter: ${adapter.equal} answers are those of the model with zeroed projections and the adapter ` +
            `as it was; without the adapter, ${adapter.equalWithout}.`,
        `- With an image projector, an answer ${projected.equal ? 'is' : 'is not'} that of the model with zeroed projections; ` +
            `without the picture, it is ${projected.equalWithout ? 'too' : 'another'}.`,
        '',
        describe(report.machine),
        ''
    ];
    console.log(write(argv.name, report, lines.join('\n')));
} finally {
    fs.rmSync(folder, { recursive: true, force: true });
}
