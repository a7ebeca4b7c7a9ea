// The model card that `prune --card` writes, and what it says of models from elsewhere.
import fs from 'node:fs';
import path from 'node:path';
import { modelCard, readGguf, type PruneResult } from '../../lib/index.js';
import { expectRefused, runJson, shortPrune } from '../cli/run';
import { temporaryFolder, tiny } from '../models';

const folder = temporaryFolder();
const at = (name: string) => path.join(folder, name);
const search = ['--blocks', 'attn', '--remove', '2', ...shortPrune];

let result: PruneResult;
beforeAll(async () => {
    result = await runJson<PruneResult>(
        ...(['prune', tiny, '-o', at('smaller.gguf'), '--card', at('README.md'), '--type', 'Q4_0', ...search] as const)
    );
});

test('it has the figures of the result, and the licence of the model', async () => {
    const card = fs.readFileSync(at('README.md'), 'utf8');
    expect(card).toBe(modelCard(result, (await readGguf(tiny)).metadata));
    expect(card).toMatch(/^---\nlicense: "mit"\nlibrary_name: gguf\ntags:\n(- \w+\n)+---\n\n# /);
    const removed = result.removed.map(({ kind, layer }) => `${kind}.${layer}`).join(', ');
    expect(card).toContain(`- Removed (balanced): ${removed}\n`);
    expect(card).toContain(`| perplexity (calibration.txt, 1 × 32 tokens) | ${result.perplexity.dense.toFixed(2)} |`);
    expect(card).toContain(`- Quantized: Q4_0, by the importance of 32 tokens`);
    expect(card).toContain('llama-server -m smaller.gguf');
    expect(fs.statSync(at('smaller.gguf')).size).toBe(result.bytes.pruned);
});

test.each([
    ['hf:user/some-model-GGUF:Q4_K_M', {}, 'user/some-model-GGUF'],
    ['hf:user/repo/file.gguf', {}, 'user/repo'],
    ['m.gguf', { 'general.repo_url': 'https://huggingface.co/lab/model' }, 'lab/model'],
    [
        'hf:user/tuned-GGUF',
        { 'general.base_model.0.repo_url': 'https://huggingface.co/lab/untuned' }, // what that was made of
        'user/tuned-GGUF'
    ]
])('%s, %j: it names the model that it was made of', (model, metadata, base) => {
    const card = modelCard({ ...result, model }, metadata);
    expect(card).toContain(`base_model: "${base}"\n`);
    expect(card).toContain(`[${base}](https://huggingface.co/${base})`);
    expect(card).toContain('names no licence');
    expect(card).not.toContain('license:');
});

test('a hostile name is text, not markup', () => {
    const name = '](https://evil.example)<img src=x>\n---\n# owned | `code`';
    const card = modelCard(result, { 'general.name': name, 'general.license': 'mit"\nfake: "yes' });
    expect(card).toContain('license: "mit\\"\\nfake: \\"yes"\n');
    expect(card.split('\n').filter((line) => line.startsWith('#'))).toHaveLength(4);
    expect(card).not.toMatch(/[^\\]<img|[^\\]\]\(https:\/\/evil/);
});

test('a card that is there stays, and two files have two names', async () => {
    const prune = ['prune', tiny, '-o', at('new.gguf'), ...search, '--card'];
    await expectRefused(folder, [...prune, at('README.md')], /the model card \S+README.md exists: choose another name/);
    await expectRefused(folder, [...prune, at('new.gguf')], /the model card and the output are both/);
});
