import path from 'node:path';
import { formatBlock, formatMove, sameBlock, type Block, type Move } from '../runtime/blocks.js';
import { reportedScore, type Score } from '../evaluation/scores.js';
import type { Speed } from '../stock/stock.js';
import { shareOf } from '../runtime/model.js';
import {
    comparedColumns,
    comparedRows,
    formatRowName,
    isBest,
    type ComparedColumn,
    type ComparedModel,
    type ComparedRow,
    type Comparison,
    type PruneResult
} from './results.js';
import type { Candidate } from '../search/contest.js';
import { version } from '../version.js';
import {
    bars,
    cells,
    columnWidth,
    layerMap,
    lines,
    scores,
    series,
    type Bar,
    type Cell,
    type Point
} from './charts.js';
import { html, page, type Figure, type LegendItem, type Table } from './page.js';

/**
 * A page that shows what came of pruning a model, as one HTML file that needs nothing else: perplexity against parameters
 * removed, which blocks went and when, the importance of every block at every step, task scores, size and speed.
 */
export async function pruneReport(result: PruneResult): Promise<string> {
    const { blocks, removed, perplexity, parameters, bytes, speed, calibration } = result;
    const best = speed && { dense: bestOf(speed.dense), pruned: bestOf(speed.pruned) };
    const figures = [
        perplexityFigure(result),
        layerFigure(result),
        importanceFigure(result),
        taskFigure(result),
        sizeFigure(result)
    ];
    return page({
        title: path.basename(result.model),
        lead: `${removed.length} of ${blocks.length} blocks removed`,
        facts: [
            {
                name: 'Parameters',
                value: change(parameters),
                detail: `${count(parameters.dense)} → ${count(parameters.pruned)}`
            },
            { name: 'File size', value: change(bytes), detail: `${size(bytes.dense)} → ${size(bytes.pruned)}` },
            {
                name: 'Perplexity',
                value: change(perplexity),
                detail: `${number(perplexity.dense)} → ${number(perplexity.pruned)}, calibration text`
            },
            ...(best
                ? [
                      {
                          name: 'Generation speed',
                          value: change({ dense: best.dense.generation, pruned: best.pruned.generation }),
                          detail: `${number(best.dense.generation)} → ${number(best.pruned.generation)} tokens a second`
                      }
                  ]
                : [])
        ],
        figures: (await Promise.all(figures)).filter((figure) => figure !== undefined),
        details: [
            ['Model', path.basename(result.model)],
            ['Result', path.basename(result.output)],
            ['Architecture', `${result.architecture}, written as ${result.host}`],
            ['Method', result.method ?? 'a given order'],
            ...(result.merged ? [['Merged', result.merged.join('; ')] as const] : []),
            ['Calibration', `${calibration.name}: ${calibration.sequences} × ${calibration.context} tokens`],
            ...(speed
                ? [
                      [
                          'Speed',
                          `${speed.dense.length} rounds in turns in the stock runtime, ${speed.device}, ${speed.threads} ${speed.threads === 1 ? 'thread' : 'threads'}: a prompt of ${speed.tokens} tokens, then as many generated`
                      ] as const
                  ]
                : []),
            ['Time', duration(result.seconds)],
            ['Made by', `blockpruner ${version}`]
        ]
    });
}

async function perplexityFigure({ blocks, steps, removed, perplexity, parameters }: PruneResult): Promise<Figure> {
    const share = (after: number) =>
        shareOf(
            blocks,
            steps.slice(0, after).flatMap((step) => step.removed),
            parameters.dense
        );
    const models = [
        { name: 'nothing', share: 0, perplexity: perplexity.dense },
        ...(steps.length > 0
            ? steps.map((step, i) => ({
                  name: formatMove(step.removed),
                  share: share(i + 1),
                  perplexity: step.perplexity
              }))
            : [
                  {
                      name: removed.map(formatBlock).join(' '),
                      share: shareOf(blocks, removed, parameters.dense),
                      perplexity: perplexity.pruned
                  }
              ])
    ];
    const last = models.at(-1)!;
    return {
        title: 'Perplexity against parameters removed',
        caption: `On the calibration text, the perplexity went from ${number(perplexity.dense)} to ${number(perplexity.pruned)} (${change(perplexity)}) while ${removed.length} blocks with ${percent(last.share)} of the parameters were removed. Lower is better.`,
        charts: [
            await lines(
                models.map((model, i): Point => ({
                    series: 0,
                    x: model.share,
                    y: model.perplexity,
                    label: `${i === 0 ? 'the model as it is' : `${i}. without ${model.name}`}: perplexity ${number(model.perplexity)}, ${percent(model.share)} of the parameters removed`
                })),
                {
                    y: 'perplexity',
                    label: 'Line chart: perplexity on the calibration text, by the share of the parameters that is removed'
                }
            )
        ],
        table: {
            caption: 'Perplexity after each removal',
            head: ['Removed', 'Parameters removed', 'Perplexity', 'Change'],
            rows: models.map((model, i) => [
                i === 0 ? 'nothing' : `${i}. ${model.name}`,
                percent(model.share),
                number(model.perplexity),
                i === 0 ? '' : change({ dense: perplexity.dense, pruned: model.perplexity })
            ])
        }
    };
}

async function layerFigure({ blocks, steps, removed }: PruneResult): Promise<Figure> {
    // without steps, all went at once
    const moves = steps.length > 0 ? steps.map((step) => step.removed) : [removed];
    const when = (block: Block) => moves.findIndex((move) => move.some((gone) => sameBlock(gone, block))) + 1;
    const of = (kind: string) =>
        `${removed.filter((block) => block.kind === kind).length} of ${blocks.filter((block) => block.kind === kind).length}`;
    const classes = Math.min(4, moves.length);
    const classOf = (number: number) => Math.floor(((number - 1) * classes) / moves.length);
    const text = (block: Block) =>
        when(block) === 0 ? 'stays' : steps.length === 0 ? 'removed' : `removed as number ${when(block)}`;
    return {
        title: steps.length > 0 ? 'Which blocks went, and when' : 'Which blocks went',
        caption: `${of('attn')} attention blocks (attn) and ${of('ffn')} feed-forward blocks (ffn) were removed. ${steps.length > 0 ? `The numbers say in which order, first ${formatMove(moves[0]!)}; empty blocks stay. ` : ''}Layer 0 is the one next to the input.`,
        charts: await layerMap(
            blocks,
            (block) => ({
                class: when(block) === 0 ? null : classOf(when(block)),
                text: when(block) === 0 || steps.length === 0 ? '' : String(when(block)),
                label: `${formatBlock(block)}: ${text(block)}`
            }),
            {
                scale: 'w',
                classes,
                label: `Layer map: attention and feed-forward blocks by layer, ${steps.length > 0 ? 'with the order of removal' : 'removed or not'}`
            }
        ),
        legend: [
            ...Array.from({ length: classes }, (_, i): LegendItem => {
                const numbers = moves.map((_, index) => index + 1).filter((number) => classOf(number) === i);
                return {
                    name:
                        steps.length === 0
                            ? 'removed'
                            : numbers.length > 1
                              ? `${numbers[0]} to ${numbers.at(-1)}`
                              : String(numbers[0]),
                    colour: `var(--w${i})`
                };
            }),
            { name: 'stays', colour: 'var(--none)' }
        ],
        table: {
            caption: 'Blocks',
            head: ['Block', 'Removed', 'Parameters', 'Bytes'],
            rows: blocks.map((block) => [formatBlock(block), text(block), count(block.parameters), size(block.bytes)])
        }
    };
}

/** What removing a candidate would have cost, as a share of the perplexity before. */
interface Importance extends Candidate {
    name: string;
    step: number;
    rise: number;
    won: boolean;
}

async function importanceFigure({ steps, perplexity, calibration, method }: PruneResult): Promise<Figure | undefined> {
    if (steps.length === 0) {
        return undefined;
    }
    const title = 'Importance of every block at every step';
    if (steps.every(({ candidates }) => candidates.length < 2)) {
        return {
            title,
            wide: true,
            caption: `The method ${method} does not compare blocks by their perplexity: at each step there was a single candidate.`,
            charts: []
        };
    }
    const found = steps.flatMap(({ candidates, removed }, i) =>
        candidates.map((one): Importance => ({
            ...one,
            name: formatMove(one.move),
            step: i + 1,
            won: formatMove(one.move) === formatMove(removed),
            rise: (one.perplexity ?? Infinity) / (i === 0 ? perplexity.dense : steps[i - 1]!.perplexity) - 1
        }))
    );
    const { limits, classOf } = classesOf(found.map((one) => one.rise));
    const text = (one: Importance) =>
        one.perplexity === null ? 'no finite perplexity' : `perplexity ${number(one.perplexity)}, ${rise(one.rise)}`;
    const names = [...new Set(found.map(({ name }) => name))];
    const moveOf = new Map(found.map(({ name, move }) => [name, move]));
    const inStream = names.sort(
        (a, b) =>
            moveOf.get(a)![0]!.layer - moveOf.get(b)![0]!.layer ||
            moveOf.get(a)![0]!.kind.localeCompare(moveOf.get(b)![0]!.kind)
    );
    const panels = [
        { name: 'Attention blocks', of: (move: Move) => move.length === 1 && move[0]!.kind === 'attn' },
        { name: 'Feed-forward blocks', of: (move: Move) => move.length === 1 && move[0]!.kind === 'ffn' },
        { name: 'Blocks that go together', of: (move: Move) => move.length > 1 }
    ]
        .map(({ name, of }) => ({ name, rows: inStream.filter((row) => of(moveOf.get(row)!)) }))
        .filter(({ rows }) => rows.length > 0);
    const columns = steps.map((_, i) => String(i + 1));
    const limitText = (limit: number) => `+${Number((100 * limit).toPrecision(1)).toLocaleString('en-US')} %`;
    const byCell = new Map(found.map((one) => [`${one.step}/${one.name}`, one]));
    const first = found.filter(({ step }) => step === 1).sort((a, b) => a.rise - b.rise);
    const estimates = found.filter(({ sequences }) => sequences < calibration.sequences).length;
    const [least, most] = [first[0]!, first.at(-1)!];
    return {
        title,
        wide: true,
        caption: `How much the perplexity rises at a step without a block: the stronger the colour, the more the model needs it. At step 1, from ${rise(least.rise)} without ${least.name} to ${rise(most.rise)} without ${most.name}. A dot marks what was removed. ${
            estimates === 0
                ? 'All values are measured on all sequences.'
                : `${estimates} of the ${found.length} values are estimates: the search stops a block once it is clear that others matter less.`
        }`,
        charts: await Promise.all(
            panels.map(({ name, rows }) =>
                cells(
                    rows
                        .flatMap((row) => columns.map((column) => byCell.get(`${column}/${row}`)))
                        .filter((one) => one !== undefined)
                        .map((one): Cell => ({
                            column: String(one.step),
                            row: one.name,
                            class: classOf(one.rise),
                            dot: one.won,
                            label: `${one.name}, step ${one.step}: ${text(one)}${one.won ? ', removed' : ''}${one.sequences < calibration.sequences ? ` (estimate from ${one.sequences} of ${calibration.sequences} sequences)` : ''}`
                        })),
                    {
                        scale: 'h',
                        classes: limits.length + 1,
                        columns,
                        rows,
                        cellWidth: columnWidth(columns.length, rows, 30),
                        cellHeight: 17,
                        columnTitle: 'step',
                        label: `Heat map: ${name.toLowerCase()} by step, with the rise of the perplexity without each`
                    }
                )
            )
        ),
        legend: [
            ...[...limits, Infinity].map((limit, i) => ({
                colour: `var(--h${i})`,
                name:
                    limit === Infinity
                        ? `${limitText(limits.at(-1)!)} and more`
                        : `${i === 0 ? 'under' : 'to'} ${limitText(limit)}`
            })),
            { colour: 'var(--dot)', glyph: '●', name: 'removed' }
        ],
        table: {
            caption: 'Perplexity without each block, by step; ~ marks estimates',
            head: ['Block', ...columns.map((column) => `Step ${column}`)],
            rows: panels
                .flatMap(({ rows }) => rows)
                .map((row) => [
                    row,
                    ...columns.map((column) => {
                        const one = byCell.get(`${column}/${row}`);
                        return one === undefined
                            ? ''
                            : one.perplexity === null
                              ? '∞'
                              : (one.sequences < calibration.sequences ? '~' : '') + number(one.perplexity);
                    })
                ])
        }
    };
}

/** Eight classes of rises, in steps of 1, 2, 5, 10 …, that begin where the tenth of the blocks that matter least ends. */
function classesOf(rises: readonly number[]): { limits: number[]; classOf: (rise: number) => number } {
    const sorted = [...rises].sort((a, b) => a - b);
    const tenth = sorted[Math.floor(sorted.length / 10)]!;
    const all = Array.from({ length: 21 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** (Math.floor(i / 3) - 4));
    const start = Math.min(
        all.findIndex((limit) => limit >= tenth || limit === all.at(-1)),
        all.length - 7
    );
    const limits = all.slice(start, start + 7);
    return { limits, classOf: (rise) => limits.filter((limit) => rise >= limit).length };
}

async function taskFigure({ tasks }: PruneResult): Promise<Figure | undefined> {
    if (tasks.dense.length === 0) {
        return undefined;
    }
    const pairs = tasks.dense.map((dense, i) => ({
        name: dense.task,
        questions: dense.questions,
        before: reportedScore(dense),
        after: reportedScore(tasks.pruned[i]!)
    }));
    return {
        title: 'Task scores',
        caption: `Share of right answers before and after: ${pairs.map(({ name, before, after }) => `${name} ${score(before)} → ${score(after)}`).join('; ')}. Bars are standard errors; higher is better.`,
        charts: [
            await scores(
                pairs.map(({ name, before, after, questions }) => ({
                    heading: name,
                    marks: [
                        {
                            name: 'before',
                            ...before,
                            series: -1,
                            label: `${name} before: ${score(before)}, ${questions} questions`
                        },
                        {
                            name: 'after',
                            ...after,
                            series: 0,
                            label: `${name} after: ${score(after)}, ${questions} questions`
                        }
                    ]
                })),
                { label: 'Dot chart: task scores before and after, with standard errors' }
            )
        ],
        legend: [
            { name: 'before', colour: 'var(--before)', glyph: '●' },
            { name: 'after', colour: 'var(--accent)', glyph: '●' }
        ],
        table: {
            caption: 'Task scores',
            head: ['Task', 'Questions', 'Score', 'Before', 'After'],
            rows: tasks.dense.flatMap((dense, i) =>
                (['acc', 'acc_norm'] as const)
                    .filter((kind) => dense[kind])
                    .map((kind) => [
                        dense.task,
                        String(dense.questions),
                        kind,
                        score(dense[kind]!),
                        score(tasks.pruned[i]![kind]!)
                    ])
            )
        }
    };
}

async function sizeFigure({ parameters, bytes, speed }: PruneResult): Promise<Figure> {
    const speeds = (key: keyof Speed) =>
        speed && { dense: speed.dense.map((one) => one[key]), pruned: speed.pruned.map((one) => one[key]) };
    const rows = [
        { name: 'Parameters', format: count, ...parameters, rounds: null },
        { name: 'File size', format: size, ...bytes, rounds: null },
        ...(
            [
                ['Prompt', 'prompt'],
                ['Generation', 'generation']
            ] as const
        ).flatMap(([name, key]) => {
            const rounds = speeds(key);
            return rounds
                ? [
                      {
                          name,
                          format: (value: number) => `${number(value)} tokens a second`,
                          dense: Math.max(...rounds.dense),
                          pruned: Math.max(...rounds.pruned),
                          rounds
                      }
                  ]
                : [];
        })
    ];
    const title = speed ? 'Size and speed' : 'Size';
    const scatter = Math.max(
        ...rows
            .flatMap(({ rounds }) => (rounds ? [rounds.dense, rounds.pruned] : []))
            .map((values) => Math.max(...values) / Math.min(...values))
    );
    return {
        title,
        caption: `${rows.map(({ name, format, dense, pruned }) => `${name}: ${format(dense)} → ${format(pruned)} (${change({ dense, pruned })})`).join('; ')}.${speed ? ` Speeds are the best of ${speed.dense.length} rounds each, since other work on the computer only slows them down; the ticks are the rounds, which differ by up to a factor of ${number(scatter)}.` : ''}`,
        charts: [
            await bars(
                rows.flatMap(({ name, format, dense, pruned, rounds }): Bar[] => [
                    {
                        name,
                        when: 'before',
                        value: 1,
                        rounds: rounds?.dense.map((value) => value / dense) ?? [],
                        label: `${name} before: ${format(dense)}`
                    },
                    {
                        name,
                        when: 'after',
                        value: pruned / dense,
                        rounds: rounds?.pruned.map((value) => value / dense) ?? [],
                        label: `${name} after: ${format(pruned)}, ${change({ dense, pruned })}`
                    }
                ]),
                `Bar chart: ${title.toLowerCase()} before and after, as shares of before`
            )
        ],
        legend: [
            { name: 'before', colour: 'var(--before)' },
            { name: 'after', colour: 'var(--accent)' }
        ],
        table: {
            caption: title,
            head: ['Measure', 'Before', 'After', 'Change'],
            rows: rows.map(({ name, format, dense, pruned }) => [
                name,
                format(dense),
                format(pruned),
                change({ dense, pruned })
            ])
        }
    };
}

/** What is more than so many times the model's perplexity is destroyed, and would press all else in a chart together. */
const CEILING = 100;

/** A page that shows how methods of pruning compare, as one HTML file that needs nothing else. */
export async function comparisonReport(comparison: Comparison): Promise<string> {
    const { model, calibration, text, dense, pruned, seconds, blocks } = comparison;
    const rows = comparedRows(comparison)
        .slice(1)
        .map((row) => ({ ...row, name: nameOf(row) }));
    const methods = [...new Set(pruned.map(({ method }) => method))];
    const ratios = [...new Set(pruned.map(({ ratio }) => ratio))].sort((a, b) => a - b);
    const seriesOf = (method: string) => methods.findIndex((name) => method === name);
    const legend = methods.map((name, i): LegendItem => ({ name, colour: series[i]!.colour, glyph: series[i]!.glyph }));
    const bestAt = (ratio: number, value: (row: (typeof rows)[number]) => number) =>
        rows.filter((row) => row.ratio === ratio).reduce((a, b) => (value(b) < value(a) ? b : a));

    const perplexityOver = async (
        what: string,
        before: number,
        value: (row: (typeof rows)[number]) => number
    ): Promise<Figure> => {
        const ceiling = CEILING * before;
        const beyond = methods.flatMap((method) => {
            const above = rows.filter((row) => row.method === method && value(row) > ceiling);
            return above.length === 0
                ? []
                : [`${above[0]!.name} at ${above.map(({ ratio }) => percent(ratio)).join(', ')}`];
        });
        return {
            title: `Perplexity on ${what}`,
            caption: `${number(before)} as the model is. Lowest ${ratios.map((ratio) => `at ${percent(ratio)}: ${number(value(bestAt(ratio, value)))} by ${bestAt(ratio, value).name}`).join('; ')}. Lower is better.${beyond.length === 0 ? '' : ` Above ${number(ceiling)}, and not in the chart: ${beyond.join('; ')}.`}`,
            charts:
                rows.length === 0
                    ? []
                    : [
                          await lines(
                              methods
                                  .flatMap((method, i): Point[] => [
                                      {
                                          series: i,
                                          x: 0,
                                          y: before,
                                          label: `the model as it is: perplexity ${number(before)}`
                                      },
                                      ...rows
                                          .filter((row) => row.method === method)
                                          .map((row) => ({
                                              series: i,
                                              x: row.removed,
                                              y: value(row),
                                              label: `${row.name} at ${percent(row.ratio)}: perplexity ${number(value(row))}, ${percent(row.removed)} of the parameters removed`
                                          }))
                                  ])
                                  .filter((point) => point.y <= ceiling),
                              {
                                  y: 'perplexity',
                                  label: `Line chart: perplexity on ${what}, by the share of the parameters that is removed, for each method`
                              }
                          )
                      ],
            legend,
            table: {
                caption: `Perplexity on ${what}`,
                head: ['Method', 'Ratio', 'Parameters removed', 'Perplexity'],
                rows: [
                    ['the model as it is', '', percent(0), number(before)],
                    ...rows.map((row) => [row.name, percent(row.ratio), percent(row.removed), number(value(row))])
                ]
            }
        };
    };
    const taskFigures = dense.tasks.map(async (task, i): Promise<Figure> => ({
        title: `Task scores: ${task.task}`,
        caption: `Share of right answers of ${task.questions} questions; ${score(reportedScore(task))} as the model is (the dashed line). Highest ${ratios
            .map((ratio) => {
                const best = bestAt(ratio, (row) => -row.tasks[i]!.value);
                return `at ${percent(ratio)}: ${score(best.tasks[i]!)} by ${best.name}`;
            })
            .join('; ')}. Bars are standard errors; higher is better.`,
        charts:
            rows.length === 0
                ? []
                : [
                      await scores(
                          ratios.map((ratio) => ({
                              heading: `${percent(ratio)} removed`,
                              marks: rows
                                  .filter((row) => row.ratio === ratio)
                                  .map((row) => ({
                                      name: row.name,
                                      ...row.tasks[i]!,
                                      series: seriesOf(row.method),
                                      label: `${row.name} at ${percent(ratio)}: ${score(row.tasks[i]!)}`
                                  }))
                          })),
                          {
                              label: `Dot chart: scores of ${task.task} by ratio and method, with standard errors`,
                              reference: reportedScore(task)
                          }
                      )
                  ],
        table: {
            caption: `Scores of ${task.task}`,
            head: ['Method', 'Ratio', 'Score'],
            rows: [
                ['the model as it is', '', score(reportedScore(task))],
                ...rows.map((row) => [row.name, percent(row.ratio), score(row.tasks[i]!)])
            ]
        }
    }));
    return page({
        title: path.basename(model),
        lead: `${methods.length} methods of pruning, compared at ${ratios.map(percent).join(', ')}`,
        facts: ratios.map((ratio) => {
            const best = bestAt(ratio, (row) => row.calibration);
            return {
                name: `${percent(ratio)} removed, lowest perplexity`,
                value: best.name,
                detail: `${number(dense.calibration)} → ${number(best.calibration)}, calibration text`
            };
        }),
        figures: await Promise.all([
            perplexityOver('the calibration text', dense.calibration, (row) => row.calibration),
            ...(text === null ? [] : [perplexityOver(text, dense.text!.perplexity, (row) => row.text!.perplexity)]),
            ...taskFigures,
            removedFigure(pruned, ratios, blocks)
        ]),
        table: comparisonRows(comparison),
        details: [
            ['Model', path.basename(model)],
            ['Calibration', `${calibration.name}: ${calibration.sequences} × ${calibration.context} tokens`],
            ['Time', duration(seconds)],
            ['Made by', `blockpruner ${version}`]
        ]
    });
}

/** Which blocks each method removed: a higher ratio removes what a lower one does and more, but for LaCo. */
async function removedFigure(
    pruned: readonly ComparedModel[],
    ratios: readonly number[],
    blocks: readonly Block[]
): Promise<Figure> {
    const orders = new Map<string, ComparedModel[]>();
    for (const one of pruned) {
        const name = one.seed === null ? one.method : `${one.method}, seed ${one.seed}`;
        orders.set(name, [...(orders.get(name) ?? []), one]);
    }
    const names = [...orders.keys()];
    const classes = Math.min(4, ratios.length);
    const goneAt = (name: string, block: Block) =>
        ratios.findIndex((ratio) =>
            orders.get(name)!.some((one) => one.ratio === ratio && one.removed.some((gone) => sameBlock(gone, block)))
        );
    const text = (name: string, block: Block) =>
        goneAt(name, block) < 0 ? 'stays' : `gone at ${percent(ratios[goneAt(name, block)]!)}`;
    const classOf = (index: number) => Math.floor((index * classes) / ratios.length);
    return {
        title: 'Which blocks each method removed',
        wide: true,
        caption: `${names
            .map((name) => {
                const last = orders.get(name)!.reduce((a, b) => (b.ratio > a.ratio ? b : a));
                return `${name} ${last.removed.filter(({ kind }) => kind === 'attn').length} + ${last.removed.filter(({ kind }) => kind === 'ffn').length} at ${percent(last.ratio)}`;
            })
            .join(
                '; '
            )} (attention + feed-forward blocks). The numbers are the lowest ratio, in percent, at which a block is gone.${pruned.some(({ merged }) => merged) ? ' LaCo searches each ratio anew: at a higher one, a block may be back.' : ''}`,
        charts: (
            await Promise.all(
                names.map(async (name) =>
                    (
                        await layerMap(
                            blocks,
                            (block) => {
                                const at = goneAt(name, block);
                                return at < 0
                                    ? { class: null, label: `${name}, ${formatBlock(block)}: stays` }
                                    : {
                                          class: classOf(at),
                                          text: String(Math.round(100 * ratios[at]!)),
                                          label: `${name}, ${formatBlock(block)}: ${text(name, block)}`
                                      };
                            },
                            {
                                scale: 'w',
                                classes,
                                label: `Layer map: blocks that ${name} removed`,
                                rows: Infinity,
                                small: true
                            }
                        )
                    ).map((chart) => ({ chart, name }))
                )
            )
        )
            .flat()
            .map(
                ({ chart, name }) =>
                    html`<h3>${name}</h3>
                        ${chart}`
            ),
        legend: [
            ...ratios.map((ratio, i) => ({ name: `gone at ${percent(ratio)}`, colour: `var(--w${classOf(i)})` })),
            { name: 'stays', colour: 'var(--none)' }
        ],
        table: {
            caption: 'The lowest ratio at which a block is gone',
            head: ['Block', ...names],
            rows: blocks.map((block) => [
                formatBlock(block),
                ...names.map((name) => (goneAt(name, block) < 0 ? '' : percent(ratios[goneAt(name, block)]!)))
            ])
        }
    };
}

function nameOf(row: ComparedRow): string {
    return row.method === 'dense' ? 'the model as it is' : formatRowName(row);
}

/** The whole table; of each ratio, the best of a column is marked. */
function comparisonRows(comparison: Comparison): Table {
    const rows = comparedRows(comparison),
        columns = comparedColumns(comparison);
    const text = ({ unit, of }: ComparedColumn, row: ComparedRow) =>
        unit === 'perplexity' ? number(of(row).value) : unit === 'nats' ? of(row).value.toFixed(3) : score(of(row));
    return {
        caption: 'All figures',
        head: ['Method', 'Ratio', 'Removed', ...columns.map(({ title }) => title)],
        rows: rows.map((row) => [
            nameOf(row),
            row.ratio === 0 ? '' : percent(row.ratio),
            percent(row.removed),
            ...columns.map((column) => ({ text: text(column, row), best: isBest(column, row, rows) }))
        ])
    };
}

function bestOf(rounds: readonly Speed[]): Speed {
    return {
        prompt: Math.max(...rounds.map(({ prompt }) => prompt)),
        generation: Math.max(...rounds.map(({ generation }) => generation))
    };
}

function number(value: number): string {
    if (!Number.isFinite(value)) {
        return '∞';
    }
    const digits = Math.abs(value) < 100 ? 2 : Math.abs(value) < 1000 ? 1 : 0;
    return value < 1e9
        ? value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })
        : value.toExponential(2);
}

function percent(share: number): string {
    return `${Number((100 * share).toFixed(1))} %`;
}

function change({ dense, pruned }: { dense: number; pruned: number }): string {
    return rise(pruned / dense - 1);
}

/** A change as a share: `+4.2 %`, `−0.03 %`; where it is large, the factor. */
function rise(share: number): string {
    if (share >= 10) {
        return Number.isFinite(share) ? `× ${number(1 + share)}` : '∞';
    }
    const digits = Math.abs(share) < 0.00095 ? 2 : 1;
    return `${share < 0 ? '−' : '+'}${Math.abs(100 * share).toFixed(digits)} %`;
}

function score({ value, stderr }: Score): string {
    return `${(100 * value).toFixed(1)}${stderr === null ? '' : ` ± ${(100 * stderr).toFixed(1)}`} %`;
}

function count(parameters: number): string {
    return parameters >= 1e9
        ? `${(parameters / 1e9).toFixed(2)} B`
        : parameters >= 1e6
          ? `${(parameters / 1e6).toFixed(1)} M`
          : parameters.toLocaleString('en-US');
}

function size(bytes: number): string {
    return bytes >= 2 ** 30
        ? `${(bytes / 2 ** 30).toFixed(2)} GiB`
        : bytes >= 2 ** 20
          ? `${(bytes / 2 ** 20).toFixed(1)} MiB`
          : `${(bytes / 2 ** 10).toFixed(0)} KiB`;
}

function duration(seconds: number): string {
    return seconds < 120
        ? `${seconds.toFixed(0)} s`
        : seconds < 7200
          ? `${(seconds / 60).toFixed(0)} min`
          : `${(seconds / 3600).toFixed(1)} h`;
}
