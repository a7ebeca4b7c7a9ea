// The figures that show what a search removed, whether it is at its end or not.
import { formatBytes, formatNumber, formatPairChange, formatParameters, formatShare } from '../format.js';
import { formatBlock, formatMove, type Block } from '../runtime/blocks.js';
import { shareOf } from '../runtime/model.js';
import { formatStep, movesAfter } from '../search/greedy.js';
import { layerMaps, lineChart, removedAxis } from './charts.js';
import type { Figure, LegendItem } from './page.js';
import { densePerplexity, unrepairedPerplexity, type Removals } from './prune-result.js';

export async function perplexityFigure(result: Removals): Promise<Figure> {
    const { removed, perplexity, repair, linearGaps } = result;
    const models = modelsOf(result);
    const dense = densePerplexity(result);
    const searched = { dense, pruned: models.at(-1)!.perplexity };
    const gone = formatShare(models.at(-1)!.share);
    const repaired = `${formatNumber(perplexity.pruned)} (${formatPairChange(perplexity)})`;
    const copy = result.searched && `a copy in ${result.searched.type}`;
    const it = copy ? "the model's" : 'it';
    const gained = repair.kind === 'none' ? '' : `, and the repair brought ${it} to ${repaired}`;
    return {
        title: 'Perplexity against parameters removed',
        caption:
            `On the calibration text, the perplexity ${copy ? `of ${copy} ` : ''}went from ${formatNumber(dense)} to ` +
            `${formatNumber(searched.pruned)} (${formatPairChange(searched)}) while ${removed.length} blocks ` +
            `with ${gone} of the parameters were removed` +
            (linearGaps ? ', with a linear block in each gap, fitted to the model as it is' : '') +
            gained +
            '. Lower is better.',
        charts: [
            await lineChart(
                models.map((model, i) => {
                    const name = i === 0 ? (copy ?? 'the model as it is') : `${i}. without ${model.name}`;
                    const value = `perplexity ${formatNumber(model.perplexity)}`;
                    return {
                        series: 0,
                        dashed: false,
                        x: model.share,
                        y: model.perplexity,
                        label: `${name}: ${value}, ${formatShare(model.share)} of the parameters removed`
                    };
                }),
                {
                    x: removedAxis,
                    y: 'perplexity',
                    label:
                        'Line chart: perplexity on the calibration text, ' +
                        'by the share of the parameters that is removed'
                }
            )
        ],
        table: {
            caption: 'Perplexity after each removal',
            head: ['Removed', 'Parameters removed', 'Perplexity', 'Change'],
            rows: models.map((model, i) => [
                i === 0 ? 'nothing' : `${i}. ${model.name}`,
                formatShare(model.share),
                formatNumber(model.perplexity),
                i === 0 ? '' : formatPairChange({ dense, pruned: model.perplexity })
            ])
        }
    };
}

/** A model on the way from the dense to the pruned one. */
interface ModelOnTheWay {
    /** The blocks that went last. */
    name: string;
    /** The share of the parameters that is gone. */
    share: number;
    perplexity: number;
}

/** The model as it is, and what was left of it after each removal. */
function modelsOf(result: Removals): ModelOnTheWay[] {
    const { blocks, steps, removed, parameters } = result;
    const share = (gone: readonly Block[]) => shareOf(blocks, gone, parameters.dense);
    const dense = { name: 'nothing', share: 0, perplexity: densePerplexity(result) };
    if (steps.length === 0) {
        return [dense, { name: formatMove(removed), share: share(removed), perplexity: unrepairedPerplexity(result) }];
    }
    const after = steps.map((step, i) => ({
        name: formatStep(step),
        share: share(movesAfter(steps.slice(0, i + 1)).flat()),
        perplexity: step.perplexity
    }));
    return [dense, ...after];
}

export async function layerFigure({ blocks, steps, removed }: Removals): Promise<Figure> {
    const hasOrder = steps.length > 0;
    const moves = hasOrder ? movesAfter(steps) : [removed];
    const numbers = new Map(moves.flatMap((move, i) => move.map((block) => [formatBlock(block), i + 1])));
    const numberOf = (block: Block) => numbers.get(formatBlock(block));
    const fateOf = (block: Block) => {
        const number = numberOf(block);
        return number === undefined ? 'stays' : hasOrder ? `removed as number ${number}` : 'removed';
    };
    const hasLinear = blocks.some(({ kind }) => kind === 'linear');
    const linear = hasLinear ? `, ${formatCount(removed, blocks, 'linear')} linear blocks (linear)` : '';
    const classes = Math.min(4, moves.length);
    const classOf = (number: number) => Math.floor(((number - 1) * classes) / moves.length);
    const order = `The numbers say in which order, first ${formatMove(moves[0]!)}; empty blocks stay. `;
    return {
        title: hasOrder ? 'Which blocks went, and when' : 'Which blocks went',
        caption:
            `${formatCount(removed, blocks, 'attn')} attention blocks (attn)${linear} and ` +
            `${formatCount(removed, blocks, 'ffn')} feed-forward blocks (ffn) were removed. ` +
            `${hasOrder ? order : ''}Layer 0 is the one next to the input.`,
        charts: await layerMaps(
            blocks,
            (block) => {
                const number = numberOf(block);
                return {
                    class: number === undefined ? null : classOf(number),
                    text: number === undefined || !hasOrder ? '' : String(number),
                    label: `${formatBlock(block)}: ${fateOf(block)}`
                };
            },
            {
                scale: 'w',
                classes,
                label:
                    'Layer map: attention and feed-forward blocks by layer, ' +
                    (hasOrder ? 'with the order of removal' : 'removed or not')
            }
        ),
        legend: [
            ...Array.from({ length: classes }, (_, i): LegendItem => {
                const ofClass = moves.map((_, index) => index + 1).filter((number) => classOf(number) === i);
                const range = ofClass.length > 1 ? `${ofClass[0]} to ${ofClass.at(-1)}` : String(ofClass[0]);
                return { name: hasOrder ? range : 'removed', colour: `var(--w${i})` };
            }),
            { name: 'stays', colour: 'var(--none)' }
        ],
        table: {
            caption: 'Blocks',
            head: ['Block', 'Removed', 'Parameters', 'Bytes'],
            rows: blocks.map((block) => [
                formatBlock(block),
                fateOf(block),
                formatParameters(block.parameters),
                formatBytes(block.bytes)
            ])
        }
    };
}

/** How many blocks of a kind went: `3 of 12`. */
function formatCount(removed: readonly Block[], blocks: readonly Block[], kind: Block['kind']): string {
    const count = (all: readonly Block[]) => all.filter((block) => block.kind === kind).length;
    return `${count(removed)} of ${count(blocks)}`;
}
