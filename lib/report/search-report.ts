// The report of prune while it is at work: what the search has removed so far. The report of what came of it takes its
// place in the end.
import fs from 'node:fs';
import path from 'node:path';
import {
    formatDuration,
    formatNumber,
    formatPair,
    formatPairChange,
    formatParameters,
    formatPercent
} from '../format.js';
import type { Goal } from '../methods/method.js';
import { formatStep } from '../search/greedy.js';
import { version } from '../version.js';
import { importanceFigure } from './importance-figure.js';
import { page, UNFINISHED, type Detail, type Fact, type Figure } from './page.js';
import type { PruneResult, Removals } from './prune-result.js';
import { layerFigure, perplexityFigure } from './search-figures.js';

/** A search that has removed some blocks, or none yet, and may go on. */
export interface SearchSoFar extends Removals, Pick<PruneResult, 'model' | 'output' | 'architecture' | 'host'> {
    goal: Goal;
    /** When the run began, and when the last removal was made, in ms since 1970. */
    began: number;
    changed: number;
    /** Whether the run has ended before its model was written. */
    stopped: boolean;
    /** What was wrong, where that ended it. */
    error?: string | undefined;
    /** Whether the page reads itself again while it is open in a browser. */
    watched: boolean;
}

/** A page that shows what a search has removed so far, as one HTML file that needs nothing else. */
export async function searchReport(search: SearchSoFar): Promise<string> {
    const { steps, removed, blocks, stopped, error, watched } = search;
    const figures: (Figure | undefined)[] =
        steps.length === 0
            ? []
            : await Promise.all([perplexityFigure(search), layerFigure(search), importanceFigure(search)]);
    return page({
        title: path.basename(search.model),
        lead: `${removed.length} of ${blocks.length} blocks removed so far`,
        facts: factsOf(search),
        advice: {
            title: error !== undefined ? 'Failed' : stopped ? 'Stopped' : 'At work',
            paragraphs: [stateOf(search)]
        },
        figures: figures.filter((figure) => figure !== undefined),
        details: detailsOf(search),
        unfinished: { reload: watched ? reloadSeconds(search) : undefined }
    });
}

/** Whether a file is the report of a run that has not come to its end. */
export function isUnfinishedReport(file: string): boolean {
    try {
        return fs.statSync(file).isFile() && fs.readFileSync(file).includes(UNFINISHED);
    } catch {
        return false; // whoever is to replace it says what is wrong with it
    }
}

function stateOf({ steps, stopped, error, goal, output }: SearchSoFar): string {
    const last = steps.at(-1);
    const done = last
        ? `Removal ${steps.length} was ${formatStep(last)}, chosen among ${last.candidates.length} in ` +
          `${formatDuration(last.seconds)}.`
        : `Nothing is removed yet${stopped ? '' : ': the first removal takes longest'}.`;
    const then = stopped
        ? `The run ${error !== undefined ? 'failed' : 'was stopped'} before ${path.basename(output)} was ` +
          `written${error !== undefined ? `: ${error}` : ''}. The same again with --resume (in a program, ` +
          'resume: true) goes on with what was found, and with this page.'
        : `${goalText(goal)} This page is written anew after each removal, and once more when ` +
          `${path.basename(output)} is there.`;
    return `${done} ${then}`;
}

function goalText({ remove, ratio, maxIncrease }: Goal): string {
    if (remove !== undefined) {
        return `${remove} ${remove === 1 ? 'block is' : 'blocks are'} to go.`;
    }
    return ratio !== undefined
        ? `${formatPercent(ratio)} of the parameters are to go.`
        : `Blocks go while the perplexity is at most ${formatPercent(maxIncrease!)} higher.`;
}

function factsOf({ blocks, removed, parameters, perplexity, searched, began, changed }: SearchSoFar): Fact[] {
    return [
        { name: 'Blocks removed', value: String(removed.length), detail: `of ${blocks.length}` },
        {
            name: 'Parameters',
            value: formatPairChange(parameters),
            detail: formatPair(formatParameters, parameters)
        },
        {
            name: 'Perplexity',
            value: formatPairChange(perplexity),
            detail: `${formatPair(formatNumber, perplexity)}, calibration text${searched ? `, ${searched.type}` : ''}`
        },
        {
            name: 'Last change',
            value: new Date(changed).toLocaleTimeString('en-GB'),
            detail: `${formatDuration((changed - began) / 1000)} after the run began`
        }
    ];
}

function detailsOf(search: SearchSoFar): Detail[] {
    const { model, output, architecture, host, method, searched, calibration, began } = search;
    return [
        ['Model', path.basename(model)],
        ['Result', `${path.basename(output)}, not written yet`],
        ['Architecture', `${architecture}, to be written as ${host}`],
        ['Method', String(method)],
        ...(searched ? [['Searched', `in a copy in ${searched.type}`] as const] : []),
        ['Calibration', `${calibration.name}: ${calibration.sequences} × ${calibration.context} tokens`],
        ['Begun', new Date(began).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'medium' })],
        ['Made by', `blockpruner ${version}`]
    ];
}

/** A page is read again a few times for each removal, and not so often that it can't be read. */
function reloadSeconds({ steps }: SearchSoFar): number {
    return Math.min(15, Math.max(2, Math.round((steps.at(-1)?.seconds ?? 0) / 4)));
}
