// What the benchmarks share: the model and the machine that they run on, and where their results go.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');

export const options = {
    model: {
        type: 'string',
        default: path.join(root, 'models', 'blockpruner-tiny.gguf'),
        defaultDescription: 'the embedded model',
        describe: 'GGUF file'
    },
    device: { type: 'string', default: 'cpu', describe: 'Where to compute' },
    threads: { type: 'number', default: os.availableParallelism(), describe: 'CPU threads' }
};

/** What a benchmark of a pruned model begins with. */
export const orderOptions = {
    order: { type: 'string', demandOption: true, describe: 'An order of removal' },
    remove: { type: 'number', default: 4, describe: 'Blocks of it' }
};

/** What figures depend on, beside what was measured. */
export function setting({ model, device, threads }) {
    const { version, dependencies } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
    return {
        model: path.basename(model),
        modelBytes: fs.statSync(model).size,
        machine: {
            cpu: os.cpus()[0].model.trim(),
            threads,
            memory: os.totalmem(),
            device,
            system: `${os.type()} ${os.arch()}`,
            node: process.version,
            blockpruner: version,
            nodeLlamaCpp: dependencies['node-llama-cpp']
        },
        date: new Date().toISOString().slice(0, 10)
    };
}

/**
 * What a pass over sequences takes in PyTorch, for a Llama of the model's shape, as the paper's code makes it: the
 * output of peer.py.
 */
export function peerPass(python, { metadata }, { tokens, length }, { device, threads }) {
    const value = (key) => metadata[`${metadata['general.architecture']}.${key}`];
    const shape = {
        hidden_size: value('embedding_length'),
        intermediate_size: value('feed_forward_length'),
        num_hidden_layers: value('block_count'),
        num_attention_heads: value('attention.head_count'),
        num_key_value_heads: value('attention.head_count_kv') ?? value('attention.head_count'),
        vocab_size: value('vocab_size')
    };
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'blockpruner-peer-'));
    try {
        const file = path.join(folder, 'tokens.bin');
        fs.writeFileSync(file, tokens);
        const peer = path.join(import.meta.dirname, 'peer.py');
        const where = ['--device', device, ...(threads === undefined ? [] : ['--threads', String(threads)])];
        const { stdout } = spawnSync(python, [peer, JSON.stringify(shape), file, String(length), ...where], {
            stdio: ['ignore', 'pipe', 'inherit']
        });
        return JSON.parse(String(stdout));
    } finally {
        fs.rmSync(folder, { recursive: true });
    }
}

export function gib(bytes) {
    return (bytes / 2 ** 30).toFixed(2);
}

/** A line about the machine. */
export function describe({ cpu, threads, memory, device, system, node, blockpruner, nodeLlamaCpp }) {
    const hardware = [cpu, threads === 1 ? '1 thread' : `${threads} threads`, `${gib(memory)} GiB`, device, system];
    const software = [`Node.js ${node}`, `blockpruner ${blockpruner}`, `node-llama-cpp ${nodeLlamaCpp}`];
    return `${[...hardware, ...software].join(', ')}.`;
}

/** Writes bench/results/NAME.json and .md; returns what the latter says. */
export function write(name, report, markdown) {
    const file = path.join(root, 'bench', 'results', name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(`${file}.json`, JSON.stringify(report, null, 1) + '\n');
    fs.writeFileSync(`${file}.md`, markdown);
    return markdown;
}
