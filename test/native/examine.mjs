// What can be done with some of llama.cpp's tiny test models (fixtures.cpp): a message { name, folder } is answered by
// what was found, and leaves a pruned file in the folder. In a process of its own, so that a model that makes llama.cpp
// abort ends only this.
//
// The oracle: without a block, the model computes what the model does whose block has zero weights. The weights are
// random, the tokens too. The pruned file is checked in the stock runtime by architectures.test.ts.
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { chooseHost, formatMove, meanNll, Model, readGguf, without, writeDraft } from 'blockpruner';
import addon from '../../dist/runtime/addon.js';
import packages from '../../install/packages.js';

const root = path.resolve(import.meta.dirname, '..', '..');
// llama.cpp knows a Baichuan with rotary positions by its 32 layers
const layersOf = (name) => ({ 'baichuan-dense': 32 })[name] ?? 6;
// What llama.cpp's fixture has more than the models of this name: of all, the scales of tensor types that they don't
// have; of Qwen2 a bias of the output; of Qwen3's small models also other biases, an output of their own, and one that
// ranks.
const surplusOf = (name) =>
    ({ 'qwen2-dense': /^output\.bias$/, 'qwen3-dense': /\.bias$|^(cls\.)?output\.weight$/ })[name];
const load = (source) => Model.load(source, { device: 'cpu', threads: 1 });

let state = 1;
const random = (below) => {
    state = (state * 48271) % 0x7fffffff;
    return Math.floor((state / 0x7fffffff) * below);
};
const length = 48;
const tokens = Int32Array.from({ length: 2 * length }, () => random(120));
const seed = state;
const perplexity = async (model, skip = []) =>
    Math.exp(meanNll(await model.evaluate({ tokens, length }, { skip }), length));
const differs = (a, b) => Math.abs(a / b - 1);

process.on('message', async ({ name, folder }) => {
    const result = { name };
    try {
        await examine(result, (what) => path.join(folder, `${what}.gguf`));
    } catch (error) {
        result.error = error instanceof Error ? error.message : String(error);
    }
    process.send(result);
});
process.on('disconnect', () => process.exit());

/** Fills in what is found, as far as it gets. */
async function examine(result, file) {
    const { name } = result;
    state = seed; // whichever models came before
    execFileSync(
        path.join(root, 'build', 'cmake', 'fixtures'),
        ['make', name, file('whole'), String(layersOf(name)), packages.backendFolders.cpu],
        { stdio: 'ignore' }
    );
    await copy(file('whole'), file('model'), (tensor) =>
        /\.(input_)?scale$/.test(tensor.name) || surplusOf(name)?.test(tensor.name) ? [] : [tensor]
    );
    const model = await load(file('model'));
    try {
        const blocks = await model.graph().then((graph) => graph.blocks);
        result.blocks = blocks.map(({ kind }) => kind[0]).join('');
        result.dense = await perplexity(model);

        // those of the first layer and the last, and the first of each kind that computes something else
        const isNew = (block, index) => blocks.findIndex(({ signature }) => signature === block.signature) === index;
        const isAtEnd = (_, index) => index < 2 || index >= blocks.length - 2;
        const examined = blocks.filter((...block) => isNew(...block) || isAtEnd(...block));
        const skips = [];
        const zeroed = { worst: 0, effect: Infinity, block: '' };
        for (const block of examined) {
            let expected = await perplexityOfZeroed(file, block.tensors);
            if (Number.isNaN(expected)) {
                // of norms and divisors
                const shapes = new Map(model.gguf.tensors.map(({ name: tensor, shape }) => [tensor, shape]));
                expected = await perplexityOfZeroed(
                    file,
                    block.tensors.filter((tensor) => shapes.get(tensor).length > 1 || tensor.endsWith('.bias'))
                );
            }
            const skipped = await perplexity(model, [block]);
            skips.push(skipped);
            zeroed.effect = Math.min(zeroed.effect, differs(skipped, result.dense));
            if (!(differs(skipped, expected) <= zeroed.worst)) {
                Object.assign(zeroed, { worst: differs(skipped, expected), block: formatMove([block]) });
            }
        }
        result.zeroed = zeroed;
        const streams = await model.keepStreams({ tokens, length });
        const fromBoundary = [];
        for (const block of examined) {
            const nll = await streams.evaluate([block], [0, 1]);
            fromBoundary.push(Math.exp(meanNll(Float32Array.from(nll.flatMap((one) => [...one])), length)));
        }
        result.prefix = Math.max(...skips.map((value, i) => differs(value, fromBoundary[i])));
        streams.dispose();

        const host = await chooseHost(model.gguf);
        Object.assign(result, {
            host: host.name,
            reason: host.reason,
            tolerance: host.tolerance,
            together: Math.min(...host.moves(blocks).map(({ length }) => length))
        });
        const removed = [];
        while (removed.length < blocks.length / 3) {
            const moves = host.moves(without(blocks, removed));
            if (moves.length === 0) {
                break;
            }
            removed.push(...moves[random(moves.length)]);
        }
        result.removed = formatMove(removed);
        const searched = await perplexity(model, removed);
        const draft = await writeDraft(
            { gguf: model.gguf, host, blocks },
            { removed },
            {
                calibration: { name: 'random', sequences: 2, context: length },
                perplexity: { dense: result.dense, pruned: searched }
            },
            file('pruned')
        );
        await draft.publish();
        Object.assign(result, { searched, tokens, length });
    } finally {
        model.dispose();
    }
}

async function perplexityOfZeroed(file, names) {
    await copy(file('model'), file('zeroed'), ({ name: tensor, from, type, shape }) => [
        names.includes(tensor) ? { name: tensor, type, shape } : { name: tensor, from }
    ]);
    const model = await load(file('zeroed'));
    try {
        return await perplexity(model);
    } finally {
        model.dispose();
    }
}

/** Copies a model, with what `change` makes of each tensor. */
async function copy(source, output, change) {
    const { tensors } = await readGguf(source);
    const { writeGguf } = await addon.loadAddon();
    await writeGguf(
        {
            output,
            sources: [source],
            remove: [],
            rename: [],
            select: [],
            set: [],
            tensors: tensors.flatMap(({ name: tensor, type, shape }) =>
                change({ name: tensor, from: [{ file: 0, name: tensor }], type, shape }).map((changed) =>
                    changed.from ? { name: changed.name, from: changed.from } : changed
                )
            )
        },
        {}
    );
}
