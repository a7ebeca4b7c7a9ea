// The model card of a pruned model: what a hub shows beside the file.
import path from 'node:path';
import { reportedScore } from '../evaluation/scores.js';
import { formatBytes, formatChange, formatNumber, formatParameters, formatScore } from '../format.js';
import { formatBlock } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import { version } from '../version.js';
import { formatQuantized, formatRepair, formatSearched, type PruneResult } from './prune-result.js';

/**
 * A model card in Markdown, with the metadata that hubs read at its beginning: what the model was made of, its licence,
 * what was lost, and how to run it.
 * @param source metadata of the model that was pruned
 */
export function modelCard(result: PruneResult, source: Gguf['metadata']): string {
    const file = path.basename(result.output);
    const base = baseModel(result.model, source);
    const license = textOf(source['general.license']);
    const name = textOf(source['general.name']) ?? path.basename(result.model, '.gguf');
    const share = formatChange(result.parameters.pruned / result.parameters.dense - 1);
    return [
        '---',
        ...(license === undefined ? [] : [`license: ${JSON.stringify(license.toLowerCase())}`]),
        ...(base === undefined ? [] : [`base_model: ${JSON.stringify(base)}`]),
        'library_name: gguf',
        'tags:',
        '- gguf',
        '- pruned',
        '- blockpruner',
        '---',
        '',
        `# ${plain(name)}, pruned (${share} parameters)`,
        '',
        `Made of ${base === undefined ? plain(path.basename(result.model)) : link(base)} by blockpruner ` +
            `${version}, without training. Stock llama.cpp loads it, and so do Ollama, LM Studio and node-llama-cpp.`,
        '',
        ...figures(result),
        '',
        ...whatWasDone(result),
        '',
        '## Run it',
        '',
        `    llama-server -m ${file}`,
        `    echo 'FROM ./${file}' > Modelfile && ollama create pruned -f Modelfile && ollama run pruned`,
        '',
        '## Licence',
        '',
        license === undefined
            ? 'The file that it was made of names no licence: the terms of that model hold for this one too.'
            : `That of the model that it was made of: ${plain(license)}.`,
        ''
    ].join('\n');
}

/** The repository that a model comes from, `user/repo`, as far as it is known. */
function baseModel(model: string, source: Gguf['metadata']): string | undefined {
    const url = textOf(source['general.repo_url']);
    const [, ofUrl] = /^https:\/\/huggingface\.co\/([\w.-]+\/[\w.-]+)\/?$/.exec(url ?? '') ?? [];
    const [, ofUri] = /^hf:([\w.-]+\/[\w.-]+?)(?:[:/@#].*)?$/.exec(model) ?? [];
    return ofUri ?? ofUrl;
}

function figures({ parameters, bytes, perplexity, quantized, calibration, tasks }: PruneResult): string[] {
    const lost = { ...perplexity, pruned: quantized?.perplexity ?? perplexity.pruned };
    const text = `${plain(calibration.name)}, ${calibration.sequences} × ${calibration.context} tokens`;
    const row = (name: string, { dense, pruned }: typeof parameters, format: (value: number) => string) =>
        `| ${name} | ${format(dense)} | ${format(pruned)} | ${formatChange(pruned / dense - 1)} |`;
    return [
        '| | before | after | |',
        '|---|---|---|---|',
        row('parameters', parameters, formatParameters),
        row('file', bytes, formatBytes),
        row(`perplexity (${text})`, lost, formatNumber),
        ...tasks.dense.map((dense, i) => {
            const [before, after] = [dense, tasks.pruned[i]!].map((one) => formatScore(reportedScore(one), 1));
            return `| ${plain(dense.task)}, ${dense.questions} questions | ${before} | ${after} | |`;
        })
    ];
}

function whatWasDone({ removed, method, searched, linearGaps, repair, quantized }: PruneResult): string[] {
    return [
        '## What was done',
        '',
        `- Removed (${method ?? 'a given order'}): ${removed.map(formatBlock).join(', ')}`,
        ...(searched ? [`- Searched ${formatSearched(searched, linearGaps)}`] : []),
        `- Repair: ${plain(formatRepair(repair))}`,
        ...(quantized ? [`- Quantized: ${formatQuantized(quantized)}`] : []),
        '- The keys `blockpruner.*` of the file tell the same, and the hash of what it was made of.'
    ];
}

function link(repository: string): string {
    return `[${repository}](https://huggingface.co/${repository})`;
}

function textOf(value: Gguf['metadata'][string]): string | undefined {
    return typeof value === 'string' && value !== '' ? value : undefined;
}

/** Text of a stranger's file as text of ours: on one line, without markup. */
function plain(text: string): string {
    return text.replace(/\s+/g, ' ').replace(/[\\`*_{}[\]<>#|]/g, '\\$&');
}
