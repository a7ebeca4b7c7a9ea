// The search against an independent one in PyTorch; ../reference/search.py says how its numbers came about.
import { formatBlock, Model, PrefixEvaluator, searchOrder, without, type Block } from '../../lib/index.js';
import { perplexityOfAll } from '../../lib/search/contest.js';
import { temporaryFolder } from '../models';
import { calibration, loadReferenceModel, readReference, writeReferenceModel } from '../reference/read';

interface Reference {
    dense: number;
    steps: { removed: Block; perplexity: number; candidates: Record<string, number> }[];
}

const references = readReference<Record<'all' | 'attn' | 'ffn', Reference>>('order.json');
const folder = temporaryFolder();
let model: Model;

beforeAll(async () => {
    model = await loadReferenceModel(await writeReferenceModel(folder));
});
afterAll(() => model.dispose());

test.each(['all', 'attn', 'ffn'] as const)(
    'of %s blocks: the same order, the same perplexity of each candidate',
    async (selection) => {
        const reference = references[selection];
        const found: Record<string, number>[] = [];
        const evaluator = await PrefixEvaluator.create([model], calibration);
        const candidates = (await model.blocks()).filter(({ kind }) => selection === 'all' || kind === selection);
        const { dense, steps } = await searchOrder(
            {
                sequences: evaluator.sequences,
                devices: 1,
                evaluate: async (skip, sequences) => {
                    const nll = await evaluator.evaluate(skip, sequences);
                    if (skip.length > 0) {
                        (found[skip.length - 1] ??= {})[formatBlock(skip.at(-1)!)] = perplexityOfAll(nll);
                    }
                    return nll;
                },
                remove: (removed) => evaluator.remove(removed)
            },
            {
                mode: 'full',
                moves: (removed) =>
                    removed.length < reference.steps.length ? without(candidates, removed).map((block) => [block]) : []
            }
        );

        evaluator.dispose();

        expect(steps.flatMap(({ removed }) => removed)).toEqual(reference.steps.map(({ removed }) => removed));
        expect(found.map((candidates) => Object.keys(candidates))).toEqual(
            reference.steps.map(({ candidates }) => Object.keys(candidates))
        );
        const differences = [
            [dense, reference.dense],
            ...steps.map(({ perplexity }, index) => [perplexity, reference.steps[index]!.perplexity]),
            ...reference.steps.flatMap(({ candidates }, index) =>
                Object.entries(candidates).map(([name, value]) => [found[index]![name]!, value])
            )
        ].map(([ours, theirs]) => Math.abs(ours! / theirs! - 1));
        expect(Math.max(...differences)).toBeLessThan(1e-4);
    },
    600_000
);
