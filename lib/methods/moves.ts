// What can go at a time, and which of it a method that ranks once lets go next.
import { checkOneOf } from '../check.js';
import { BlockprunerError } from '../errors.js';
import { formatMove, layersOf, without, type Block, type BlockSelection, type Move } from '../runtime/blocks.js';
import type { Candidates, MoveOptions, PruningMethod } from './method.js';

type Unit = PruningMethod['unit'];

/** @throws BlockprunerError if a method of whole layers is to remove blocks of one kind */
export function checkSelection(
    { name, unit }: Pick<PruningMethod, 'name' | 'unit'>,
    selection: BlockSelection | undefined
): void {
    checkOneOf('blocks', selection, ['all', 'attn', 'ffn']);
    if (selection !== undefined && selection !== 'all' && unit === 'layer') {
        const message = `the method ${name} removes whole layers: it can't be limited to ${selection} blocks`;
        throw new BlockprunerError('ARGUMENT', message);
    }
}

/** The single blocks or whole layers of a model that a method may remove. */
export function unitsOf(unit: Unit, { blocks, selection = 'all' }: MoveOptions): Move[] {
    const units = unit === 'layer' ? layersOf(blocks) : blocks.map((block): Move => [block]);
    return units.filter((move) => isSelected(move, selection));
}

/** Gives all moves that could be made next, however much they matter: those of the host's that a method can make. */
export function possibleMoves(unit: Unit, options: MoveOptions): (removed: readonly Block[]) => Move[] {
    const { host, blocks, selection = 'all' } = options;
    const ofHost = (removed: readonly Block[]) =>
        host.moves(without(blocks, removed)).filter((move) => isSelected(move, selection));
    if (unit === 'block') {
        return ofHost;
    }
    // Where single blocks can go, so can any layer; where blocks go together, some of these moves are whole layers.
    const singly = host.moves(blocks).every(({ length }) => length === 1);
    if (!singly) {
        const sizes = new Map(layersOf(blocks).map((layer) => [layer[0]!.layer, layer.length]));
        const isWhole = (part: Move) => part.length === sizes.get(part[0]!.layer);
        return (removed) => ofHost(removed).filter((move) => layersOf(move).every(isWhole));
    }
    const layers = unitsOf(unit, options);
    return (removed) => {
        const free = new Set(ofHost(removed).map(formatMove));
        const canGo = (layer: Move) => layer.every((block) => free.has(formatMove([block])));
        return layers.filter((layer) => canGo(layer) && layer.length < blocks.length - removed.length);
    };
}

/** All possible moves of at most so many blocks: the candidates of a method that measures each of them. */
export function allMoves(unit: Unit, options: MoveOptions): Candidates {
    const possible = possibleMoves(unit, options);
    return (removed, most = Infinity) => possible(removed).filter(({ length }) => length <= most);
}

/**
 * The lowest of the possible moves, as the only candidate: that of a method that ranks once. A move of several units
 * has their mean score.
 * @param scores of each of the {@link unitsOf | units}
 */
export function lowestMove(unit: Unit, options: MoveOptions, scores: readonly number[]): Candidates {
    const all = allMoves(unit, options);
    const scoreOf = new Map(unitsOf(unit, options).map((move, i) => [formatMove(move), scores[i]!]));
    const meanScore = (move: Move) => {
        const parts = unit === 'layer' ? layersOf(move) : move.map((block) => [block]);
        return parts.reduce((sum, part) => sum + scoreOf.get(formatMove(part))!, 0) / parts.length;
    };
    return (removed, most) => {
        const ranked = all(removed, most).map((move) => ({ move, score: meanScore(move) }));
        return ranked
            .sort((a, b) => a.score - b.score)
            .slice(0, 1)
            .map(({ move }) => move);
    };
}

function isSelected(move: Move, selection: BlockSelection): boolean {
    return move.every(({ kind }) => selection === 'all' || kind === selection);
}
