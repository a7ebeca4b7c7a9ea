export type BuildErrorCode = 'BUILD_FAILED' | 'BUILD_IMPOSSIBLE' | 'BUILD_INTERRUPTED';

/** A failure that the user can act on: its message says all there is to know, and a stack would add nothing. */
export declare class BuildError extends Error {
    readonly code: BuildErrorCode;
}

/**
 * Calls build(), which must leave folder/blockpruner.node, or another product, unless its stamp says that this was done.
 * Processes that ask at the same time wait for the one that builds. `log` receives the progress, a line at a time;
 * without it, stderr does.
 */
export declare function buildOnce(options: {
    folder: string;
    stamp: string;
    log?: (line: string) => void;
    force?: boolean;
    product?: string;
    name?: string;
    build(progress: { phase(text: string): void; output(line: string): void }, stopped: AbortSignal): Promise<void>;
}): Promise<void>;
